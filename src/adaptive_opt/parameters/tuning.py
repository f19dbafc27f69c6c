"""``tuning``: what is searched, how, and for how much."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from adaptive_opt.errors import StudyError
from adaptive_opt.study import Arm, get_arm

from .arms import arm_schema
from .fields import Count, Positive, Strict, Whole

__all__ = [
    "DimensionParameters",
    "TaskTuningParameters",
    "TuningParameters",
    "accepted_names",
    "search_space",
    "studies_of",
    "values_of_seed",
    "with_values",
]


class DimensionParameters(Strict):
    """Range of one hyperparameter.

    Attributes:
        low, high: bounds of its values.
        scale: draws are uniform in the value (``linear``), in its logarithm (``log``), or in
            the logarithm of one minus it (``log_complement``).
    """

    low: float
    high: float
    scale: Literal["linear", "log", "log_complement"] = "log"

    @model_validator(mode="after")
    def _is_a_range(self) -> DimensionParameters:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0 on a log scale")
        if self.scale == "log_complement" and self.high >= 1:
            raise ValueError(f"high ({self.high:g}) must be below 1 on a log scale of 1 − value")
        return self


class TaskTuningParameters(Strict):
    """``tuning.tasks.<task>``: the search for every arm of a task.

    Attributes:
        sampler: ``random``, ``tpe`` (tree-structured Parzen estimator) or ``gp`` (Gaussian
            process).
        pruner: ``hyperband`` stops poor trials early; for networks.
        objective: ``time_to_target``, ``train_loss`` or ``valid_loss``.
        budget: of each arm, in gradient-equivalents, the unit being one trial of full length
            by a first-order method.
        epochs: length of a trial.
        min_epochs: epochs between two looks of Hyperband, which stops no trial before the
            first; ``epochs`` is a multiple of it.
        seeds: runs a trial.
        batch: trials trained at a time, as one ensemble; 1 where trials are pruned.
        startup: trials drawn at random before the sampler has its say.
        horizon: the learning rate's schedule spans the ``trial`` or the whole ``run``, of
            which the trial then is the beginning.
    """

    sampler: Literal["random", "tpe", "gp"] = "tpe"
    pruner: Literal["none", "hyperband"] = "none"
    objective: Literal["time_to_target", "train_loss", "valid_loss"]
    budget: Count
    epochs: Positive
    min_epochs: Positive = 1
    seeds: Count = 1
    batch: Count = 1
    startup: Count = 10
    horizon: Literal["trial", "run"] = "trial"

    @model_validator(mode="after")
    def _room_for_pruning(self) -> TaskTuningParameters:
        if self.pruner == "hyperband" and self.min_epochs > self.epochs:
            raise ValueError(
                f"min_epochs ({self.min_epochs}) must be at most epochs ({self.epochs})"
            )
        if self.pruner == "hyperband" and abs(self.reports * self.min_epochs - self.epochs) > 1e-9:
            raise ValueError(
                f"epochs ({self.epochs}) must be a multiple of min_epochs ({self.min_epochs}) "
                "where trials are pruned"
            )
        return self

    @property
    def reports(self) -> int:
        """Looks of Hyperband at a trial of full length."""
        return round(self.epochs / self.min_epochs)


Space = dict[str, DimensionParameters]


class TuningParameters(Strict):
    """``tuning``: where the configurations come from.

    Attributes:
        source: ``search``, or ``published``: those under ``arms`` as they are.
        space: which of ``spaces`` is searched.
        seed: of the searches.
        studies: number of independent searches for an arm, each with the whole budget and random
            streams of its own; the run of seed s takes what search s mod their number found.
        widen: how often a space is widened, and searched anew, where the best value lies
            within 2 % of a bound.
        heartbeat_seconds: between two signs of life of a worker; one that gives none for six
            times as long is taken for dead, and its trial is tried again.
        retries: how often, at most.
        tasks: the search for each task.
        spaces: by name, task, then arm or kind of arm, the hyperparameters and their ranges.
    """

    source: Literal["search", "published"]
    space: str
    seed: Whole = 0
    studies: Count = 3
    widen: Whole = 0
    heartbeat_seconds: Annotated[int, Field(ge=1, strict=True)] = 10
    retries: Whole = 2
    tasks: dict[str, TaskTuningParameters]
    spaces: dict[str, dict[str, dict[str, Space]]]


def accepted_names(arm: Arm, given: dict[str, Any]) -> list[str] | None:
    """The hyperparameters that an arm's optimizer takes; None if it cannot be imported."""
    schema = arm_schema(arm)
    if schema is not None:
        return list(schema.model_fields)
    from adaptive_opt.engine.optimizers import load_optimizer_class
    from adaptive_opt.errors import StudyError

    path = given.get("optimizer", arm.optimizer)
    try:
        names = list(inspect.signature(load_optimizer_class(str(path))).parameters)[1:]
    except StudyError:
        return None
    return names + ["beta1", "beta2"] * ("betas" in names and "beta1" not in names)


def search_space(task: str, arm: str, tuning: TuningParameters, arms: dict[str, Any]) -> Space:
    """What is searched for an arm on a task; empty: nothing.

    A space of the arm's own, else that of the arm it is made from, else that of its kind
    without what its optimizer does not take.

    Args:
        task, arm: names.
        tuning: the parameters.
        arms: the task's section of the parameters ``arms``.
    """
    spaces = tuning.spaces.get(tuning.space, {}).get(task, {})
    if arm in spaces:
        return spaces[arm]
    row = get_arm(arm)
    if row.tuned_as is not None:
        return search_space(task, row.tuned_as, tuning, arms)
    names = accepted_names(row, arms.get(arm) or {}) or []
    return {n: d for n, d in spaces.get(row.kind, {}).items() if n in names}


def with_values(
    arms: dict[str, Any], task: str, arm: str, values: dict[str, Any]
) -> dict[str, Any]:
    """The parameters ``arms`` with an arm's values on a task replaced by found ones."""
    own = arms[task]
    given = own.get(arm)
    if given is None:
        given = own.get(get_arm(arm).tuned_as or "") or {}
    return {**arms, task: {**own, arm: {**given, **values}}}


def studies_of(best: dict[str, Any]) -> list[dict[str, Any] | None]:
    """What each search for an arm found, None for one that found nothing.

    Args:
        best: the record of the searches.

    Raises:
        StudyError: the record was written by an earlier version.
    """
    if "studies" not in best:
        raise StudyError(
            f"{best.get('task')}, {best.get('arm')}: searched by an earlier version; search again: "
            f" kedro run --pipelines=tuning --tags={best.get('arm')}"
        )
    return [study["values"] if study["found"] else None for study in best["studies"]]


def values_of_seed(best: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The values that the run of a seed takes; those of the best search if its own found none."""
    found = studies_of(best)
    values = found[seed % len(found)]
    return dict(best["values"] if values is None else values)
