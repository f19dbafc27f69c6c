"""Figures of curvature along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from adaptive_opt.evidence.curvature import estimate_label
from adaptive_opt.study import get_arm, get_task

from .colours import arm_style
from .figure import Figure, Line, Panel
from .maps import Map, MapFigure

__all__ = [
    "density_figure",
    "estimate_figure",
    "line_figure",
    "sharpness_figure",
    "spectra_figure",
    "stability_figure",
    "surface_figure",
]

DENSITY_FLOOR = 1e-6
"""Densities below this share of the largest are not drawn."""

DECADES = 12
"""Decades of eigenvalues that are drawn, from the largest down."""

_PROBES = {
    "rademacher": "#009E73",
    "gaussian": "#E69F00",
    "constant": "#CC79A7",
    "momentum_sign": "#D55E00",
    "": "#000000",
}
_QUANTITIES = {
    "eigenvalue_1": "largest eigenvalue",
    "eigenvalue_2": "second eigenvalue",
    "trace": "trace",
}


def _label(task: str) -> str:
    return get_task(task).label


def _lines(rows: pd.DataFrame, column: str, error: str | None = None) -> list[Line]:
    """One line for each arm, from its first seed, with a band of one standard error."""
    lines = []
    for arm, one in rows.groupby("arm", sort=False):
        first = one[one["seed"] == one["seed"].min()].sort_values("epoch")
        if not first[column].notna().any():
            continue
        low = high = None
        if error is not None:
            low, high = first[column] - first[error], first[column] + first[error]
        colour, dash = arm_style(str(arm))
        label = get_arm(str(arm)).label
        x = first["epoch"]
        lines.append(Line(x, first[column], label, colour, dash=dash, low=low, high=high))
    return lines


def sharpness_figure(table: pd.DataFrame) -> Figure:
    """Two largest eigenvalues and trace of the Hessian, as available; one row for each task."""
    panels = []
    known = {column: words for column, words in _QUANTITIES.items() if column in table}
    for task in table["task"].unique():
        rows = table[table["task"] == task]
        for column, words in known.items():
            positive = rows[column].dropna()
            lines = _lines(rows, column, f"{column}_error" if column == "trace" else None)
            log = bool((positive > 0).all()) and column != "trace"
            panels.append(Panel(f"{_label(task)}: {words}", lines, "", "epoch", y_log=log))
    return Figure(
        "Sharpness along training: the Hessian of the loss",
        panels,
        columns=3 if len(known) > 1 else 2,
        size=(5.4, 3.6),
        caption="Curvature along one run of each arm, over a fixed set of training batches. "
        + ("The band of the trace is its standard error. " if "trace" in known else "")
        + "A rising curve means that the loss becomes sharper.",
    )


def stability_figure(table: pd.DataFrame) -> Figure:
    """η times the largest eigenvalue of the preconditioned Hessian, relative to its threshold."""
    panels = []
    for task in table["task"].unique():
        rows = table[(table["task"] == task) & (table["stability"] > 0)]
        lines = _lines(rows, "stability")
        panels.append(Panel(_label(task), lines, "η λ / threshold", "epoch", level=1.0))
    return Figure(
        "The edge of stability: η λ1(P⁻¹H) relative to the threshold of each arm's rule",
        panels,
        caption="Learning rate η times the largest eigenvalue of the Hessian H divided by P, the "
        "denominator of the arm's step, relative to the largest value at which its steps are "
        "stable. Curves near the dotted line train at the edge of stability. Coordinates with "
        "clipped steps are left out; points without a positive eigenvalue or a previous step are "
        "missing.",
    )


def density_figure(densities: Sequence[pd.DataFrame]) -> Figure:
    """Spectral density of Hessian and Gauss–Newton matrix at the end of training, by arm."""
    full = [d for d in densities if len(d)]
    rows = pd.concat(full) if full else pd.DataFrame(columns=["task"])
    words = {"hessian": "Hessian", "gauss_newton": "Gauss–Newton"}
    panels = []
    for task in rows["task"].unique():
        for matrix, name in words.items():
            lines = []
            chosen = rows[(rows["task"] == task) & (rows["matrix"] == matrix)]
            for arm, one in chosen.groupby("arm", sort=False):
                first = one[one["seed"] == one["seed"].min()]
                shown = first["density"].where(
                    first["density"] > DENSITY_FLOOR * first["density"].max()
                )
                colour, dash = arm_style(str(arm))
                low = (first["density"] - first["error"]).clip(lower=shown.min())
                lines.append(
                    Line(
                        first["eigenvalue"], shown, get_arm(str(arm)).label, colour, dash=dash,
                        low=low.where(shown.notna()),
                        high=(first["density"] + first["error"]).where(shown.notna()),
                    )
                )  # fmt: skip
            title = f"{_label(str(task))}: {name}"
            panels.append(Panel(title, lines, "density", "eigenvalue"))
    return Figure(
        "Spectral density at the end of training",
        panels,
        caption="Density of the eigenvalues, by stochastic Lanczos quadrature with Gaussian "
        "smoothing; bands are standard errors. Look for large eigenvalues outside the bulk at "
        "zero: they are the sharp directions.",
    )


def estimate_figure(estimates: pd.DataFrame) -> Figure:
    """Cosine of the curvature estimates along training, one panel for each (task, arm)."""
    panels = []
    if len(estimates):  # CSV files turn empty strings into NaN
        estimates = estimates.fillna({"probe": ""})
    for task in estimates["task"].unique() if len(estimates) else []:
        for arm in estimates[estimates["task"] == task]["arm"].unique():
            rows = estimates[
                (estimates["task"] == task)
                & (estimates["arm"] == arm)
                & (estimates["metric"] == "cosine")
            ]
            lines = []
            for key, one in rows.groupby(["stage", "probe"], sort=False):
                stage, probe = map(str, key)
                first = one[one["seed"] == one["seed"].min()].sort_values("epoch")
                lines.append(
                    Line(
                        first["epoch"], first["value"], estimate_label(stage, probe),
                        _PROBES[probe], dash="dash" if stage == "denominator" else "solid",
                        low=first["value"] - first["error"], high=first["value"] + first["error"],
                    )
                )  # fmt: skip
            title = f"{_label(str(task))}: {get_arm(arm).label}"
            panels.append(Panel(title, lines, "cosine", "epoch", y_log=False))
    return Figure(
        "How faithful are curvature estimates to the Hessian's diagonal?",
        panels,
        columns=4,
        size=(5.2, 3.4),
        caption="Cosine between the optimizers' estimates and the Hessian's diagonal; 1 means the "
        "same direction. A probe is the random vector v of a Hessian-vector product; the "
        "diagonal is a mean over many Rademacher probes, corrected for its noise. Bands are "
        "standard errors.",
    )


def surface_figure(surfaces: Mapping[str, pd.DataFrame], arm: str) -> MapFigure:
    """Contours of the log loss around the solution of an arm.

    Args:
        surfaces: by task, a table with one row for each (a, b).
        arm: the arm whose solution is in the centre.
    """
    maps = []
    for task, rows in surfaces.items():
        table = rows.pivot(index="b", columns="a", values="loss")
        maps.append(
            Map(
                f"{_label(task)}: {get_arm(arm).label}",
                table.columns.to_numpy(),
                table.index.to_numpy(),
                np.log10(table.to_numpy()),
                f"along the first eigenvector, λ = {rows['eigenvalue_a'].iloc[0]:.3g}",
                f"second, λ = {rows['eigenvalue_b'].iloc[0]:.3g}",
                marks=[(0.0, 0.0, "solution")],
            )
        )
    return MapFigure(
        "The loss on the plane of the top two eigenvectors",
        maps,
        "log₁₀ of the loss",
        caption="Loss around a solution, along the two sharpest directions. The axes end where "
        "the quadratic model adds four times the loss of the centre; contours that are no ellipses "
        "show where this model fails.",
    )


def line_figure(lines: Mapping[str, pd.DataFrame], arms: tuple[str, str]) -> Figure:
    """Loss on the line between the solutions of two arms, one panel for each task."""
    first, second = (get_arm(a).label for a in arms)
    panels = [
        Panel(
            _label(task),
            [Line(rows["position"], rows["loss"], "", arm_style(arms[1]).colour)],
            "loss",
            f"0: {first}; 1: {second}",
        )
        for task, rows in lines.items()
    ]
    return Figure(
        f"The loss on the line between the solutions of {first} and {second}",
        panels,
        caption="Parameters and running statistics of batch normalisation are interpolated. A "
        "hill between the ends means that the solutions lie in different valleys. Gaps: a running "
        "variance is negative, so there is no loss.",
    )


def spectra_figure(spectra: pd.DataFrame, task: str) -> MapFigure:
    """All eigenvalues of the exact Hessian along training, one map for each arm.

    The colour of an eigenvalue λ is sign(λ) times the number of decades of |λ| above the floor. The
    floor lies :data:`DECADES` decades below the largest |λ|; smaller eigenvalues are white.
    """
    maps = []
    floor = 0.0
    if len(spectra):
        floor = np.floor(np.log10(spectra["eigenvalue"].abs().max())) - DECADES
        for arm, one in spectra.groupby("arm", sort=False):
            first = one[one["seed"] == one["seed"].min()]
            table = first.pivot(index="index", columns="epoch", values="eigenvalue")
            size = table.abs().to_numpy()
            decades = np.log10(np.maximum(size, 10.0**floor)) - floor
            maps.append(
                Map(
                    get_arm(str(arm)).label,
                    table.columns.to_numpy(),
                    table.index.to_numpy(),
                    np.sign(table.to_numpy()) * decades,
                    "epoch",
                    "eigenvalue, from the largest",
                )
            )
    ticks = [
        (sign * (d - floor), f"{'−' if sign < 0 else ''}1e{d:g}")
        for sign in (-1, 1)
        for d in np.arange(floor + 4, floor + DECADES + 1, 4)
    ]
    return MapFigure(
        f"The whole spectrum over training. {_label(task)}",
        maps,
        "eigenvalue",
        ticks=sorted(ticks),
        columns=3,
        contours=False,
        caption="Eigenvalues of the exact Hessian of the loss over all samples, in float64, along "
        "one run of each arm: red is positive, blue negative, white below "
        f"{10.0**floor:.0e}. Look for when negative eigenvalues vanish and how many stay white.",
    )
