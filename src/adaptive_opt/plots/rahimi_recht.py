"""The figures of the Rahimi–Recht study, from histories as they come out of the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.evidence.passage import losses_by_seed
from adaptive_opt.evidence.rahimi_recht import best_seed
from adaptive_opt.evidence.tables import identify
from adaptive_opt.study import get_arm, get_task

from .curves import Histories, arm_line, median_line, panels
from .figure import Figure, Line, Panel

__all__ = [
    "clipped_fraction_figure",
    "function_figure",
    "loss_figure",
    "median_loss_figure",
    "spectral_norm_figure",
    "spread_figure",
]


def loss_figure(histories: Histories, targets: Mapping[str, float]) -> Figure:
    """Training loss of each arm's best run, one panel a task, as published."""

    def line(history: pd.DataFrame) -> Line:
        losses = losses_by_seed(history)
        return arm_line(history, losses.index, losses[best_seed(losses)])

    return Figure(
        "Training loss of the best run",
        panels(histories, line, "training loss", levels=targets),
        note="best of all seeds by final loss; dotted: the target",
    )


def median_loss_figure(histories: Histories, targets: Mapping[str, float]) -> Figure:
    """Median training loss over seeds, the middle half as a band."""

    def line(history: pd.DataFrame) -> Line:
        losses = losses_by_seed(history)
        low, median, high = (losses.quantile(q, axis=1) for q in (0.25, 0.5, 0.75))
        return arm_line(history, losses.index, median, low=low, high=high)

    return Figure(
        "Training loss, all seeds",
        panels(histories, line, "training loss", levels=targets),
        note="line: median over seeds; band: from the first to the third quartile",
    )


def spectral_norm_figure(histories: Histories) -> Figure:
    """Largest absolute Hessian eigenvalue along training, median over seeds."""
    return Figure(
        "Largest absolute eigenvalue of the exact Hessian",
        panels(histories, lambda h: median_line(h, "hessian_spectral_norm"), "spectral norm"),
        note="median over seeds; Hessian of the loss over all samples, float64",
    )


def clipped_fraction_figure(histories: Histories) -> Figure:
    """Share of clipped update elements along training, median over seeds."""
    clipped = [h for h in histories if "clipped_fraction" in h]
    drawn = panels(
        clipped, lambda h: median_line(h, "clipped_fraction"), "clipped fraction", log=False
    )
    return Figure("Share of elements with |m / denom(D)| > ρ", drawn, note="median over seeds")


def spread_figure(histories: Histories, task: str) -> Figure:
    """Best, median and worst run of each second-order arm on one task."""
    drawn = []
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
        drawn.append(Panel(get_arm(arm).label, lines, "training loss"))
    label = get_task(task).label
    return Figure(f"Best, median and worst run. {label}", drawn, note="by final loss")


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
