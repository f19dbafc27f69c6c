"""Adapter that lets any ``torch.optim.Optimizer`` train an ensemble.

Most of torch's optimizers work elementwise, so one instance can update parameters with a leading
member dimension. Others compute on whole tensors (LAMB, Muon, Adafactor) and would mix the
members. They get one instance for each member, on views of the ensemble's memory.
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


ELEMENTWISE_BY_NAME = frozenset(
    {("pytorch_optimizer", "AdaHessian"), ("pytorch_optimizer", "ScheduleFreeAdamW")}
)
"""Elementwise optimizers of other packages, by name, so that these need not be installed."""

SECOND_DERIVATIVE_COST = 2
"""Gradient-equivalents of one more pass through the gradient's graph (see :mod:`.base`)."""


class Memberwise:
    """Apply a third-party optimizer to an ensemble as if each member were trained alone.

    If the optimizer's ``step`` requires a closure, it gets one. If it has ``train()`` and
    ``eval()``, they are called around evaluations.

    Args:
        optimizer: a ``torch.optim.Optimizer`` class.
        params: tensors of shape ``[members, ...]``.
        members: ensemble size.
        max_grad_norm: clip each member's gradient to this global norm; default: no clipping.
        create_graph: give the optimizer gradients that it can differentiate.
        groups: options of the parameter groups ``hidden`` and ``others``; default: one group.
        hidden: for each parameter, whether it belongs to the group ``hidden``; default: all do.
        **kwargs: arguments of the optimizer.

    Raises:
        TypeError: the optimizer does not accept ``kwargs``, or needs the gradient's graph
            but computes on whole tensors.
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
        self._backward_passes = 0
        package = optimizer.__module__.split(".")[0]
        elementwise = optimizer in ELEMENTWISE
        elementwise |= (package, optimizer.__name__) in ELEMENTWISE_BY_NAME
        if create_graph and not elementwise:
            raise TypeError(
                f"{optimizer.__name__} computes on whole tensors, so it cannot be given the graph "
                "of an ensemble's gradient; set create_graph=False"
            )
        self._views: list[list[Tensor]] = []
        if not elementwise or self.needs_closure:
            self._views = [[p.detach()[i] for p in self.params] for i in range(members)]
        if create_graph and self.params[0].requires_grad:
            self.params[0].register_hook(self._count_pass)
        self.optimizers = [
            optimizer(_parameter_groups(tensors, groups, hidden), **kwargs)
            for tensors in self._views or [self.params]
        ]
        self._set_modes("train")

    def _count_pass(self, gradient: Tensor) -> None:
        """Count a backward pass that reaches the parameters."""
        del gradient
        self._backward_passes += 1

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of all instances."""
        return [g for o in self.optimizers for g in o.param_groups]

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for p in self.params:
            p.grad = None

    def backward(self, loss: Tensor) -> None:
        """Set ``.grad`` to the gradient of the members' losses; ``loss`` is ``[members]``."""
        grads = torch.autograd.grad(loss.sum(), self.params, create_graph=self.graph_due)
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def step(self, again: Callable[[], tuple[Tensor, Sequence[Tensor]]] | None = None) -> None:
        """Update every member.

        Args:
            again: returns the losses ``[members]`` and gradients at the current parameters;
                needed only if ``needs_closure``.

        Raises:
            TypeError: the optimizer needs a closure, and ``again`` is None.
        """
        if self.max_grad_norm is not None:
            self._clip(self.max_grad_norm)
        self._set_member_gradients()
        evaluations = 0

        def closure(member: int) -> float:
            nonlocal evaluations
            if again is None:
                raise TypeError("this optimizer needs a closure; pass `again` to step")
            evaluations += 1
            losses, grads = again()
            for p, g in zip(self.params, grads, strict=True):
                p.grad = g.detach()
            if self.max_grad_norm is not None:
                self._clip(self.max_grad_norm)
            self._set_member_gradients()
            return float(losses[member])

        for i, optimizer in enumerate(self.optimizers):
            if self.needs_closure:
                optimizer.step(partial(closure, i))
            else:
                optimizer.step()
        self.gradient_equivalents += evaluations / self.members if self.needs_closure else 1
        if self.graph_due:
            self.gradient_equivalents += SECOND_DERIVATIVE_COST * max(0, self._backward_passes - 1)
            self._backward_passes = 0
            for p in self.params:  # free the graph
                p.grad = None if p.grad is None else p.grad.detach()

    def _set_member_gradients(self) -> None:
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
                if self.graph_due:  # inside the graph, so that the curvature is scaled too
                    with torch.enable_grad():
                        p.grad = p.grad * wide
                else:
                    p.grad.mul_(wide)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Context with the parameters to evaluate (``eval()`` of schedule-free optimizers)."""
        if not self._has_modes:
            yield
            return
        kept = [p.detach().clone() for p in self.params]
        self._set_modes("eval")
        try:
            yield
        finally:
            self._set_modes("train")
            with torch.no_grad():  # train() undoes eval() only up to rounding
                for p, k in zip(self.params, kept, strict=True):
                    p.copy_(k)

    def finish(self) -> None:
        """Switch to the parameters to evaluate, at the end of training."""
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
        """``√v̂ + ε`` for each parameter, if the optimizer is torch's Adam or AdamW; else empty."""
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
        """``second_moment_norm``: the norm of v, ``[members]``.

        Empty for optimizers whose state has no tensor ``exp_avg_sq``, torch's name for v.
        """
        norms = []
        for optimizer in self.optimizers:
            seen = [s.get("exp_avg_sq") for s in optimizer.state.values()]
            if not seen or not all(isinstance(v, Tensor) for v in seen):
                return {}  # the norm over a part of the parameters would not be comparable
            rows = 1 if self._views else self.members
            each = [torch.linalg.vector_norm(v.reshape(rows, -1), dim=1) for v in seen]
            norms.append(torch.linalg.vector_norm(torch.stack(each), dim=0))
        return {"second_moment_norm": torch.cat(norms)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every instance, and the cost so far."""
        states = [o.state_dict() for o in self.optimizers]
        return {"optimizers": states, "gradient_equivalents": self.gradient_equivalents}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.gradient_equivalents = state_dict["gradient_equivalents"]


def _parameter_groups(
    tensors: Sequence[Tensor],
    groups: dict[str, dict[str, Any]] | None,
    hidden: Sequence[bool] | None,
) -> list[Any]:
    """Split tensors into the groups ``hidden`` and ``others``, or leave them in one group."""
    if groups is None:
        return list(tensors)
    inside = [True] * len(tensors) if hidden is None else hidden
    members = {"hidden": [t for t, h in zip(tensors, inside, strict=True) if h]}
    members["others"] = [t for t, h in zip(tensors, inside, strict=True) if not h]
    return [{"params": p, **groups.get(name, {})} for name, p in members.items() if p]
