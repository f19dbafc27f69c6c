"""Build an arm's optimizer for an ensemble from its import path and hyperparameters."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adaptive_opt.errors import StudyError
from adaptive_opt.optim import EnsembleOptimizer, Memberwise, SaddleFreeNewton, SecondOrderOptimizer
from adaptive_opt.optim.base import HESSIAN_VECTOR_PRODUCT_COST
from adaptive_opt.optim.curvature_estimate import CurvatureEstimation
from adaptive_opt.optim.sources import HESSIAN_SOURCES, SAMPLE_SOURCES

__all__ = ["build_optimizer", "cost_of_run", "load_optimizer_class", "takes_member_hyperparameters"]


def load_optimizer_class(path: str) -> type[Optimizer]:
    """Import an optimizer class from its dotted path.

    Raises:
        StudyError: the path cannot be imported, or is not a ``torch.optim.Optimizer``.
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
    matrix_fn: Callable[[str], Tensor] | None = None,
) -> EnsembleOptimizer | Memberwise:
    """Build an optimizer for parameters of shape ``[members, ...]``.

    Args:
        path: dotted import path of the class.
        hyperparameters: keyword arguments. ``beta1`` and ``beta2`` become ``betas``, for foreign
            classes only if they take ``betas``. Foreign classes may need ``create_graph`` and
            ``groups`` (:class:`adaptive_opt.optim.Memberwise`).
        params: the ensemble's parameters.
        probe_seeds: one per member.
        max_grad_norm: clip each member's gradient to this global norm; None: no clipping.
        clip_curvature: whether optimizers of this package scale the curvature by the same factor;
            others always do.
        hidden: for each parameter, whether it is a matrix other than embedding and output.
        diagonal_fn: returns the task's exact Hessian diagonal, for ``curvature="exact"``.
        matrix_fn: returns the task's exact matrix of a kind, ``hessian`` or ``gauss_newton``, for
            optimizers with a whole matrix.

    Raises:
        StudyError: the class cannot be imported or does not accept these hyperparameters.
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
                **_combine_betas(cls, kwargs),
            )
        if "beta2" in kwargs:
            kwargs["betas"] = (kwargs.pop("beta1"), kwargs.pop("beta2"))
        if issubclass(cls, SecondOrderOptimizer):
            kwargs["seed"] = list(probe_seeds)
            kwargs["clip_curvature"] = clip_curvature
            if kwargs.get("curvature") == "exact":
                kwargs["diagonal_fn"] = diagonal_fn
        if issubclass(cls, SaddleFreeNewton):
            kwargs["clip_curvature"] = clip_curvature
            if kwargs.get("structure") == "diagonal" and diagonal_fn is not None:
                kwargs["matrix_fn"] = partial(_joined, diagonal_fn)
            elif matrix_fn is not None:
                kwargs["matrix_fn"] = partial(matrix_fn, kwargs.get("matrix", "hessian"))
        return cls(params, members=members, max_grad_norm=max_grad_norm, **kwargs)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{path}: {error}") from error


def _joined(diagonal_fn: Callable[[], Sequence[Tensor]]) -> Tensor:
    """The diagonal of each member as one row, ``[members, P]``."""
    return torch.cat([d.flatten(1) for d in diagonal_fn()], dim=1)


def _combine_betas(cls: type[Optimizer], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Replace ``beta1`` and ``beta2`` by ``betas`` if the class takes those."""
    accepted = inspect.signature(cls).parameters
    given: dict[str, Any] = {n: kwargs[n] for n in ("beta1", "beta2") if n in kwargs}
    if not given or "betas" not in accepted or "beta1" in accepted:
        return kwargs
    betas = list(kwargs.get("betas", accepted["betas"].default))
    for i, name in enumerate(("beta1", "beta2")):
        betas[i] = given.get(name, betas[i])
    return {**{k: v for k, v in kwargs.items() if k not in given}, "betas": tuple(betas)}


def takes_member_hyperparameters(path: str) -> bool:
    """Whether members of an ensemble may have different hyperparameters."""
    return issubclass(load_optimizer_class(path), EnsembleOptimizer)


def cost_of_run(
    path: str, hyperparameters: dict[str, Any], iterations: int, share: float = 1.0
) -> float:
    """Gradient-equivalents of one member over a run, computed before training.

    Every iteration costs one gradient. Every k-th iteration adds a Hessian-vector product if
    curvature comes from the Hessian, times the number of probes, or a gradient for the
    Gauss–Newton estimate and the empirical Fisher diagonal. The exact diagonal and a whole matrix
    cost as much as the estimate that they replace: their arms show what the information is worth,
    and a closed form supplies it. Additional evaluations by a closure
    are unknown and not counted.

    Args:
        path: dotted import path of the class.
        hyperparameters: see :func:`build_optimizer`; k is ``update_period``.
        iterations: length of the run.
        share: fraction of the batch that curvature is computed on.
    """
    cls = load_optimizer_class(path)
    source = (
        hyperparameters.get("curvature", "estimate")
        if issubclass(cls, CurvatureEstimation)
        else "estimate"
        if hyperparameters.get("create_graph")
        else None
    )
    if source in SAMPLE_SOURCES:
        refresh = share
    elif source in HESSIAN_SOURCES:
        whole = HESSIAN_VECTOR_PRODUCT_COST * int(hyperparameters.get("probes", 1))
        refresh = whole if share == 1 else share * (1 + whole)
    else:
        return float(iterations)
    return iterations + refresh * -(-iterations // int(hyperparameters.get("update_period", 1)))
