"""From an arm's dotted path and hyperparameters to an optimizer for an ensemble."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from adaptive_opt.errors import StudyError
from adaptive_opt.optim import EnsembleOptimizer, Memberwise, SecondOrderOptimizer
from adaptive_opt.optim.base import HESSIAN_VECTOR_PRODUCT_COST
from adaptive_opt.optim.sources import HESSIAN_SOURCES

__all__ = ["build_optimizer", "cost_of_run", "load_optimizer_class", "takes_members"]


def load_optimizer_class(path: str) -> type[Optimizer]:
    """The optimizer class at a dotted import path.

    Raises:
        StudyError: nothing there, or something that is no ``torch.optim.Optimizer``.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise StudyError(f"optimizer {path!r} cannot be imported: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, Optimizer)):
        raise StudyError(f"optimizer {path!r} is not a torch.optim.Optimizer")
    return found


def build_optimizer(
    path: str,
    hyperparameters: dict[str, Any],
    params: Sequence[Tensor],
    *,
    probe_seeds: Sequence[int],
    max_grad_norm: float | None = None,
    clip_curvature: bool = True,
    hidden: Sequence[bool] | None = None,
    diagonal_fn: Callable[[], Sequence[Tensor]] | None = None,
) -> EnsembleOptimizer | Memberwise:
    """An optimizer for parameters of shape ``[members, ...]``.

    Args:
        path: dotted import path of the class.
        hyperparameters: keyword arguments; for this package's own ``beta1`` and ``beta2``
            stand for ``betas``, for others too if they take ``betas``; ``create_graph`` and
            ``groups`` say what a foreign one needs (:class:`adaptive_opt.optim.Memberwise`).
        params: the ensemble's parameters.
        probe_seeds: one for each member.
        max_grad_norm: clip each member's gradient to this global norm.
        clip_curvature: whether curvature is scaled alike, by the optimizers of this package;
            with others it is.
        hidden: of each parameter, whether it is a matrix inside the network.
        diagonal_fn: the task's exact Hessian diagonal, used by ``curvature="exact"``.

    Raises:
        StudyError: the class does not take these hyperparameters.
    """
    cls = load_optimizer_class(path)
    members = len(probe_seeds)
    kwargs = dict(hyperparameters)
    try:
        if not issubclass(cls, EnsembleOptimizer):
            return Memberwise(
                cls,
                params,
                members=members,
                max_grad_norm=max_grad_norm,
                hidden=hidden,
                **_with_betas(cls, kwargs),
            )
        if "beta2" in kwargs:
            kwargs["betas"] = (kwargs.pop("beta1"), kwargs.pop("beta2"))
        if issubclass(cls, SecondOrderOptimizer):
            kwargs["seed"] = list(probe_seeds)
            kwargs["clip_curvature"] = clip_curvature
            if kwargs.get("curvature") == "exact":
                kwargs["diagonal_fn"] = diagonal_fn
        return cls(params, members=members, max_grad_norm=max_grad_norm, **kwargs)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{path}: {error}") from error


def _with_betas(cls: type[Optimizer], kwargs: dict[str, Any]) -> dict[str, Any]:
    """``beta1`` and ``beta2`` put into the ``betas`` of a class that takes those."""
    accepted = inspect.signature(cls).parameters
    given: dict[str, Any] = {n: kwargs[n] for n in ("beta1", "beta2") if n in kwargs}
    if not given or "betas" not in accepted or "beta1" in accepted:
        return kwargs
    betas = list(kwargs.get("betas", accepted["betas"].default))
    for i, name in enumerate(("beta1", "beta2")):
        betas[i] = given.get(name, betas[i])
    return {**{k: v for k, v in kwargs.items() if k not in given}, "betas": tuple(betas)}


def takes_members(path: str) -> bool:
    """Whether the optimizer's hyperparameters may differ between the members of an ensemble."""
    return issubclass(load_optimizer_class(path), EnsembleOptimizer)


def cost_of_run(
    path: str, hyperparameters: dict[str, Any], iterations: int, share: float = 1.0
) -> float:
    """Gradient-equivalents of one member over a run, known before it is made.

    A gradient an iteration. At every k-th a Hessian-vector product where curvature comes from
    the Hessian, or a gradient for the Gauss–Newton estimate. The exact diagonal is an oracle that
    nobody pays for, and is charged as the estimate that it stands for. What a closure evaluates
    beside is not known before.

    Args:
        path: dotted import path of the class.
        hyperparameters: see :func:`build_optimizer`.
        iterations: length of the run.
        share: part of the batch that curvature is computed on.
    """
    cls = load_optimizer_class(path)
    source = (
        hyperparameters.get("curvature", "estimate")
        if issubclass(cls, SecondOrderOptimizer)
        else "estimate"
        if hyperparameters.get("create_graph")
        else None
    )
    if source == "gauss_newton":
        refresh = share
    elif source in HESSIAN_SOURCES:
        whole = HESSIAN_VECTOR_PRODUCT_COST
        refresh = whole if share == 1 else share * (1 + whole)
    else:
        return float(iterations)
    return iterations + refresh * -(-iterations // int(hyperparameters.get("update_period", 1)))
