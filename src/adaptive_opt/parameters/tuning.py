"""Schema of the parameters ``tuning``, and access to the results of searches."""

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
        low, high: bounds of the hyperparameter.
        scale: sampling is uniform in x (``linear``), log x (``log``) or log(1 − x)
            (``log_complement``).
    """

    low: float
    high: float
    scale: Literal["linear", "log", "log_complement"] = "log"

    @model_validator(mode="after")
    def _check_bounds(self) -> DimensionParameters:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low ({self.low:g}) must be above 0 on a log scale")
        if self.scale == "log_complement" and self.high >= 1:
            raise ValueError(f"high ({self.high:g}) must be below 1 on a log scale of 1 − value")
        return self


class TaskTuningParameters(Strict):
    """``tuning.tasks.<task>``: search settings of every arm on a task.

    Attributes:
        sampler: ``random``, ``tpe`` (tree-structured Parzen estimator) or ``gp`` (Gaussian
            process).
        pruner: ``none``, or ``hyperband`` (networks only): stops poor trials early.
        objective: ``time_to_target``, ``train_loss`` or ``valid_loss``.
        budget: budget of a search. The unit is the cost of one trial of full length with a
            first-order method.
        epochs: length of a trial.
        min_epochs: epochs between two decisions of Hyperband; ``epochs`` is a multiple of it.
        seeds: runs of a trial.
        batch: number of trials trained together as one ensemble; 1 with a pruner.
        startup: number of trials sampled at random first.
        horizon: length of the learning rate schedule: ``trial``, or ``run``: a trial is then the
            beginning of a full run.
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
    def _check_min_epochs(self) -> TaskTuningParameters:
        if self.pruner == "hyperband" and self.min_epochs > self.epochs:
            raise ValueError(
                f"min_epochs ({self.min_epochs}) must be at most epochs ({self.epochs})"
            )
        if self.pruner == "hyperband" and abs(self.reports * self.min_epochs - self.epochs) > 1e-9:
            raise ValueError(
                f"epochs ({self.epochs}) must be a multiple of min_epochs ({self.min_epochs}) "
                "with pruner: hyperband"
            )
        return self

    @property
    def reports(self) -> int:
        """Number of Hyperband's decisions on a trial of full length."""
        return round(self.epochs / self.min_epochs)


Space = dict[str, DimensionParameters]


class TuningParameters(Strict):
    """``tuning``: hyperparameter search.

    Attributes:
        source: ``search``, or ``published``: use the configurations under ``arms`` unchanged.
        space: which of ``spaces`` to search.
        seed: seed of the searches.
        studies: number of independent searches for an arm, each with the whole budget and its
            own random streams. Training with seed s uses the result of search s mod ``studies``.
        widen: how often to widen a space and search again if the best value is within 2 % of a
            bound.
        heartbeat_seconds: seconds between two heartbeats of a worker. A worker that misses six
            is considered dead, and its trial is repeated.
        retries: how often a trial is repeated at most.
        tasks: search settings by task.
        spaces: ranges of hyperparameters, by name of the space, task, and arm or kind of arm.
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
    """Return the hyperparameters of an arm's optimizer; None if it cannot be imported."""
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
    """Return the search space of an arm on a task; empty if there is none.

    It is the arm's own space, else that of the arm it is tuned as, else that of its kind
    restricted to hyperparameters of its optimizer.

    Args:
        task, arm: names.
        tuning: the parameters ``tuning``.
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
    """Return the parameters ``arms`` with some values of an arm on a task replaced."""
    own = arms[task]
    given = own.get(arm)
    if given is None:
        given = own.get(get_arm(arm).tuned_as or "") or {}
    return {**arms, task: {**own, arm: {**given, **values}}}


def studies_of(best: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Return the configuration found by each search for an arm; None for a failed search.

    Args:
        best: record of the searches, see ``adaptive_opt.search.arm.search_arm``.

    Raises:
        StudyError: an earlier version wrote the record.
    """
    if "studies" not in best:
        raise StudyError(
            f"{best.get('task')}, {best.get('arm')}: the search record is from an earlier version; "
            f"search again with kedro run --pipelines=tuning --tags={best.get('arm')}"
        )
    return [study["values"] if study["found"] else None for study in best["studies"]]


def values_of_seed(best: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Return the configuration for training with a seed.

    It is the result of search ``seed`` mod the number of searches, or of the best search if that
    one failed.
    """
    found = studies_of(best)
    values = found[seed % len(found)]
    return dict(best["values"] if values is None else values)
