"""Lines and panels from histories: one panel for each task, one line for each arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from adaptive_opt.evidence.passage import losses_by_seed
from adaptive_opt.evidence.tables import identify
from adaptive_opt.study import EVERY_TASK, get_arm

from .colours import arm_style
from .figure import Line, Panel

__all__ = ["Histories", "arm_line", "band_line", "median_line", "panels"]

Histories = Sequence[pd.DataFrame]


def panels(
    histories: Histories,
    line: Callable[[pd.DataFrame], Line],
    y_label: str,
    *,
    x_label: str = "iteration",
    log: bool = True,
    levels: Mapping[str, float] | None = None,
) -> list[Panel]:
    """Create one panel for each task with a history.

    Args:
        histories: one for each (task, arm).
        line: function that creates the line of an arm from its history.
        y_label, x_label: labels of the axes.
        log: whether the y axis is logarithmic.
        levels: for each task, the height of a dotted horizontal line.
    """
    drawn = []
    for task in EVERY_TASK:
        lines = [line(h) for h in histories if identify(h)[0] == task.name]
        if lines:
            level = (levels or {}).get(task.name)
            drawn.append(Panel(task.label, lines, y_label, x_label, y_log=log, level=level))
    return drawn


def arm_line(history: pd.DataFrame, x: Any, y: Any, **band: Any) -> Line:
    """Create a line in the style of the history's arm; ``band`` may have ``low`` and ``high``."""
    arm = identify(history)[1]
    return Line(x, y, get_arm(arm).label, *arm_style(arm), **band)


def median_line(history: pd.DataFrame, column: str) -> Line:
    """Median of a column over seeds, with a band from the first to the third quartile."""
    if column not in history:
        return arm_line(history, [], [])
    wide = losses_by_seed(history, column).dropna(how="all")
    low, median, high = (wide.quantile(q, axis=1) for q in (0.25, 0.5, 0.75))
    return arm_line(history, wide.index, median, low=low, high=high)


def band_line(history: pd.DataFrame, column: str, clock: str = "iteration") -> Line:
    """Mean of a column over seeds, with a band from the lowest to the highest seed.

    Args:
        history: history of one (task, arm).
        column: column on the y axis.
        clock: column on the x axis; its mean over seeds at each iteration is used.
    """
    if column not in history:
        return arm_line(history, [], [])
    wide = losses_by_seed(history, column).dropna(how="all")
    x: Any = wide.index
    if clock != "iteration":
        x = losses_by_seed(history, clock).loc[wide.index].mean(axis=1)
    return arm_line(history, x, wide.mean(axis=1), low=wide.min(axis=1), high=wide.max(axis=1))
