"""The record of the verdict, ``verdict.json``: what is in it and what it means."""

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
    """Nothing unknown; numbers that are not finite as null."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Speedup(_Record):
    """How many times faster one arm has a loss than another, on one clock."""

    metric: Metric
    clock: Clock
    verdict: Word
    ratio: float = Field(description="geometric mean over searches and seeds; above 1: faster")
    low: float | None = Field(description="of its confidence interval; null: no lower bound")
    high: float | None = Field(description="null: no upper bound")
    bound: Bound = Field(
        description="< or >: of most runs only this bound is known; ≤ or ≥: of some; empty: of none"
    )
    p_different: Probability = Field(description="Welch's t, Holm-corrected over the arms")
    p_equivalent: Probability = Field(description="two one-sided tests, likewise")


class Final(_Record):
    """Quality at the end of the full length, whatever the speed."""

    metric: str = Field(description="train_loss, valid_loss or valid_accuracy")
    mean: float = Field(description="of losses the geometric mean over searches and seeds")
    low: float | None
    high: float | None


class Price(_Record):
    """Seconds of a step, measured side by side with the other arms (calibration)."""

    step: float = Field(description="mean over an update period")
    plain: float = Field(description="of a step without curvature")
    refresh: float = Field(description="what a refresh of the curvature adds")
    ratio: float = Field(description="step, as a multiple of the reference's")
    low: float
    high: float


class ArmVerdict(_Record):
    """An arm against the reference."""

    arm: str
    label: str
    kind: str
    failed: str = Field(description="why there is no run; empty: there are")
    runs: int = Field(description="that were to be trained")
    stuck: int = Field(description="runs that did not beat a constant prediction, or were not made")
    searches: int
    failed_searches: list[str] = Field(description="why, one for each that failed")
    bounded: int = Field(description="runs of whose speed only a bound is known (train_loss)")
    spread_of_searches: float | None = Field(description="as a factor, e^sd of log speeds")
    spread_of_seeds: float | None = Field(description="likewise, within a search")
    at_bound: list[str] = Field(description="hyperparameters found at a bound of their space")
    speedups: list[Speedup]
    final: list[Final]
    price: Price | None = Field(description="null: no calibration")

    def speedup(self, clock: str = "iteration", metric: str = "train_loss") -> Speedup | None:
        """The one by a clock and a metric, if there is one."""
        found = (s for s in self.speedups if (s.clock, s.metric) == (clock, metric))
        return next(found, None)


class Step(_Record):
    """A rung of the information ladder against the next, by training loss and iterations."""

    parent: str
    upper: str = Field(description="the arm that knows more; the verdict is on it")
    lower: str
    part: str = Field(description="what only the upper one knows")
    question: str
    result: Speedup


class BreakEven(_Record):
    """From which update period k an arm wins on seconds: t(k) = plain + refresh / k."""

    arm: str
    label: str
    update_period: int = Field(description="as trained")
    period: float | None = Field(description="null: no period wins")
    low: float | None = Field(description="with the upper end of the speed-up; null: none wins")
    high: float | None = Field(description="with the lower end; null: none wins")


class TaskVerdict(_Record):
    """Everything about one task."""

    task: str
    label: str
    seeds: int
    searches: int
    iterations: int = Field(description="of the full length T")
    lengths: list[float] = Field(description="shares of T that the reference is trained at")
    reference: str | None = Field(description="the first-order arm that tuning found best")
    levels: dict[str, float] = Field(description="by metric, the reference's loss at T")
    constant: float | None = Field(
        description="loss of the best constant prediction, on validation data where there are any"
    )
    missing: list[str] = Field(description="what a comparison would need and is not there")
    arms: list[ArmVerdict]
    ladder: list[Step]
    made_of: dict[str, str] = Field(description="by parent arm, a sentence")
    break_even: list[BreakEven]

    def arm(self, name: str) -> ArmVerdict | None:
        """What is said of an arm, if anything is."""
        return next((a for a in self.arms if a.arm == name), None)


class Verdict(_Record):
    """The whole record."""

    schema_version: int = SCHEMA_VERSION
    scale: str
    question: str
    answer: str = Field(description="at most 60 words")
    settings: dict[str, Any] = Field(description="the parameters analysis.verdict")
    tasks: list[TaskVerdict]
    provenance: dict[str, Any] = Field(description="versions, device, seeds, configurations")


def read_verdict(document: Mapping[str, Any]) -> Verdict:
    """The record from a ``verdict.json``.

    Raises:
        StudyError: it was written by another version, or is no verdict.
    """
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StudyError(
            f"this verdict.json has schema version {version}, and {SCHEMA_VERSION} is read here; "
            "make it again with the command that made it (kedro run)"
        )
    try:
        return Verdict(**document)
    except ValidationError as error:
        raise StudyError(f"this is no verdict.json: {error.errors()[0]['msg']}") from error
