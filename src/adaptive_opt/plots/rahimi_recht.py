"""The figures of the Rahimi–Recht study, from histories as they come out of the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.evidence.passage import losses_by_seed
from adaptive_opt.evidence.rahimi_recht import best_seed, identify
from adaptive_opt.study import TASKS, get_arm

from .colours import arm_colour, arm_dashed
from .figure import Figure, Line, Panel

__all__ = [
    "clipped_fraction_figure",
    "function_figure",
    "loss_figure",
    "median_loss_figure",
    "spectral_norm_figure",
    "spread_figure",
]

Histories = Sequence[pd.DataFrame]


def loss_figure(histories: Histories, targets: Mapping[str, float]) -> Figure:
    """Training loss of each arm's best run, one panel a task, as published."""

    def line(history: pd.DataFrame) -> Line:
        losses = losses_by_seed(history)
        return _line(history, losses.index, losses[best_seed(losses)])

    return Figure(
        "Training loss of the best run",
        _panels(histories, line, "training loss", levels=targets),
        note="best of all seeds by final loss; dotted: the target",
    )


def median_loss_figure(histories: Histories, targets: Mapping[str, float]) -> Figure:
    """Median training loss over seeds, the middle half as a band."""

    def line(history: pd.DataFrame) -> Line:
        losses = losses_by_seed(history)
        low, median, high = (losses.quantile(q, axis=1) for q in (0.25, 0.5, 0.75))
        return _line(history, losses.index, median, low=low, high=high)

    return Figure(
        "Training loss, all seeds",
        _panels(histories, line, "training loss", levels=targets),
        note="line: median over seeds; band: from the first to the third quartile",
    )


def spectral_norm_figure(histories: Histories) -> Figure:
    """Largest absolute Hessian eigenvalue along training, median over seeds."""
    return Figure(
        "Largest absolute eigenvalue of the exact Hessian",
        _panels(histories, lambda h: _median(h, "hessian_spectral_norm"), "spectral norm"),
        note="median over seeds; Hessian of the loss over all samples, float64",
    )


def clipped_fraction_figure(histories: Histories) -> Figure:
    """Share of clipped update elements along training, median over seeds."""
    clipped = [h for h in histories if "clipped_fraction" in h]
    panels = _panels(
        clipped, lambda h: _median(h, "clipped_fraction"), "clipped fraction", log=False
    )
    return Figure("Share of elements with |m / denom(D)| > ρ", panels, note="median over seeds")


def spread_figure(histories: Histories, task: str) -> Figure:
    """Best, median and worst run of each second-order arm on one task."""
    panels = []
    for history in histories:
        name, arm = identify(history)
        if name != task or get_arm(arm).kind == "first-order":
            continue
        losses = losses_by_seed(history)
        order = losses.iloc[-1].fillna(np.inf).sort_values().index
        picked = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
        colours = {"best": "#009E73", "median": "#0072B2", "worst": "#D55E00"}
        lines = [
            Line(losses.index, losses[seed], which, colours[which])
            for which, seed in picked.items()
        ]
        panels.append(Panel(get_arm(arm).label, lines, "training loss"))
    label = next(t.label for t in TASKS if t.name == task)
    return Figure(f"Best, median and worst run. {label}", panels, note="by final loss")


def function_figure(report: Mapping[str, Any]) -> Figure:
    """Singular values of A, and the Hessian's spectrum at the start and at a minimum."""
    start, minimum = report["hessian_at_start"], report["hessian_at_minimum"]
    return Figure(
        f"Rahimi–Recht function, cond(A) = {report['condition_number']:.6g}",
        [
            _spectrum("Singular values of A", report["singular_values"], "singular value"),
            _spectrum(
                f"Hessian at the start ({start['loss']}), cond {start['condition_number']:.3g}",
                start["eigenvalues"],
                "|eigenvalue|",
                zero=start["zero_tolerance"],
            ),
            _spectrum(
                f"Hessian at a minimum ({minimum['loss']}), cond {minimum['condition_number']:.3g}",
                minimum["eigenvalues"],
                "|eigenvalue|",
                zero=minimum["zero_tolerance"],
            ),
        ],
        columns=3,
        size=(4.6, 3.8),
        note="blue: positive, red: negative; eigenvalues below the zero tolerance are left out",
    )


def _spectrum(title: str, values: Sequence[float], y_label: str, zero: float = 0.0) -> Panel:
    ordered = np.array(sorted(values, key=abs, reverse=True))
    ordered = ordered[np.abs(ordered) > zero]
    index = np.arange(1, len(ordered) + 1)
    lines = [
        Line(index[keep], np.abs(ordered[keep]), "", colour, marker=True)
        for keep, colour in ((ordered > 0, "#0072B2"), (ordered < 0, "#D55E00"))
    ]
    return Panel(title, lines, y_label, x_label="index")


def _panels(
    histories: Histories,
    line: Any,
    y_label: str,
    *,
    log: bool = True,
    levels: Mapping[str, float] | None = None,
) -> list[Panel]:
    panels = []
    for task in TASKS:
        lines = [line(h) for h in histories if identify(h)[0] == task.name]
        if lines:
            level = (levels or {}).get(task.name)
            panels.append(Panel(task.label, lines, y_label, y_log=log, level=level))
    return panels


def _line(history: pd.DataFrame, x: Any, y: Any, **band: Any) -> Line:
    arm = identify(history)[1]
    return Line(x, y, get_arm(arm).label, arm_colour(arm), dash=arm_dashed(arm), **band)


def _median(history: pd.DataFrame, column: str) -> Line:
    if column not in history:
        return _line(history, [], [])
    wide = losses_by_seed(history, column).dropna(how="all")  # measured now and then only
    return _line(history, wide.index, wide.median(axis=1))
