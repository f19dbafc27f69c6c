"""The figures of the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from adaptive_opt.evidence.answer import CLOCK_WORDS
from adaptive_opt.evidence.schema import LadderVerdict, Result, Verdict
from adaptive_opt.study import get_arm

from .colours import arm_style
from .figure import Figure, Line, Panel
from .intervals import Interval, IntervalFigure, IntervalPanel

__all__ = ["ladder_figure", "profile_figure", "ratio_figure"]

NOTE = "grey: counts as no difference; interval: 95 %, of restricted times, paired by seed"


def _interval(label: str, result: Result) -> Interval:
    low = 0.0 if result.low is None else result.low
    high = math.inf if result.high is None else result.high
    return Interval(label, result.ratio, low, high, result.verdict)


def ratio_figure(verdict: Verdict, clock: str) -> IntervalFigure:
    """Every arm against the best first-order one, a panel a task, at the headline target."""
    panels = []
    for task in verdict.tasks:
        results = [r for r in task.arms if r.headline and r.clock == clock]
        if not results:
            continue
        versus = get_arm(results[0].versus).label
        rows = [_interval(r.label, r) for r in sorted(results, key=lambda r: r.ratio)]
        panels.append(
            IntervalPanel(
                f"{task.label}, against {versus}",
                rows,
                verdict.settings["margin"],
                f"ratio of {CLOCK_WORDS[clock]}",
            )
        )
    return IntervalFigure(f"Time to the baselines' best loss, {CLOCK_WORDS[clock]}", panels, NOTE)


def ladder_figure(verdict: Verdict) -> IntervalFigure:
    """Every rung of every ladder against the next, a panel a task."""
    panels = []
    for task in verdict.tasks:
        rows = [_interval(_step_words(r), r) for r in task.ladder if r.headline]
        if rows:
            panels.append(
                IntervalPanel(task.label, rows, verdict.settings["margin"], "ratio of iterations")
            )
    return IntervalFigure("Each rung of the information ladder against the next", panels, NOTE)


def _step_words(result: LadderVerdict) -> str:
    upper, lower = (
        a.removeprefix(result.parent).removeprefix("_").replace("_", " ") or "estimate"
        for a in (result.upper, result.lower)
    )
    return f"{get_arm(result.parent).label}: {upper} / {lower}"


def profile_figure(profiles: pd.DataFrame) -> Figure:
    """Performance profiles, a panel a clock."""
    panels = []
    for clock, rows in profiles.groupby("clock", sort=False):
        lines = [_steps(str(arm), own) for arm, own in rows.groupby("arm", sort=False)]
        label = f"times the fastest arm's {CLOCK_WORDS[str(clock)]}"
        panels.append(
            Panel(f"By {CLOCK_WORDS[str(clock)]}", lines, "share of tasks", label, y_log=False)
        )
    return Figure(
        "Performance profiles: share of the tasks solved within a factor of the fastest arm",
        panels,
        columns=3,
        note="medians over seeds, to the target that the tuned first-order baselines come down to",
    )


def _steps(arm: str, rows: pd.DataFrame) -> Line:
    """A profile as the staircase that it is."""
    x: list[float] = []
    y: list[float] = []
    ratios: Sequence[float] = rows["ratio"].tolist()
    shares: Sequence[float] = rows["share"].tolist()
    for i, (ratio, share) in enumerate(zip(ratios, shares, strict=True)):
        if i:
            x.append(ratio)
            y.append(shares[i - 1])
        x.append(ratio)
        y.append(share)
    style = arm_style(arm)
    return Line(x, y, get_arm(arm).label, style.colour, dash=style.dash)
