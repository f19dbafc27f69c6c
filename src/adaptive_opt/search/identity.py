"""Which study a search is; torch is not needed to tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptive_opt.engine.provenance import code_digest
from adaptive_opt.parameters import (
    TaskTuningParameters,
    configuration,
    configuration_digest,
    resolve_arm,
    task_parameters,
    training_parameters,
    with_values,
)

from .spaces import Space

__all__ = ["middle_of", "study_name", "study_seed", "trial_identity"]

OF_A_TRIAL = ("objective", "epochs", "seeds", "horizon")
OF_A_SEARCH = ("sampler", "startup", "pruner", "epochs", "min_epochs")


def middle_of(space: Space) -> dict[str, float]:
    """A configuration in the middle of a space, for what depends on none in particular."""
    return {n: d.decode(sum(d.bounds) / 2) for n, d in space.items()}


def trial_identity(
    task: str,
    arm: str,
    data: str,
    parameters: dict[str, Any],
    plan: TaskTuningParameters,
    space: Space,
) -> dict[str, Any]:
    """Everything but the configuration that a trial's value depends on.

    Args:
        task, arm: names.
        data: digest of what the task learns.
        parameters: the sections ``tasks``, ``arms`` and ``training``.
        plan: of the task's searches.
        space: what is searched.
    """
    middle = middle_of(space)
    arms = with_values(parameters["arms"], task, arm, middle)
    fixed = configuration(task, arm, {**parameters, "arms": arms})
    settings = training_parameters(arm, parameters["training"])
    optimizer = resolve_arm(arm, arms[task], settings)["optimizer"]
    left_out = {*middle, "seeds"} | ({"epochs"} if plan.horizon == "trial" else set())
    timed = plan.objective == "time_to_target"
    return {
        "data": data,
        **{k: v for k, v in fixed.items() if k not in left_out},
        **{f"trial_{name}": getattr(plan, name) for name in OF_A_TRIAL},
        "target": task_parameters(task, parameters["tasks"]).target_loss if timed else None,
        "code": code_digest(optimizer),
    }


def study_seed(seed: int, study: int) -> int:
    """Seed of the draws of one of the searches for an arm.

    Example:
        >>> study_seed(7, 0), study_seed(7, 1) != study_seed(8, 0)
        (7, True)
    """
    return seed + 1_000_003 * study


def study_name(
    scale: str,
    task: str,
    arm: str,
    depends_on: Mapping[str, Any],
    space: Space,
    plan: Any,
    seed: int,
) -> str:
    """Of a study: another space or objective makes another study.

    Args:
        scale, task, arm: names.
        depends_on: see :func:`trial_identity`.
        space: what is searched.
        plan: what has the attributes :data:`OF_A_SEARCH`.
        seed: of the draws.
    """
    digest = configuration_digest(
        {
            **depends_on,
            "space": space.describe(),
            "search": [getattr(plan, name) for name in OF_A_SEARCH],
            "seed": seed,
        }
    )
    return f"{scale}.{task}.{arm}.{digest[:12]}"
