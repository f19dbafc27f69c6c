"""Figures of the Rahimi–Recht tasks, from histories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.evidence.passage import last_rows, losses_by_seed, runs
from adaptive_opt.evidence.rahimi_recht import best_seed, decade_table
from adaptive_opt.evidence.tables import identify
from adaptive_opt.study import EVERY_TASK, get_arm, get_task

from .colours import arm_style
from .curves import Histories, arm_line, median_line, panels
from .figure import Counts, Figure, Line, Panel

__all__ = [
    "clipped_fraction_figure",
    "decades_figure",
    "function_figure",
    "hessian_figure",
    "loss_figure",
    "median_loss_figure",
    "spectral_norm_figure",
    "spread_figure",
]


BAND = "Lines are medians over seeds, bands the middle half of the seeds."


def loss_figure(histories: Histories, targets: Mapping[str, float]) -> Figure:
    """Training loss of the best run of each arm, one panel for each task, as published."""

    def line(history: pd.DataFrame) -> Line:
        best = best_seed(history)
        if best is None:
            return arm_line(history, [], [])
        losses = runs(history)[best]
        return arm_line(history, losses.index, losses)

    return Figure(
        "Training loss of the best run",
        panels(histories, line, "training loss", levels=targets),
        caption="For each arm, the seed with the lowest final loss, as published. The further "
        "left a curve crosses the dotted line (the target), the faster the run.",
    )


def median_loss_figure(histories: Histories, targets: Mapping[str, float]) -> Figure:
    """Median training loss over seeds, with a band of the middle half."""

    def line(history: pd.DataFrame) -> Line:
        losses = losses_by_seed(history)
        low, median, high = (losses.quantile(q, axis=1) for q in (0.25, 0.5, 0.75))
        return arm_line(history, losses.index, median, low=low, high=high)

    return Figure(
        "Training loss, all seeds",
        panels(histories, line, "training loss", levels=targets),
        caption=f"{BAND} The further left a median crosses the dotted line (the target), the "
        "faster the arm.",
    )


def spectral_norm_figure(histories: Histories) -> Figure:
    """Largest absolute eigenvalue of the Hessian along training, median over seeds."""
    having = [h for h in histories if "hessian_spectral_norm" in h]
    return Figure(
        "Largest absolute eigenvalue of the exact Hessian",
        panels(having, lambda h: median_line(h, "hessian_spectral_norm"), "spectral norm"),
        caption=f"Hessian of the loss over all samples, in float64. {BAND} Rising curves mean that "
        "the loss becomes sharper.",
    )


def clipped_fraction_figure(histories: Histories) -> Figure:
    """Share of clipped elements of the update along training, median over seeds."""
    clipped = [h for h in histories if "clipped_fraction" in h]
    drawn = panels(
        clipped, lambda h: median_line(h, "clipped_fraction"), "clipped fraction", log=False
    )
    caption = "Share of the update's elements that are clipped. Where it is near 1, step sizes "
    caption += f"hardly depend on the curvature. {BAND}"
    return Figure("Share of elements with |m / denom(D)| > ρ", drawn, caption=caption)


HESSIAN_PANELS = {
    "hessian_spectral_norm": ("largest |eigenvalue|", True),
    "hessian_smallest_eigenvalue": ("smallest nonzero |eigenvalue|", True),
    "hessian_eigenvalue_norm": ("norm of the eigenvalues", True),
    "hessian_diagonal_norm": ("norm of the diagonal", True),
    "hessian_positive_eigenvalue_share": ("share of positive eigenvalues", False),
    "hessian_positive_diagonal_share": ("share of positive diagonal entries", False),
    "hessian_gradient_norm": ("norm of the gradient", True),
    "estimate_norm": ("norm of the estimate", True),
    "positive_estimate_share": ("share of positive estimates", False),
    "curvature_norm": ("norm of the smoothed curvature", True),
    "second_moment_norm": ("norm of Adam's second moment", True),
    "clipped_fraction": ("clipped fraction", False),
}
"""Columns of the published Hessian analysis: label, and whether the axis is logarithmic."""


def hessian_figure(histories: Histories, task: str) -> Figure:
    """All quantities of the Hessian analysis on one task, one panel each.

    The first seven describe the exact Hessian and gradient over all samples, in float64. The others
    describe the state of the optimizers.
    """
    chosen = [h for h in histories if identify(h)[0] == task]
    drawn = []
    for column, (label, log) in HESSIAN_PANELS.items():
        having = [h for h in chosen if column in h and h[column].notna().any()]
        lines = [median_line(h, column) for h in having]
        drawn.append(Panel(label, lines, "", y_log=log))
    return Figure(
        f"The Hessian along training. {get_task(task).label}",
        drawn,
        columns=3,
        size=(5.4, 3.4),
        caption="The first seven panels describe the exact Hessian and gradient, the others the "
        f"optimizers' own estimates. {BAND} Arms without a quantity are left out.",
    )


def decades_figure(histories: Histories) -> Figure:
    """Number of runs of each arm by the decade of their final loss, one panel for each task."""
    table = decade_table(histories)
    tasks = {identify(h)[0] for h in histories}
    decades = [c for c in table if c not in ("task", "arm", "diverged")]
    drawn = []
    for task in EVERY_TASK:
        if task.name not in tasks:
            continue
        rows = table[table["task"] == task.name]
        arms = list(rows["arm"])
        seen = [d for d in decades if rows[d].any()]
        span = decades[decades.index(seen[0]) : decades.index(seen[-1]) + 1] if seen else []
        columns = [*span, *(["diverged"] if rows["diverged"].any() else [])]
        counts = Counts(
            [get_arm(a).label for a in arms],
            [arm_style(a).colour for a in arms],
            [str(c).replace("..", " – ") for c in columns],
            rows[columns].to_numpy(),
        )
        drawn.append(Panel(task.label, [], "", x_label="final training loss", counts=counts))
    caption = "Each disc is a number of runs. Further left is a lower final loss; a wide row means "
    caption += "that seeds differ."
    return Figure("Runs by the decade of their final loss", drawn, caption=caption)


def spread_figure(histories: Histories, task: str) -> Figure:
    """Best, median and worst run of each second-order arm on one task."""
    drawn = []
    for history in histories:
        name, arm = identify(history)
        if name != task or get_arm(arm).kind == "first-order":
            continue
        losses = runs(history)
        finals = last_rows(history)["train_loss"].fillna(np.inf)
        order = finals.sort_values(kind="stable").index
        picked = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
        dashes = {"best": "solid", "median": "dash", "worst": "dot"}
        lines = [
            Line(losses[s].index, losses[s], which, arm_style(arm).colour, dash=dashes[which])
            for which, s in picked.items()
        ]
        drawn.append(Panel(get_arm(arm).label, lines, "training loss"))
    label = get_task(task).label
    caption = "Runs are ordered by their final loss, one panel for each second-order arm. Distant "
    caption += "lines mean that seeds differ."
    return Figure(f"Best, median and worst run. {label}", drawn, caption=caption)


def function_figure(report: Mapping[str, Any]) -> Figure:
    """Singular values of A, and spectra of the Hessian at the start and at a minimum."""
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
        caption="A is the matrix to be learnt. Blue: positive eigenvalues, red: negative; those "
        "below the zero tolerance are left out. The wider the range, the harder the task.",
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
