"""The replication ledger at a glance."""

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
"""The height of "never", as a multiple of the latest median."""


def ledger_figure(ledger: pd.DataFrame) -> Figure:
    """Iterations to the target for every variant and arm, a panel for each task.

    A dot is the median over all seeds; where half of them or more never get there, a ring is
    the median of those that do; a triangle at the top stands for none.

    Args:
        ledger: as from :func:`adaptive_opt.evidence.ledger.ledger_table`.
    """
    panels = [_panel(task, ledger[ledger["task"] == task]) for task in ledger["task"].unique()]
    note = (
        "dot: median over all seeds; ring: half of them or more never get there, median of the "
        "others; triangle at the top: none does"
    )
    return Figure(
        "Iterations to the target, one switch at a time", panels, columns=1, note=note, size=(9, 4)
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
        # Side by side, or arms that agree would hide each other.
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
    # The last variant's symbol carries the name, at the height where it stands.
    last = next(symbol for symbol, y in drawn.items() if np.isfinite(y[-1]))
    return [
        Line(x, y, get_arm(arm).label if symbol == last else "", arm_style(arm).colour, marker=True,
             symbol=symbol)
        for symbol, y in drawn.items()
        if np.isfinite(y).any()
    ]  # fmt: skip
