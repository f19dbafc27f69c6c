"""Judge one task: compare every arm with the reference and every rung with the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.study import get_arm, get_task

from . import statistics
from .comparison import LossComparison, Shift, is_placebo
from .ladder import STEPS, made_of
from .prices import PriceRatio, break_even, price_of, price_ratios
from .schema import (
    CLOCKS,
    METRICS,
    ArmVerdict,
    BreakEven,
    Clock,
    Final,
    Metric,
    Price,
    Speedup,
    Step,
    TaskVerdict,
)
from .speedup import reference_curve

__all__ = ["Judge", "TaskData", "choose_reference"]


@dataclass(frozen=True)
class TaskData:
    """Results of one task, from which its verdict is computed.

    Attributes:
        task: name of the task.
        lengths: final losses at every length (``engine.lengths.COLUMNS``), by arm.
        bests: records of the searches, by arm.
        summaries: summaries of the runs, by arm.
        prices: seconds per step by arm and round (:mod:`.prices`); None without a calibration.
        seeds: number of runs per arm.
    """

    task: str
    lengths: Mapping[str, pd.DataFrame]
    bests: Mapping[str, Mapping[str, Any]]
    summaries: Mapping[str, Mapping[str, Any]]
    prices: pd.DataFrame | None
    seeds: int


def choose_reference(bests: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Choose the first-order arm with the best tuning result; no run is used.

    The best has the lowest median, over searches, of the objective of the best trial. Published
    configurations have no objective; among them Adam is chosen. Returns None without a first-order
    arm.

    Args:
        bests: records of the searches, by arm.

    Example:
        >>> found = {"found": True, "failed": "", "values": {}}
        >>> choose_reference({"sgdm": {"studies": [found | {"value": 2.0}]},
        ...                   "adam": {"studies": [found | {"value": 1.0}]}})
        'adam'
    """
    order = []
    for arm, best in bests.items():
        if not get_arm(arm).may_be_reference:
            continue
        values = [s.get("value", 0.0) if s["found"] else math.inf for s in best["studies"]]
        if math.isfinite(value := float(np.median(values))):
            order.append((value, arm != "adam", arm))
    return min(order)[2] if order else None


class Judge:
    """Compute the verdict on one task.

    Args:
        data: results of the task.
        settings: the parameters ``analysis.verdict``.
    """

    def __init__(self, data: TaskData, settings: Mapping[str, Any]) -> None:
        self.data, self.settings = data, settings
        self.reference = choose_reference(
            {a: b for a, b in data.bests.items() if a in data.lengths and len(data.lengths[a])}
        )
        constants: Mapping[str, float] = next(
            (b["constants"] for b in data.bests.values() if b.get("constants")), {}
        )
        kept = 1 - settings["constant_margin"]
        self.stuck_above = {metric: kept * loss for metric, loss in constants.items()}
        self.judged_by = "valid_loss" if "valid_loss" in constants else "train_loss"
        self.searches = max((len(b["studies"]) for b in data.bests.values()), default=1)
        self.constant = constants.get(self.judged_by)
        self.curves = {}
        if self.reference is not None:
            own = data.lengths[self.reference]
            found = {m: reference_curve(own, m) for m in METRICS}
            self.curves = {m: c for m, c in found.items() if c is not None}
        self.comparisons = {m: self._comparison(m) for m in self.curves}
        self.ratios: dict[str, PriceRatio] = {}
        if self.reference is not None and data.prices is not None:
            self.ratios = price_ratios(data.prices, self.reference)

    def _comparison(self, metric: Metric) -> LossComparison:
        return LossComparison(
            self.data.lengths,
            self.curves[metric],
            metric,
            studies={arm: len(self.data.bests[arm]["studies"]) for arm in self.data.lengths},
            seeds=self.data.seeds,
            stuck_above=self.stuck_above.get(metric, math.inf),
            settings=self.settings,
        )

    def verdict(self) -> TaskVerdict:
        """The verdict on every arm and on the ladder."""
        data = self.data
        full = [s["iterations"] for s in data.summaries.values() if s["iterations"]]
        own = data.lengths.get(self.reference or "")
        judged = [a for a in data.bests if not is_placebo(a) and a != self.reference]
        placebos = [a for a in data.bests if is_placebo(a)]
        against = {**self._against(judged), **self._against(placebos)}
        ladder = self._ladder()
        row = get_task(data.task)
        return TaskVerdict(
            task=data.task,
            label=row.label,
            seeds=data.seeds,
            searches=self.searches,
            iterations=max(full, default=0),
            lengths=[] if own is None else sorted({float(s) for s in own["share"]}),
            reference=self.reference,
            levels={m: math.exp(c.at(1.0)) for m, c in self.curves.items()},
            constant=self.constant,
            missing=self._missing(judged),
            arms=[self._arm(arm, against.get(arm, [])) for arm in data.bests],
            ladder=ladder,
            made_of=_ladder_sentences(ladder, against),
            break_even=self._break_even(against),
        )

    def _missing(self, judged: Sequence[str]) -> list[str]:
        missing = []
        if self.reference is None:
            missing.append(
                "neither SGDM nor Adam has a finished run, so there is nothing to compare with: "
                "add --tags=adam or run the whole task"
            )
        if not any(get_arm(a).kind == "second-order" for a in judged):
            missing.append("there is no second-order arm")
        return missing

    def _against(self, arms: Sequence[str]) -> dict[str, list[Speedup]]:
        """Compare arms with the reference, corrected for the number of these arms."""
        found: dict[str, list[Speedup]] = {arm: [] for arm in arms}
        for comparison in self.comparisons.values():
            for clock in CLOCKS:
                shifts = {arm: shift for arm in arms if (shift := self._shift(arm, clock))}
                pairs = [(arm, str(self.reference)) for arm in shifts]
                results = comparison.results(pairs, list(shifts.values()), clock)
                for arm, result in zip(shifts, results, strict=True):
                    found[arm].append(result)
        return found

    def _shift(self, arm: str, clock: Clock) -> Shift | None:
        """Change from iterations to a clock; None if the cost on that clock is unknown."""
        if clock == "iteration":
            return 0.0, 0.0, math.inf
        if clock == "gradient_equivalents":
            costs = [self._cost(a) for a in (str(self.reference), arm)]
            return None if None in costs else (math.log(costs[0] / costs[1]), 0.0, math.inf)  # type: ignore[operator]
        ratio = self.ratios.get(arm)
        return None if ratio is None else (-ratio.log, ratio.error, ratio.df)

    def _cost(self, arm: str) -> float | None:
        """Gradient-equivalents per iteration."""
        rows = self.data.lengths[arm]
        rows = rows[rows["share"] == 1]
        return (
            float((rows["gradient_equivalents"] / rows["iterations"]).iloc[0])
            if len(rows)
            else None
        )

    def _arm(self, arm: str, speedups: list[Speedup]) -> ArmVerdict:
        best, summary = self.data.bests[arm], self.data.summaries[arm]
        failed = summary.get("failed", "")
        comparison = self.comparisons.get("train_loss")
        speeds = comparison.speeds[arm] if comparison else None
        between, within = speeds.spread() if speeds else (math.nan, math.nan)
        if failed:
            speedups = [s.model_copy(update={"verdict": "failed"}) for s in speedups]
        row = get_arm(arm)
        return ArmVerdict(
            arm=arm,
            label=row.label,
            kind=row.kind,
            failed=failed,
            runs=self.data.seeds,
            stuck=self._stuck(arm),
            searches=len(best["studies"]),
            failed_searches=[s["failed"] for s in best["studies"] if s["failed"]],
            bounded=sum(speeds.bounded) if speeds else 0,
            spread_of_searches=None if math.isnan(between) else math.exp(between),
            spread_of_seeds=None if math.isnan(within) else math.exp(within),
            at_bound=sorted({n for s in best["studies"] for n in s["edges"]}),
            speedups=speedups,
            final=self._final(arm),
            price=self._price(arm),
        )

    def _stuck(self, arm: str) -> int:
        """Number of runs that are missing or do not beat a constant prediction by the margin."""
        rows = self.data.lengths[arm]
        rows = rows[rows["share"] == 1]
        missing = self.data.seeds - len(rows)
        if self.constant is None:
            return missing + int(rows["diverged"].sum())
        limit = self.stuck_above[self.judged_by]
        return missing + int((~(rows[self.judged_by] <= limit)).sum())

    def _final(self, arm: str) -> list[Final]:
        found = []
        for metric in ("train_loss", "valid_loss", "valid_accuracy"):
            groups = self._final_groups(metric)
            if arm not in groups:
                continue
            mean, low, high = statistics.mean_interval(groups[arm], self.settings["confidence"])
            if metric != "valid_accuracy":
                mean, low, high = (math.exp(v) if v < 700 else math.inf for v in (mean, low, high))
            ends = {"low": low, "high": high}
            found.append(
                Final(
                    metric=metric,
                    mean=mean,
                    **{k: v if math.isfinite(v) else None for k, v in ends.items()},
                )
            )
        return found

    @cache  # noqa: B019, keeps one object per task until the process ends
    def _final_groups(self, metric: str) -> dict[str, statistics.Group]:
        means = {}
        for arm, rows in self.data.lengths.items():
            full = rows[(rows["share"] == 1) & rows[metric].notna()]
            if full.empty:
                continue
            values = full[metric] if metric == "valid_accuracy" else np.log(full[metric])
            by_study = values.groupby(full["study"]).mean()
            means[arm] = (by_study if len(by_study) > 1 else values).to_numpy()
        return statistics.moderate(means)

    def _price(self, arm: str) -> Price | None:
        if self.data.prices is None or arm not in self.ratios:
            return None
        ratio = self.ratios[arm]
        low, high = ratio.interval(self.settings["confidence"])
        return Price(
            **price_of(self.data.prices, arm), ratio=math.exp(ratio.log), low=low, high=high
        )

    def _ladder(self) -> list[Step]:
        comparison = self.comparisons.get("train_loss")
        if comparison is None:
            return []
        ladder = []
        for parent in comparison.groups:
            both = {s: (f"{parent}{s.upper}", f"{parent}{s.lower}") for s in STEPS}
            steps = {s: pair for s, pair in both.items() if {*pair} <= {*comparison.groups}}
            shifts: list[Shift] = [(0.0, 0.0, math.inf)] * len(steps)
            results = comparison.results(list(steps.values()), shifts, "iteration")
            for (step, (upper, lower)), result in zip(steps.items(), results, strict=True):
                ladder.append(
                    Step(
                        parent=parent,
                        upper=upper,
                        lower=lower,
                        part=step.part,
                        question=step.question,
                        result=result,
                    )
                )
        return ladder

    def _break_even(self, against: Mapping[str, Sequence[Speedup]]) -> list[BreakEven]:
        if not self.ratios or self.data.prices is None:
            return []
        base = price_of(self.data.prices, str(self.reference))["step"]
        found = []
        for arm, speedups in against.items():
            own = next((s for s in speedups if s.clock == "iteration"), None)
            period = self.data.summaries[arm].get("configuration", {}).get("update_period")
            if own is None or period is None or arm not in self.ratios:
                continue
            if get_arm(arm).kind != "second-order":
                continue
            price = price_of(self.data.prices, arm)
            at, low, high = (
                None if ratio is None else break_even(ratio, base, price["plain"], price["refresh"])
                for ratio in (own.ratio, own.high, own.low)
            )
            found.append(
                BreakEven(
                    arm=arm,
                    label=get_arm(arm).label,
                    update_period=int(period),
                    period=at,
                    low=low,
                    high=high,
                )
            )
        return found


def _ladder_sentences(
    ladder: Sequence[Step], against: Mapping[str, Sequence[Speedup]]
) -> dict[str, str]:
    """For each parent arm, the sentence on which parts of its curvature have an effect."""
    sentences = {}
    steps = {s.part: s for s in STEPS}
    for parent in dict.fromkeys(r.parent for r in ladder):
        verdicts = [(steps[r.part], r.result.verdict) for r in ladder if r.parent == parent]
        found = [s for s in against.get(parent, []) if s.clock == "iteration"]
        faster = any(s.metric == "train_loss" and s.verdict == "faster" for s in found)
        sentences[parent] = made_of(get_arm(parent).label, verdicts, faster=faster)
    return sentences
