"""Figure of the replication ledger."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from adaptive_opt.study import get_arm, get_task
from adaptive_opt.switches import VARIANTS

from .colours import arm_style
from .figure import Figure, Line, Panel

__all__ = ["ledger_figure"]

ABOVE = 1.5
"""Height of the symbol for "never", relative to the largest median."""


def ledger_figure(ledger: pd.DataFrame) -> Figure:
    """Time to target for every variant and arm, one panel for each task.

    A dot is the median over all seeds. If at least half of the seeds never reach the target, a ring
    is the median of the others. A triangle at the top means that no seed reaches it.

    Args:
        ledger: from :func:`adaptive_opt.evidence.ledger.ledger_table`.
    """
    panels = [_panel(task, ledger[ledger["task"] == task]) for task in ledger["task"].unique()]
    return Figure(
        "Iterations to the target, one switch at a time",
        panels,
        columns=1,
        size=(9, 4),
        caption="Compare each column with the baseline: it changes one thing. Dot: median over all "
        "seeds; ring: at least half of the seeds never reach the target, median of the others; "
        "triangle at the top: no seed reaches it.",
    )


def _panel(task: str, rows: pd.DataFrame) -> Panel:
    variants = [v for v in VARIANTS if v.name in set(rows["variant"])]
    reached = rows["median_of_reached"].to_numpy(dtype=np.float64)
    finite = reached[np.isfinite(reached)]
    top = ABOVE * (finite.max() if len(finite) else 1.0)
    arms = list(dict.fromkeys(rows["arm"]))
    lines = []
    for place, arm in enumerate(arms):
        own = rows[rows["arm"] == arm].set_index("variant").loc[[v.name for v in variants]]
        # Side by side; otherwise arms with equal values would hide each other.
        x = np.arange(len(own)) + 0.11 * (place - (len(arms) - 1) / 2)
        lines += _symbols(x, own, arm, top)
    return Panel(
        get_task(task).label,
        lines,
        "iterations",
        x_label="",
        ticks=[v.label for v in variants],
    )


def _symbols(x: np.ndarray, own: pd.DataFrame, arm: str, top: float) -> list[Line]:
    median = own["median_iterations"].to_numpy(dtype=np.float64)
    reached = own["median_of_reached"].to_numpy(dtype=np.float64)
    all_, some = np.isfinite(median), np.isfinite(reached)
    drawn = {
        "dot": np.where(all_, median, math.nan),
        "ring": np.where(~all_ & some, reached, math.nan),
        "triangle": np.where(some, math.nan, top),
    }
    # The symbol of the last variant gets the label.
    last = next(symbol for symbol, y in drawn.items() if np.isfinite(y[-1]))
    return [
        Line(x, y, get_arm(arm).label if symbol == last else "", arm_style(arm).colour, marker=True,
             symbol=symbol)
        for symbol, y in drawn.items()
        if np.isfinite(y).any()
    ]  # fmt: skip
