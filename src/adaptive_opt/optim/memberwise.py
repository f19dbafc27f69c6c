"""Any ``torch.optim.Optimizer``, on an ensemble.

Most of torch's optimizers work elementwise and may be given parameters with a leading
member dimension as they are. One that looks at a whole tensor (LAMB, Muon, Adafactor)
would mix the members, so it gets one instance for each member, on views that share the
ensemble's memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Memberwise"]

ELEMENTWISE = frozenset(
    getattr(torch.optim, name)
    for name in (
        "ASGD",
        "Adadelta",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    )
)


class Memberwise:
    """Drives a foreign optimizer over an ensemble as if each member were trained alone.

    Args:
        optimizer: a ``torch.optim.Optimizer`` class whose step needs no closure.
        params: tensors of shape ``[members, ...]``.
        members: size of the ensemble.
        max_grad_norm: clip each member's gradient to this global norm before the step.
        **kwargs: for the optimizer.

    Raises:
        TypeError: the optimizer's ``step`` needs a closure, or does not take ``kwargs``.
    """

    curvature_due = False
    graph_due = False

    def __init__(
        self,
        optimizer: type[Optimizer],
        params: Iterable[Tensor],
        *,
        members: int,
        max_grad_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise TypeError(f"{optimizer.__name__}.step needs a closure, which is not supported")
        self.params = list(params)
        self.members = members
        self.max_grad_norm = max_grad_norm
        self.gradient_equivalents = 0
        self._views: list[list[Tensor]] = []
        if optimizer in ELEMENTWISE:
            self.optimizers = [optimizer(self.params, **kwargs)]
        else:
            self._views = [[p.detach()[i] for p in self.params] for i in range(members)]
            self.optimizers = [optimizer(views, **kwargs) for views in self._views]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All groups of all instances."""
        return [g for o in self.optimizers for g in o.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    def backward(self, loss: Tensor) -> None:
        """Gradient of each member's loss into its parameters."""
        loss.sum().backward()

    def step(self) -> None:
        """One update of every member."""
        if self.max_grad_norm is not None:
            self._clip(self.max_grad_norm)
        for i, views in enumerate(self._views):
            for view, p in zip(views, self.params, strict=True):
                view.grad = None if p.grad is None else p.grad[i]
        for optimizer in self.optimizers:
            optimizer.step()
        self.gradient_equivalents += 1

    def _clip(self, limit: float) -> None:
        grads = [p.grad for p in self.params if p.grad is not None]
        norms = [torch.linalg.vector_norm(g.reshape(self.members, -1), dim=1) for g in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        factor = (limit / (norm + 1e-6)).clamp_max(1.0)
        for g in grads:
            g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))

    def statistics(self) -> dict[str, Tensor]:
        """Nothing is known of a foreign optimizer's insides."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of every instance."""
        states = [o.state_dict() for o in self.optimizers]
        return {"optimizers": states, "gradient_equivalents": self.gradient_equivalents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.gradient_equivalents = state_dict["gradient_equivalents"]
