"""What every optimizer of this package has: members, clipping, a backward of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

import torch
from torch import Tensor

from ._lists import Factor, Foreach, ListOps, Loop, Tensors
from .state import COUNTERS, SavedOptimizer

__all__ = ["EnsembleOptimizer"]

HESSIAN_VECTOR_PRODUCT_COST = 2
"""Gradient-equivalents of one Hessian-vector product by reverse over reverse: the backward
pass through the gradient's graph runs over twice the operations of the gradient's own
(Pearlmutter, *Fast Exact Multiplication by the Hessian*, 1994)."""

UNSUPPORTED = {
    "capturable": "steps are counted on the host, where a CUDA graph does not see the count",
    "differentiable": "parameters and state are updated in place, outside of autograd",
    "fused": "there is no fused kernel; foreach=True, the default, uses multi-tensor kernels",
}
"""Options of torch's optimizers, and why there are none here."""

CACHED_ELEMENTS = 2**18
"""Of a tensor and the few others of its shape that an update reads: some megabytes."""


class EnsembleOptimizer(SavedOptimizer):
    """A torch optimizer whose parameters may carry a leading member dimension.

    With ``members`` given, every parameter has shape ``[members, ...]``, the loss handed to
    :meth:`backward` may have shape ``[members]``, any hyperparameter may be a tensor of
    shape ``[members]``, and every norm is taken for each member by itself: the members are
    separate runs that share their kernels.

    Args:
        params: parameters or parameter groups, as for any torch optimizer.
        defaults: hyperparameters and their default values.
        members: size of the ensemble, or None for ordinary training.
        max_grad_norm: clip the gradient to this global norm before the step.
        foreach: use multi-tensor kernels; default yes.
        maximize: maximize the loss; the same as to minimize its negative.
        capturable, differentiable, fused: options of torch's optimizers that are not supported.

    Raises:
        ValueError: a hyperparameter out of range, or an option that is not supported.
    """

    hyperparameters: tuple[str, ...] = ()
    curvature_due: bool = False

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        members: int | None = None,
        max_grad_norm: float | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be above 0, got {max_grad_norm}")
        self.members = members
        progress = {"step": 0, "gradient_count": 0, "hvp_count": 0, "curvature_cost": 0.0}
        options = {
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        own = {"max_grad_norm": max_grad_norm, **options, **progress, **dict.fromkeys(self.extras)}
        super().__init__(params, {**defaults, **own})
        self.ops: ListOps = Loop() if foreach is False else Foreach()
        self._backwards = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its shapes and hyperparameters are checked here."""
        super().add_param_group(param_group)
        group, first = self.param_groups[-1], self.param_groups[0]
        group.update({name: first[name] for name in ("step", *COUNTERS)})
        if group["max_grad_norm"] != first["max_grad_norm"]:
            raise ValueError("all parameter groups must share one max_grad_norm")
        for name, reason in UNSUPPORTED.items():
            if group[name]:
                raise ValueError(f"{name}=True is not supported: {reason}")
        self._check_group(group)
        if self.members is not None:
            for p in group["params"]:
                if p.ndim == 0 or p.shape[0] != self.members:
                    raise ValueError(
                        f"an ensemble of {self.members} needs parameters of shape "
                        f"[{self.members}, ...], got {list(p.shape)}"
                    )
        for p in group["params"]:
            if p.is_complex():
                raise TypeError("complex parameters are not supported; give their real view")
        self._place(group)

    def _place(self, group: dict[str, Any]) -> None:
        """Put the hyperparameters of a group that are tensors where its parameters are."""
        like = group["params"][0]
        for name in self.hyperparameters:
            value = group[name]
            if isinstance(value, tuple | list):
                group[name] = tuple(self._on_device(name, v, like) for v in value)
            else:
                group[name] = self._on_device(name, value, like)

    def _on_device(self, name: str, value: Any, like: Tensor) -> Any:
        """A hyperparameter where the parameters are: not at every step, which would wait."""
        if not isinstance(value, Tensor):
            return value
        if self.members is None and value.numel() == 1:
            value = value.reshape(())
        if value.ndim and value.shape != (self.members,):
            allowed = "it must have one element"
            if self.members is not None:
                allowed = f"an ensemble of {self.members} needs a number or [{self.members}]"
            raise ValueError(f"{name} has shape {list(value.shape)}; {allowed}")
        return value.to(device=like.device, dtype=like.dtype)

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a hyperparameter out of range."""

    @property
    def gradient_equivalents(self) -> float:
        """Cost so far: gradients taken, plus two for each Hessian-vector product.

        Work over a part of the batch counts as that part of a gradient. A step without a
        :meth:`backward` of ours before it counts as one gradient.
        """
        return self.gradient_count + self.curvature_cost

    def _count_products(self, number: int, share: float = 1.0) -> None:
        """Note Hessian-vector products over a share of the batch."""
        self.hvp_count += number
        self.curvature_cost += HESSIAN_VECTOR_PRODUCT_COST * number * share

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss`` into the parameters; instead of loss.backward().

        Args:
            loss: a scalar, or of shape ``[members]``: one loss for each member.
        """
        self._total(loss).backward()
        self._backwards += 1

    def _total(self, loss: Tensor) -> Tensor:
        if loss.numel() != 1 and loss.shape != (self.members,):
            expected = "a scalar" if self.members is None else f"a scalar or [{self.members}]"
            raise ValueError(f"the loss must be {expected}, got shape {list(loss.shape)}")
        return loss.sum()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; no host synchronisation.

        Args:
            closure: evaluates the model anew, calls :meth:`backward`, returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = self._evaluate(closure)
        elif not self.state and not self._backwards and self._initializes():
            self._initialize()
            return None
        self._before_step()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                grads = _gradients(params)
                if group["maximize"]:
                    grads = [-g for g in grads]
                prepared = self._prepare(group, params, grads)
                for part in _chunks(params):
                    fresh = None if prepared is None else prepared[part]
                    self._step_group(group, params[part], grads[part], fresh)
            group["step"] += 1
        self.gradient_count += max(1, self._backwards)
        self._forget()
        return loss

    def _evaluate(self, closure: Callable[[], float]) -> float:
        """Call the closure of a step."""
        return closure()

    def _gradient_norm(self) -> Tensor | None:
        """Norm of all gradients; None if there is none."""
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        return self._norm(_gradients(params)) if params else None

    def _before_step(self) -> None:
        """Clip, over all groups together as torch.nn.utils.clip_grad_norm_ does."""
        limit = self.param_groups[0]["max_grad_norm"]
        if limit is None:
            return
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        if params:
            grads = _gradients(params)
            self.ops.mul_(grads, self._expand(self._clip_factor(grads, limit), grads))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and the curvature that came with them."""
        super().zero_grad(set_to_none)
        self._forget()

    def _forget(self) -> None:
        """Drop what lives for one step only."""
        self._backwards = 0

    def _prepare(self, group: dict[str, Any], params: Tensors, grads: Tensors) -> Tensors | None:
        """What a group's step needs of all its parameters together, one tensor for each."""
        del group, params, grads
        return None

    def _step_group(
        self, group: dict[str, Any], params: Tensors, grads: Tensors, prepared: Tensors | None
    ) -> None:
        """Update some parameters of a group; ``prepared`` is their part of :meth:`_prepare`."""
        raise NotImplementedError

    def evaluation(self) -> AbstractContextManager[None]:
        """Around a look at the parameters in the middle of training: they are as they are."""
        return nullcontext()

    def finish(self) -> None:
        """Training is over; nothing to do."""

    def denominators(self) -> dict[Tensor, Tensor]:
        """By what the smoothed gradient is divided, for each parameter; empty: by nothing."""
        return {}

    def statistics(self) -> dict[str, Tensor]:
        """Quantities of the last step, computed when asked for; 0-dim or ``[members]``."""
        return {}

    def _factor(self, value: Any, tensors: Sequence[Tensor]) -> Factor:
        """A hyperparameter as the list operations take it."""
        return value if not isinstance(value, Tensor) else self._expand(value, tensors)

    def _expand(self, value: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        value = value.to(tensors[0].dtype)
        if value.ndim == 0:
            return [value] * len(tensors)
        return [value.view(-1, *[1] * (t.ndim - 1)) for t in tensors]

    def _norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Euclidean norm over all tensors: 0-dim, or ``[members]``."""
        if self.members is None:
            norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
            return norm
        parts = torch.stack([self._tensor_norm(t) for t in tensors])
        norms: Tensor = torch.linalg.vector_norm(parts, dim=0)
        return norms

    def _tensor_norm(self, tensor: Tensor) -> Tensor:
        """Euclidean norm of one tensor: 0-dim, or ``[members]``."""
        norm: Tensor
        if self.members is None:  # as it is: a sharded tensor may have no flat view
            norm = torch.linalg.vector_norm(tensor)
        else:
            norm = torch.linalg.vector_norm(tensor.reshape(self.members, -1), dim=1)
        return norm

    def _clip_factor(self, grads: Sequence[Tensor], limit: float) -> Tensor:
        return (limit / (self._norm(grads) + 1e-6)).clamp_max(1.0)

    def __getstate__(self) -> dict[str, Any]:
        extra = {name: getattr(self, name) for name in ("members", "ops", "_backwards")}
        return {**super().__getstate__(), **extra}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._place(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of ``state_dict``; also reads the states of earlier versions."""
        super().load_state_dict(state_dict)
        self._forget()


def _chunks(params: Tensors) -> Iterator[slice]:
    """Runs of parameters to update at a time.

    On a GPU all of them, for its multi-tensor kernels. On a CPU every operation is a loop
    over the tensors anyway, and goes faster over as many as the cache holds from one
    operation to the next.
    """
    if not params[0].is_cpu:
        yield slice(None)
        return
    start = elements = 0
    for i, p in enumerate(params):
        if elements and elements + p.numel() > CACHED_ELEMENTS:
            yield slice(start, i)
            start, elements = i, 0
        elements += p.numel()
    yield slice(start, len(params))


def _gradients(params: Sequence[Tensor]) -> Tensors:
    grads = [p.grad for p in params if p.grad is not None]
    check_dense(grads)
    return grads


def check_dense(grads: Iterable[Tensor]) -> None:
    """Refuse gradients that have no elementwise update here.

    Raises:
        TypeError: one is sparse or complex.
    """
    for g in grads:
        if g.is_sparse or g.is_complex():
            kind = "sparse" if g.is_sparse else "complex"
            raise TypeError(
                f"{kind} gradients are not supported; use dense ones (nn.Embedding with "
                "sparse=False), or another optimizer for these parameters"
            )


def values(value: Any) -> list[float]:
    """A hyperparameter's entries, for range checks at construction."""
    return value.detach().flatten().tolist() if isinstance(value, Tensor) else [float(value)]


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """``low ≤ value < high``, else a ValueError that names the hyperparameter."""
    for x in values(value):
        if not low <= x < high:
            bound = f"at least {low:g}" + ("" if math.isinf(high) else f" and below {high:g}")
            raise ValueError(f"{name} must be {bound}, got {x:g}")


def check_betas(betas: Any) -> None:
    """Two numbers in [0, 1), else a ValueError that names the one that is not."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        check_range(name, beta, 0, 1)
