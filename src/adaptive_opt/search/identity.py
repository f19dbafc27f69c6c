"""Names of Optuna studies, derived from everything that trials depend on. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptive_opt.engine.provenance import code_digest
from adaptive_opt.parameters import (
    TaskTuningParameters,
    TuningParameters,
    configuration,
    configuration_digest,
    resolve_arm,
    task_parameters,
    training_parameters,
    with_values,
)

from .spaces import Dimension, Space

__all__ = ["Searches", "midpoint", "study_name", "study_seed", "trial_identity"]

TRIAL_FIELDS = ("objective", "epochs", "seeds", "horizon")
SEARCH_FIELDS = ("sampler", "startup", "pruner", "epochs", "min_epochs")


def midpoint(space: Space) -> dict[str, float]:
    """Return a valid configuration, for results that are the same for all configurations."""
    return {n: d.decode(sum(d.bounds) / 2) for n, d in space.items()}


def trial_identity(
    task: str,
    arm: str,
    data: str,
    parameters: dict[str, Any],
    plan: TaskTuningParameters,
    space: Space,
) -> dict[str, Any]:
    """Return everything that a trial's value depends on, except its configuration.

    Args:
        task, arm: names.
        data: digest of the task's data or function.
        parameters: the sections ``tasks``, ``arms`` and ``training``.
        plan: the task's section of ``tuning.tasks``.
        space: the search space.
    """
    searched = midpoint(space)
    arms = with_values(parameters["arms"], task, arm, searched)
    fixed = configuration(task, arm, {**parameters, "arms": arms})
    settings = training_parameters(arm, parameters["training"])
    optimizer = resolve_arm(arm, arms[task], settings)["optimizer"]
    excluded = {*searched, "seeds"} | ({"epochs"} if plan.horizon == "trial" else set())
    has_target = plan.objective == "time_to_target"
    return {
        "data": data,
        **{k: v for k, v in fixed.items() if k not in excluded},
        **{f"trial_{name}": getattr(plan, name) for name in TRIAL_FIELDS},
        "target": task_parameters(task, parameters["tasks"]).target_loss if has_target else None,
        "code": code_digest(optimizer),
    }


def study_seed(seed: int, study: int) -> int:
    """Return the sampler's seed for search number ``study``.

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
    """Return the name of a study. A change of any argument gives another name.

    Args:
        scale, task, arm: names.
        depends_on: see :func:`trial_identity`.
        space: the search space.
        plan: an object with the attributes ``sampler``, ``startup``, ``pruner``, ``epochs`` and
            ``min_epochs``.
        seed: the sampler's seed.
    """
    digest = configuration_digest(
        {
            **depends_on,
            "space": space.describe(),
            "search": [getattr(plan, name) for name in SEARCH_FIELDS],
            "seed": seed,
        }
    )
    return f"{scale}.{task}.{arm}.{digest[:12]}"


class Searches:
    """The searches for an arm on a task, as the parameters describe them.

    Args:
        task, arm: names.
        data: digest of the task's data or function.
        parameters: the scale, and the sections ``tasks``, ``arms`` and ``training``.
        tuning: the section ``tuning``.
        space: the search space.
    """

    def __init__(
        self,
        task: str,
        arm: str,
        data: str,
        parameters: dict[str, Any],
        tuning: TuningParameters,
        space: Space,
    ) -> None:
        self.plan = tuning.tasks[task]
        self.identity = trial_identity(task, arm, data, parameters, self.plan, space)
        self._cell = parameters["scale"], task, arm
        self._tuning, self._space = tuning, space

    def name(self, number: int, space: Space | None = None) -> str:
        """Return the name of a study, optionally with a widened space."""
        seed = study_seed(self._tuning.seed, number)
        return study_name(*self._cell, self.identity, space or self._space, self.plan, seed)

    def names(self) -> list[str]:
        """Return the names of all studies, before any space is widened."""
        return [self.name(number) for number in range(self._tuning.studies)]

    def made(self, best: Mapping[str, Any]) -> bool:
        """Return whether a record comes from these searches, some with a widened space."""
        studies = best.get("studies", [])
        for number, study in enumerate(studies):
            space = None
            if widened := study.get("widened", 0):
                space = Space({n: Dimension(*d) for n, d in study["space"].items()})
            if study.get("study") != self.name(number, space) or widened > self._tuning.widen:
                return False
        return len(studies) == self._tuning.studies
