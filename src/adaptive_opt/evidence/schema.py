"""Schema of ``verdict.json``, the record of the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adaptive_opt.errors import StudyError

__all__ = [
    "CLOCKS",
    "METRICS",
    "SCHEMA_VERSION",
    "ArmVerdict",
    "Bound",
    "BreakEven",
    "Clock",
    "Final",
    "Metric",
    "Price",
    "Speedup",
    "Step",
    "TaskVerdict",
    "Verdict",
    "Word",
    "read_verdict",
]

SCHEMA_VERSION = 2

Word = Literal["faster", "slower", "equivalent", "undecided", "failed"]
Clock = Literal["iteration", "gradient_equivalents", "device_seconds"]
Metric = Literal["train_loss", "valid_loss"]
Bound = Literal["", "<", "≤", ">", "≥"]
Probability = Annotated[float, Field(ge=0, le=1)]

CLOCKS: tuple[Clock, ...] = ("iteration", "gradient_equivalents", "device_seconds")
METRICS: tuple[Metric, ...] = ("train_loss", "valid_loss")


class _Record(BaseModel):
    """Base class: unknown fields are refused; NaN and infinity are written as null."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Speedup(_Record):
    """How many times less training one arm needs than another for the same loss, on one clock."""

    metric: Metric
    clock: Clock
    verdict: Word
    ratio: float = Field(description="geometric mean over searches and seeds; faster if above 1")
    low: float | None = Field(description="lower end of the confidence interval; null: none")
    high: float | None = Field(description="upper end of the confidence interval; null: none")
    bound: Bound = Field(
        description="< or >: most runs are censored (only this bound is known); ≤ or ≥: some runs; "
        "empty: none, or runs on both sides"
    )
    p_different: Probability = Field(
        description="p-value of Welch's t test, Holm-corrected over the arms"
    )
    p_equivalent: Probability = Field(
        description="p-value of two one-sided tests, corrected likewise"
    )


class Final(_Record):
    """Final loss or accuracy of the runs of full length."""

    metric: str = Field(description="train_loss, valid_loss or valid_accuracy")
    mean: float = Field(description="over searches and seeds; the geometric mean for losses")
    low: float | None
    high: float | None


class Price(_Record):
    """Seconds per step, from a calibration in which all arms of the task take turns."""

    step: float = Field(description="mean over an update period")
    plain: float = Field(description="step without a curvature refresh")
    refresh: float = Field(description="additional cost of a curvature refresh")
    ratio: float = Field(description="step, relative to the reference")
    low: float = Field(description="lower end of the interval of ratio")
    high: float = Field(description="upper end of the interval of ratio")


class ArmVerdict(_Record):
    """One arm compared with the reference of its task."""

    arm: str
    label: str
    kind: str
    failed: str = Field(description="why the arm has no run; empty if it has")
    runs: int = Field(description="number of runs that were planned")
    stuck: int = Field(description="runs that are missing or not better than a constant prediction")
    searches: int
    failed_searches: list[str] = Field(description="reason for each failed search")
    bounded: int = Field(
        description="censored runs: only a bound on their speed is known (train_loss)"
    )
    spread_of_searches: float | None = Field(
        description="as a factor: exp of the standard deviation of log speeds"
    )
    spread_of_seeds: float | None = Field(description="the same, among the seeds of a search")
    at_bound: list[str] = Field(
        description="hyperparameters whose best value lies at a bound of its space"
    )
    speedups: list[Speedup]
    final: list[Final]
    price: Price | None = Field(description="null without a calibration")

    def speedup(self, clock: str = "iteration", metric: str = "train_loss") -> Speedup | None:
        """Speed-up by a clock and a metric; None if it was not computed."""
        found = (s for s in self.speedups if (s.clock, s.metric) == (clock, metric))
        return next(found, None)


class Step(_Record):
    """One rung of the ladder compared with the next, by training loss and iterations."""

    parent: str
    upper: str = Field(description="the arm with more information; the verdict is about this arm")
    lower: str
    part: str = Field(description="the information that only the upper arm has")
    question: str
    result: Speedup


class BreakEven(_Record):
    """Update period k from which an arm is faster in seconds: t(k) = plain + refresh / k."""

    arm: str
    label: str
    update_period: int = Field(description="update period of the runs")
    period: float | None = Field(description="break-even period; null: there is none")
    low: float | None = Field(description="computed with the upper end of the speed-up; null: none")
    high: float | None = Field(
        description="computed with the lower end of the speed-up; null: none"
    )


class TaskVerdict(_Record):
    """Verdict on one task."""

    task: str
    label: str
    seeds: int
    searches: int
    iterations: int = Field(description="full training length T")
    lengths: list[float] = Field(description="training lengths of the reference, as shares of T")
    reference: str | None = Field(description="the first-order arm with the best tuning result")
    levels: dict[str, float] = Field(description="loss of the reference at T, by metric")
    constant: float | None = Field(
        description="loss of the best constant prediction, on validation data if there are any"
    )
    missing: list[str] = Field(description="what is missing for a comparison")
    arms: list[ArmVerdict]
    ladder: list[Step]
    made_of: dict[str, str] = Field(
        description="by parent arm: which parts of its curvature have an effect"
    )
    break_even: list[BreakEven]

    def arm(self, name: str) -> ArmVerdict | None:
        """Verdict on an arm; None if the arm is not part of the task."""
        return next((a for a in self.arms if a.arm == name), None)


class Verdict(_Record):
    """Contents of ``verdict.json``."""

    schema_version: int = SCHEMA_VERSION
    scale: str
    question: str
    answer: str = Field(description="at most 60 words")
    settings: dict[str, Any] = Field(description="the parameters analysis.verdict")
    tasks: list[TaskVerdict]
    provenance: dict[str, Any] = Field(description="versions, device, seeds, configurations")


def read_verdict(document: Mapping[str, Any]) -> Verdict:
    """Validate the contents of a ``verdict.json``.

    Raises:
        StudyError: it has another schema version or does not match the schema.
    """
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StudyError(
            f"verdict.json has schema version {version}, but this version reads {SCHEMA_VERSION}; "
            "write it again with the command that wrote it (kedro run)"
        )
    try:
        return Verdict(**document)
    except ValidationError as error:
        raise StudyError(
            f"verdict.json does not match its schema: {error.errors()[0]['msg']}"
        ) from error
