"""Figure of the fidelity of curvature estimates."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from adaptive_opt.evidence.fidelity import label
from adaptive_opt.study import get_task

from .colours import arm_style
from .figure import Figure, Line, Panel

__all__ = ["fidelity_figure"]

FAMILY = "Rahimi–Recht, "
FLOOR = 1e-3
"""Smallest relative error of the exact diagonal that is drawn. Its error falls without limit; the
axis would become so long that other lines could not be told apart."""

_PROBES = {
    "gaussian": arm_style("sophia").colour,
    "rademacher": arm_style("ssdh").colour,
    "constant": "#CC79A7",
    "momentum_sign": arm_style("ssvp").colour,
}
_TITLES = {"raw": "one draw", "smoothed": "smoothed", "clipped": "clipped update"}
_QUANTITIES = {"cosine": ("cosine", False), "relative_error": ("relative error", True)}


def fidelity_figure(measures: Sequence[pd.DataFrame]) -> Figure:
    """Cosine and relative error along the run; rows are (task, measure), columns are stages.

    Args:
        measures: see :func:`adaptive_opt.evidence.fidelity.fidelity_table`.
    """
    panels = [
        _panel(rows, stage, quantity)
        for rows in measures
        for quantity in _QUANTITIES
        for stage in _TITLES
    ]
    return Figure(
        "Rahimi–Recht: how faithful are curvature estimates to the exact diagonal?",
        panels,
        columns=3,
        size=(5.6, 3.5),
        caption="Cosine (best: 1) and relative error (best: 0) of each estimate along the run, "
        "median over seeds; a probe is the vector v of a Hessian-vector product. Clipped updates "
        "are compared with those of the same rule with the exact diagonal; dashed lines use the "
        f"constant probe. Errors of zero, and below {FLOOR:g} for the exact diagonal, are left "
        "out.",
    )


def _panel(rows: pd.DataFrame, stage: str, quantity: str) -> Panel:
    y_label, log = _QUANTITIES[quantity]
    rows = rows.fillna({"method": ""})
    lines = []
    for key, one in rows[rows["stage"] == stage].groupby(["probe", "method"], sort=False):
        probe, method = map(str, key)
        if stage == "clipped" and probe == "exact":
            continue  # compared with itself
        medians = one.groupby("iteration")[quantity].median()
        if log:
            medians = medians.where(medians >= FLOOR if probe == "exact" else medians > 0)
        words = label(probe, method)
        dash = "dash" if method and probe == "constant" else "solid"
        lines.append(Line(medians.index + 1, medians, words, _colour(probe, method), dash=dash))
    task = get_task(str(rows["task"].iloc[0])).label.removeprefix(FAMILY).capitalize()
    return Panel(f"{task}: {_TITLES[stage]}", lines, y_label, "step", y_log=log, x_log=True)


def _colour(probe: str, method: str) -> str:
    if probe == "exact":
        return "#000000"
    return arm_style(method).colour if method else _PROBES[probe]
