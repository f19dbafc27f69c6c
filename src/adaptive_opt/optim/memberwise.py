"""Any ``torch.optim.Optimizer``, on an ensemble.

Most of torch's optimizers work elementwise and may be given parameters with a leading
member dimension as they are. One that looks at a whole tensor (LAMB, Muon, Adafactor)
would mix the members, so it gets one instance for each member, on views that share the
ensemble's memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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


ELSEWHERE_ELEMENTWISE = frozenset(
    {("pytorch_optimizer", "AdaHessian"), ("pytorch_optimizer", "ScheduleFreeAdamW")}
)
"""Likewise of other packages, named so that they need not be there."""

SECOND_DERIVATIVE_COST = 2
"""Gradient-equivalents of another pass through the gradient's graph (see :mod:`.base`)."""


class Memberwise:
    """Drives a foreign optimizer over an ensemble as if each member were trained alone.

    What it needs beside gradients it gets: a closure if its ``step`` requires one, ``train()``
    and ``eval()`` around looks at the parameters if it has them, and on request the graph of
    the gradient and parameter groups.

    Args:
        optimizer: a ``torch.optim.Optimizer`` class.
        params: tensors of shape ``[members, ...]``.
        members: size of the ensemble.
        max_grad_norm: clip each member's gradient to this global norm before the step.
        create_graph: whether the optimizer differentiates the gradients it is given.
        groups: options of the two parameter groups ``hidden`` and ``others``; None: one group.
        hidden: which parameters are in the former.
        **kwargs: for the optimizer.

    Raises:
        TypeError: the optimizer does not take ``kwargs``, or needs the graph of several
            members though it looks at whole tensors.
    """

    curvature_due = False

    def __init__(
        self,
        optimizer: type[Optimizer],
        params: Iterable[Tensor],
        *,
        members: int,
        max_grad_norm: float | None = None,
        create_graph: bool = False,
        groups: dict[str, dict[str, Any]] | None = None,
        hidden: Sequence[bool] | None = None,
        **kwargs: Any,
    ) -> None:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        self.needs_closure = closure is not None and closure.default is inspect.Parameter.empty
        self.graph_due = create_graph
        self.params = list(params)
        self.members = members
        self.max_grad_norm = max_grad_norm
        self.gradient_equivalents = 0.0
        self._passes = 0
        package = optimizer.__module__.split(".")[0]
        elementwise = optimizer in ELEMENTWISE
        elementwise |= (package, optimizer.__name__) in ELSEWHERE_ELEMENTWISE
        if create_graph and not elementwise:
            raise TypeError(f"{optimizer.__name__} cannot be given the graph of an ensemble")
        self._views: list[list[Tensor]] = []
        if not elementwise or self.needs_closure:
            self._views = [[p.detach()[i] for p in self.params] for i in range(members)]
        if create_graph and self.params[0].requires_grad:
            self.params[0].register_hook(self._count_pass)
        self.optimizers = [
            optimizer(_grouped(tensors, groups, hidden), **kwargs)
            for tensors in self._views or [self.params]
        ]
        self._set_modes("train")

    def _count_pass(self, gradient: Tensor) -> None:
        """A pass of differentiation has reached the parameters."""
        del gradient
        self._passes += 1

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
        grads = torch.autograd.grad(loss.sum(), self.params, create_graph=self.graph_due)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def step(self, again: Callable[[], tuple[Tensor, Sequence[Tensor]]] | None = None) -> None:
        """One update of every member.

        Args:
            again: for an optimizer that needs a closure: losses ``[members]`` and gradients
                where the parameters now are.
        """
        if self.max_grad_norm is not None:
            self._clip(self.max_grad_norm)
        self._share_gradients()
        evaluations = 0

        def closure(member: int) -> float:
            nonlocal evaluations
            if again is None:
                raise TypeError("this optimizer evaluates the loss by itself, and was not told how")
            evaluations += 1
            losses, grads = again()
            for p, g in zip(self.params, grads, strict=True):
                p.grad = g.detach()
            if self.max_grad_norm is not None:
                self._clip(self.max_grad_norm)
            self._share_gradients()
            return float(losses[member])

        for i, optimizer in enumerate(self.optimizers):
            if self.needs_closure:
                optimizer.step(partial(closure, i))
            else:
                optimizer.step()
        self.gradient_equivalents += evaluations / self.members if self.needs_closure else 1
        if self.graph_due:
            self.gradient_equivalents += SECOND_DERIVATIVE_COST * max(0, self._passes - 1)
            self._passes = 0
            for p in self.params:  # lets go of the graph
                p.grad = None if p.grad is None else p.grad.detach()

    def _share_gradients(self) -> None:
        for i, views in enumerate(self._views):
            for view, p in zip(views, self.params, strict=True):
                view.grad = None if p.grad is None else p.grad[i]

    @torch.no_grad()
    def _clip(self, limit: float) -> None:
        grads = [p.grad for p in self.params if p.grad is not None]
        norms = [torch.linalg.vector_norm(g.reshape(self.members, -1), dim=1) for g in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        factor = (limit / (norm + 1e-6)).clamp_max(1.0)
        for p in self.params:
            if p.grad is not None:
                wide = factor.view(-1, *[1] * (p.ndim - 1))
                if self.graph_due:  # the curvature is to be scaled alike
                    with torch.enable_grad():
                        p.grad = p.grad * wide
                else:
                    p.grad.mul_(wide)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Within it the parameters are those that the optimizer wants to be judged by."""
        if not self._has_modes:
            yield
            return
        kept = [p.detach().clone() for p in self.params]
        self._set_modes("eval")
        try:
            yield
        finally:
            self._set_modes("train")
            with torch.no_grad():  # train() undoes eval() but for rounding
                for p, k in zip(self.params, kept, strict=True):
                    p.copy_(k)

    def finish(self) -> None:
        """Leave the parameters as the optimizer wants them to be judged; training is over."""
        self._set_modes("eval")

    @property
    def _has_modes(self) -> bool:
        return all(callable(getattr(self.optimizers[0], m, None)) for m in ("train", "eval"))

    def _set_modes(self, mode: str) -> None:
        if self._has_modes:
            for optimizer in self.optimizers:
                getattr(optimizer, mode)()

    @torch.no_grad()
    def denominators(self) -> dict[Tensor, Tensor]:
        """``√v̂ + ε`` of each parameter, of torch's Adam and AdamW; of others nothing is known."""
        found: dict[Tensor, Tensor] = {}
        for optimizer in self.optimizers:
            if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
                return {}
            for group in optimizer.param_groups:
                for p in group["params"]:
                    state = optimizer.state.get(p, {})
                    if state:
                        v = state.get("max_exp_avg_sq", state["exp_avg_sq"])
                        corrected = v / (1 - group["betas"][1] ** state["step"].to(v.device))
                        found[p] = corrected.sqrt_().add_(group["eps"])
        return found

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """``second_moment_norm``: the norm of v, ``[members]``, of Adam's many relatives.

        They are known by what they call it, ``exp_avg_sq``; of the insides of other foreign
        optimizers nothing is known.
        """
        norms = []
        for optimizer in self.optimizers:
            seen = [s.get("exp_avg_sq") for s in optimizer.state.values()]
            if not seen or not all(isinstance(v, Tensor) for v in seen):
                return {}  # of a part of the parameters it could not be compared
            rows = 1 if self._views else self.members
            each = [torch.linalg.vector_norm(v.reshape(rows, -1), dim=1) for v in seen]
            norms.append(torch.linalg.vector_norm(torch.stack(each), dim=0))
        return {"second_moment_norm": torch.cat(norms)}

    def state_dict(self) -> dict[str, Any]:
        """State of every instance."""
        states = [o.state_dict() for o in self.optimizers]
        return {"optimizers": states, "gradient_equivalents": self.gradient_equivalents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.gradient_equivalents = state_dict["gradient_equivalents"]


def _grouped(
    tensors: Sequence[Tensor],
    groups: dict[str, dict[str, Any]] | None,
    hidden: Sequence[bool] | None,
) -> list[Any]:
    """The tensors, in the groups ``hidden`` and ``others`` if those have options."""
    if groups is None:
        return list(tensors)
    inside = [True] * len(tensors) if hidden is None else hidden
    members = {"hidden": [t for t, h in zip(tensors, inside, strict=True) if h]}
    members["others"] = [t for t, h in zip(tensors, inside, strict=True) if not h]
    return [{"params": p, **groups.get(name, {})} for name, p in members.items() if p]
