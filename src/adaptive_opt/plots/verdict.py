"""Figures of the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from adaptive_opt.evidence.answer import CLOCK_WORDS, METRIC_WORDS
from adaptive_opt.evidence.schema import Speedup, Step, Verdict
from adaptive_opt.evidence.tables import identify
from adaptive_opt.study import get_arm

from .colours import arm_style
from .figure import Figure, Line, Panel
from .intervals import Interval, IntervalFigure, IntervalPanel

__all__ = ["ladder_figure", "length_figure", "speedup_figure"]

READING = (
    "bars are 95 % intervals over searches and seeds, and the grey band counts as equivalent. An "
    "arrow, or a bar that ends at the edge, means that only a bound is known."
)


def length_figure(
    verdict: Verdict, tables: Sequence[pd.DataFrame], metric: str = "train_loss", columns: int = 2
) -> Figure:
    """Final loss by training length, one panel for each task; further left is faster.

    Args:
        verdict: record with the tasks to draw.
        tables: final losses at every length, one for each (task, arm); placebos are left out.
        metric: ``train_loss`` or ``valid_loss``.
        columns: number of panels per row.
    """
    panels = []
    for task in verdict.tasks:
        if metric not in task.levels:
            continue
        own = [t for t in tables if len(t) and identify(t)[0] == task.task]
        lines = [_curve(t, metric) for t in own if get_arm(identify(t)[1]).kind != "ladder"]
        panels.append(
            Panel(
                task.label,
                lines,
                METRIC_WORDS[metric],
                "training length (iterations)",
                level=task.levels[metric],
                x_log=True,
            )
        )
    caption = (
        "Each point is a separate training run with its whole learning rate schedule; lines are "
        "medians over runs, bands the middle half. The further left a curve, the less training it "
        "needs for the same loss. The dotted line is the loss of the reference (the better of SGDM "
        "and Adam) at full length."
    )
    title = f"Final {METRIC_WORDS[metric]} by training length: further left is faster"
    return Figure(title, panels, columns=columns, caption=caption)


def _curve(table: pd.DataFrame, metric: str) -> Line:
    """Median over runs with a band of the middle half; the loss of a diverged run is infinite."""
    arm = identify(table)[1]
    losses = table[metric].fillna(np.inf).groupby(table["iterations"])
    low, middle, high = (
        losses.quantile(q, interpolation="nearest").replace(np.inf, np.nan)
        for q in (0.25, 0.5, 0.75)
    )
    return Line(middle.index, middle, get_arm(arm).label, *arm_style(arm), low=low, high=high)


def _interval(label: str, found: Speedup) -> Interval:
    low = 0.0 if found.low is None else found.low
    high = math.inf if found.high is None else found.high
    return Interval(label, found.ratio, low, high, found.verdict)


def speedup_figure(
    verdict: Verdict, clock: str = "iteration", metric: str = "train_loss"
) -> IntervalFigure:
    """Speed-up of every arm over the reference, one panel for each task."""
    panels = []
    labels: Mapping[str, str] = {a.arm: a.label for t in verdict.tasks for a in t.arms}
    for task in verdict.tasks:
        found = [(a.label, s) for a in task.arms if (s := a.speedup(clock, metric)) is not None]
        rows = [_interval(label, s) for label, s in sorted(found, key=lambda r: -r[1].ratio)]
        if rows and task.reference:
            title = f"{task.label}, compared with {labels[task.reference]}"
            words = f"speed-up in {CLOCK_WORDS[clock]}"
            panels.append(IntervalPanel(title, rows, verdict.settings["margin"], words))
    title = f"Speed-up at equal {METRIC_WORDS[metric]}, counted in {CLOCK_WORDS[clock]}"
    caption = "How many times longer the reference, the better of SGDM and Adam, must train for "
    caption += f"the same loss: right of 1 an arm is faster; {READING}"
    return IntervalFigure(title, panels, caption)


def ladder_figure(verdict: Verdict) -> IntervalFigure:
    """Each rung of the information ladders compared with the next, one panel for each task."""
    panels = []
    for task in verdict.tasks:
        rows = [_interval(_step_words(s), s.result) for s in task.ladder]
        if rows:
            margin = verdict.settings["margin"]
            panels.append(IntervalPanel(task.label, rows, margin, "speed-up in iterations"))
    caption = (
        "Each row compares two arms with the same step rule; the second lacks one part of the "
    )
    caption += f"curvature information. Right of 1, that part speeds up training; {READING}"
    title = "Information ladder: each rung compared with the next"
    return IntervalFigure(title, panels, caption)


def _step_words(step: Step) -> str:
    upper, lower = (
        a.removeprefix(step.parent).removeprefix("_").replace("_", " ") or "estimate"
        for a in (step.upper, step.lower)
    )
    return f"{get_arm(step.parent).label}: {upper} vs {lower}"
