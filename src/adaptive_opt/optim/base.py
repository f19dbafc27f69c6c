"""Base class of the optimizers: ensembles, gradient clipping, gradient computation."""

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
"""Gradient-equivalents of one Hessian-vector product: a backward pass through the gradient's graph,
which has twice the operations of the loss's
(Pearlmutter, *Fast Exact Multiplication by the Hessian*, 1994)."""

UNSUPPORTED = {
    "capturable": "the step count is kept on the host, so a CUDA graph cannot update it",
    "differentiable": "parameters and state are updated in place, outside of autograd",
    "fused": "there is no fused kernel; foreach=True, the default, uses multi-tensor kernels",
}
"""Unsupported options of torch's optimizers, with the reason."""

MAX_CHUNK_ELEMENTS = 2**18
"""Most elements of parameters to update together on a CPU, so that they stay in the cache."""


class EnsembleOptimizer(SavedOptimizer):
    """Base class of optimizers for one model, or for an ensemble of independent models.

    With ``members``, every parameter has shape ``[members, ...]``. The loss given to
    :meth:`backward` and any hyperparameter may then have shape ``[members]``. Norms are computed
    for each member. The members are separate runs that share their kernels.

    Args:
        params: parameters or parameter groups, as for any torch optimizer.
        defaults: hyperparameters and their default values.
        members: ensemble size; None (default): a single model.
        max_grad_norm: clip the gradient to this global norm before the step; default: no clipping.
        foreach: use multi-tensor kernels; default: True.
        maximize: maximize the loss instead of minimizing it.
        capturable, differentiable, fused: options of torch's optimizers; not supported.

    Raises:
        ValueError: a hyperparameter is out of range, an option is not supported, or a shape
            does not fit ``members``.
        TypeError: a parameter is complex.
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
        self._backward_calls = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check the shapes and hyperparameters of a parameter group, and add it."""
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
                raise TypeError(
                    "complex parameters are not supported; pass torch.view_as_real(parameter)"
                )
        self._move_hyperparameters(group)

    def _move_hyperparameters(self, group: dict[str, Any]) -> None:
        """Move a group's tensor hyperparameters to the device and dtype of its parameters."""
        like = group["params"][0]
        for name in self.hyperparameters:
            value = group[name]
            if isinstance(value, tuple | list):
                group[name] = tuple(self._to_parameter_device(name, v, like) for v in value)
            else:
                group[name] = self._to_parameter_device(name, value, like)

    def _to_parameter_device(self, name: str, value: Any, like: Tensor) -> Any:
        """Check a hyperparameter's shape and move it; once, because a copy synchronises."""
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
        """Raise ValueError if a hyperparameter is out of range."""

    @property
    def gradient_equivalents(self) -> float:
        """Cost so far: the number of gradients, plus two for each Hessian-vector product.

        Work on a share of the batch counts as that share. A step without a call of
        :meth:`backward` counts as one gradient.
        """
        return self.gradient_count + self.curvature_cost

    def _count_products(self, number: int, share: float = 1.0) -> None:
        """Count Hessian-vector products on a share of the batch."""
        self.hvp_count += number
        self.curvature_cost += HESSIAN_VECTOR_PRODUCT_COST * number * share

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of ``loss`` into ``.grad``; call it instead of loss.backward().

        Args:
            loss: a scalar, or of shape ``[members]``: one loss for each member.

        Raises:
            ValueError: the loss has another shape.
        """
        self._summed_loss(loss).backward()
        self._backward_calls += 1

    def _summed_loss(self, loss: Tensor) -> Tensor:
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
        """Update every parameter that has a gradient, without synchronising with the device.

        Args:
            closure: evaluates the model, calls :meth:`backward` and returns the loss.

        Returns:
            The loss of the closure; None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = self._call_closure(closure)
        elif not self.state and not self._backward_calls and self._is_initialization_step():
            self._create_state()
            return None
        self._before_step()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                grads = _gradients(params)
                if group["maximize"]:
                    grads = [-g for g in grads]
                prepared = self._prepare(group, params, grads)
                for part in _cache_sized_slices(params):
                    fresh = None if prepared is None else prepared[part]
                    self._step_group(group, params[part], grads[part], fresh)
            group["step"] += 1
        self.gradient_count += max(1, self._backward_calls)
        self._clear_step_state()
        return loss

    def _call_closure(self, closure: Callable[[], float]) -> float:
        return closure()

    def _gradient_norm(self) -> Tensor | None:
        """Norm of all gradients; None if there is none."""
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        return self._norm(_gradients(params)) if params else None

    def _before_step(self) -> None:
        """Clip the gradients by their norm over all groups, as clip_grad_norm_ does."""
        limit = self.param_groups[0]["max_grad_norm"]
        if limit is None:
            return
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        if params:
            grads = _gradients(params)
            self.ops.mul_(grads, self._expand(self._clip_factor(grads, limit), grads))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and the curvature estimates that belong to them."""
        super().zero_grad(set_to_none)
        self._clear_step_state()

    def _clear_step_state(self) -> None:
        """Clear what is kept only until the next step."""
        self._backward_calls = 0

    def _prepare(self, group: dict[str, Any], params: Tensors, grads: Tensors) -> Tensors | None:
        """Compute what a step needs from all parameters of a group; one tensor for each."""
        del group, params, grads
        return None

    def _step_group(
        self, group: dict[str, Any], params: Tensors, grads: Tensors, prepared: Tensors | None
    ) -> None:
        """Update some parameters of a group; ``prepared`` is their part of :meth:`_prepare`.

        ``grads`` are clipped, and negated with ``maximize``.
        """
        raise NotImplementedError

    def evaluation(self) -> AbstractContextManager[None]:
        """Context for evaluating the model during training; does nothing here."""
        return nullcontext()

    def finish(self) -> None:
        """Called at the end of training; does nothing here."""

    def denominators(self) -> dict[Tensor, Tensor]:
        """Divisor of the smoothed gradient for each parameter; empty if there is none."""
        return {}

    def statistics(self) -> dict[str, Tensor]:
        """Statistics of the last step; each is 0-dim, or ``[members]``."""
        return {}

    def _factor(self, value: Any, tensors: Sequence[Tensor]) -> Factor:
        """A hyperparameter as a factor for the list operations."""
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
        if self.members is None:  # not flattened: a sharded tensor may have no flat view
            norm = torch.linalg.vector_norm(tensor)
        else:
            norm = torch.linalg.vector_norm(tensor.reshape(self.members, -1), dim=1)
        return norm

    def _clip_factor(self, grads: Sequence[Tensor], limit: float) -> Tensor:
        return (limit / (self._norm(grads) + 1e-6)).clamp_max(1.0)

    def __getstate__(self) -> dict[str, Any]:
        extra = {name: getattr(self, name) for name in ("members", "ops", "_backward_calls")}
        return {**super().__getstate__(), **extra}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            self._move_hyperparameters(group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a ``state_dict``, also one of an earlier version."""
        super().load_state_dict(state_dict)
        self._clear_step_state()


def _cache_sized_slices(params: Tensors) -> Iterator[slice]:
    """Slices of parameters to update together.

    On a GPU one slice holds all parameters, for the multi-tensor kernels. On a CPU every
    operation loops over the tensors, which is faster if they stay in the cache.
    """
    if not params[0].is_cpu:
        yield slice(None)
        return
    start = elements = 0
    for i, p in enumerate(params):
        if elements and elements + p.numel() > MAX_CHUNK_ELEMENTS:
            yield slice(start, i)
            start, elements = i, 0
        elements += p.numel()
    yield slice(start, len(params))


def _gradients(params: Sequence[Tensor]) -> Tensors:
    grads = [p.grad for p in params if p.grad is not None]
    check_dense(grads)
    return grads


def check_dense(grads: Iterable[Tensor]) -> None:
    """Check that all gradients are dense and real.

    Raises:
        TypeError: a gradient is sparse or complex.
    """
    for g in grads:
        if g.is_sparse or g.is_complex():
            kind = "sparse" if g.is_sparse else "complex"
            raise TypeError(
                f"{kind} gradients are not supported; use dense ones (nn.Embedding with "
                "sparse=False), or another optimizer for these parameters"
            )


def values(value: Any) -> list[float]:
    """The entries of a hyperparameter as numbers; a tensor on a GPU synchronises."""
    return value.detach().flatten().tolist() if isinstance(value, Tensor) else [float(value)]


def check_range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raise a ValueError that names the hyperparameter unless ``low ≤ value < high``."""
    for x in values(value):
        if not low <= x < high:
            bound = f"at least {low:g}" + ("" if math.isinf(high) else f" and below {high:g}")
            raise ValueError(f"{name} must be {bound}, got {x:g}")


def check_betas(betas: Any) -> None:
    """Raise a ValueError unless ``betas`` is a pair of numbers in [0, 1)."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        check_range(name, beta, 0, 1)
