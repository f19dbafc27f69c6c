"""The record of the verdict, ``verdict.json``: what is in it and what it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "SCHEMA_VERSION",
    "ArmVerdict",
    "BreakEven",
    "LadderVerdict",
    "Result",
    "TaskVerdict",
    "Verdict",
]

SCHEMA_VERSION = 1

Word = Literal["faster", "slower", "equivalent", "undecided"]
Clock = Literal["iteration", "gradient_equivalents", "device_seconds"]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    """Nothing unknown, infinities as null."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Result(_Record):
    """One arm against another, on one target and clock."""

    metric: str = Field(description="train_loss or valid_loss")
    target: str = Field(description="name of the target, a key of the task's targets")
    level: float = Field(description="the loss to come down to")
    clock: Clock
    headline: bool = Field(description="whether the answer is drawn from this target")
    verdict: Word = Field(description="of the arm against the other")
    pairs: int = Field(description="seeds that both arms have")
    arrived: int = Field(description="of the arm's seeds")
    arrived_other: int
    both_never: int = Field(description="pairs of which neither arrives")
    ratio: float = Field(description="geometric mean of restricted times, below 1: faster")
    low: float | None = Field(description="of its confidence interval; null: no bound")
    high: float | None
    p_different: Probability = Field(description="permutation test, Holm-corrected over arms")
    p_equivalent: Probability = Field(description="two one-sided tests, likewise")
    p_log_rank: Probability = Field(description="unpaired, uncorrected")
    restricted_mean: float = Field(description="time up to the horizon, by the clock")
    restricted_mean_other: float
    horizon: float = Field(description="until when both arms were observed")
    seeds_to_decide: int | None = Field(description="where undecided; null: > 1,000 or unknown")


class ArmVerdict(Result):
    """An arm against the best first-order arm."""

    arm: str
    label: str
    versus: str = Field(description="the first-order arm that is fastest to this target")


class LadderVerdict(Result):
    """A rung of the information ladder against the next."""

    parent: str
    upper: str = Field(description="the arm that knows more; the verdict is on it")
    lower: str
    part: str = Field(description="what only the upper one knows")
    question: str


class BreakEven(_Record):
    """Seconds of an arm, t = first + curvature / k, and the k from which it wins on them."""

    arm: str
    label: str
    update_period: int
    first: float = Field(description="seconds of an iteration without curvature")
    curvature: float = Field(description="seconds of one refresh of the curvature")
    measured_on: str = Field(description="the arm whose iterations have no curvature")
    period: float | None = Field(description="null: no period wins, or the arm never arrives")


class TaskVerdict(_Record):
    """Everything about one task."""

    task: str
    label: str
    seeds: int
    baselines: dict[str, str] = Field(description="by metric, the arm that set the targets")
    targets: dict[str, dict[str, float]] = Field(description="by metric: levels by name")
    arms: list[ArmVerdict]
    ladder: list[LadderVerdict]
    made_of: dict[str, str] = Field(description="by parent arm, a sentence")
    break_even: list[BreakEven]


class Verdict(_Record):
    """The whole record."""

    schema_version: int = SCHEMA_VERSION
    scale: str
    question: str
    answer: list[str] = Field(description="three sentences")
    settings: dict[str, Any] = Field(description="the parameters analysis.verdict")
    tasks: list[TaskVerdict]
    scores: dict[Clock, dict[str, float]] = Field(description="integrated performance profiles")
    scores_caveat: str
    provenance: dict[str, Any] = Field(description="versions, device, seeds, configurations")
