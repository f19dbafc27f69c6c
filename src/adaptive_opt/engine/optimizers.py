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

__all__ = ["build_optimizer", "load_optimizer_class"]


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
    diagonal_fn: Callable[[], Sequence[Tensor]] | None = None,
) -> EnsembleOptimizer | Memberwise:
    """An optimizer for parameters of shape ``[members, ...]``.

    Args:
        path: dotted import path of the class.
        hyperparameters: keyword arguments; for this package's own ``beta1`` and ``beta2``
            stand for ``betas``.
        params: the ensemble's parameters.
        probe_seeds: one for each member.
        max_grad_norm: clip each member's gradient (and curvature) to this global norm.
        diagonal_fn: the task's exact Hessian diagonal, used by ``curvature="exact"``.

    Raises:
        StudyError: the class does not take these hyperparameters.
    """
    cls = load_optimizer_class(path)
    members = len(probe_seeds)
    kwargs = dict(hyperparameters)
    try:
        if not issubclass(cls, EnsembleOptimizer):
            return Memberwise(cls, params, members=members, max_grad_norm=max_grad_norm, **kwargs)
        if "beta2" in kwargs:
            kwargs["betas"] = (kwargs.pop("beta1"), kwargs.pop("beta2"))
        if issubclass(cls, SecondOrderOptimizer):
            kwargs["seed"] = list(probe_seeds)
            if kwargs.get("curvature") == "exact":
                kwargs["diagonal_fn"] = diagonal_fn
        return cls(params, members=members, max_grad_norm=max_grad_norm, **kwargs)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{path}: {error}") from error
