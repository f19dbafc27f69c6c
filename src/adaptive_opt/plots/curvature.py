"""Figures of curvature along training, from the tables of the catalog."""

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
"""Of the largest density: what is below is not drawn."""

DECADES = 12
"""Of eigenvalues that are drawn, from the largest down."""

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
    """One for each arm, with a band of one standard error; of the first seed."""
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
    """Top two eigenvalues and trace of the Hessian, of these what there is; a row for each task."""
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
        note="one run an arm, over a fixed set of training batches"
        + ("; band: standard error" if "trace" in known else ""),
    )


def stability_figure(table: pd.DataFrame) -> Figure:
    """η times the top eigenvalue of the preconditioned Hessian over the threshold of the rule."""
    panels = []
    for task in table["task"].unique():
        rows = table[(table["task"] == task) & (table["stability"] > 0)]
        lines = _lines(rows, "stability")
        panels.append(Panel(_label(task), lines, "η λ / threshold", "epoch", level=1.0))
    return Figure(
        "The edge of stability: η λ1(P⁻¹H) over the threshold of each arm's rule",
        panels,
        note="dotted: the threshold; P is what the rule divides by, coordinates whose steps are "
        "clipped left out; no point: no positive eigenvalue, or no step before",
    )


def density_figure(densities: Sequence[pd.DataFrame]) -> Figure:
    """Spectral density of both matrices at the end of training, an arm a line."""
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
        note="stochastic Lanczos quadrature, smoothed by a Gaussian; band: standard error",
    )


def estimate_figure(estimates: pd.DataFrame) -> Figure:
    """Worth of the curvature estimates along training, a panel for each (task, arm)."""
    panels = []
    if len(estimates):  # what is empty is missing where it comes from a CSV file
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
        note="against the mean over many Rademacher probes, corrected for its noise; "
        "band: standard error",
    )


def surface_figure(surfaces: Mapping[str, pd.DataFrame], arm: str) -> MapFigure:
    """Contours of the loss around an arm's solution; colours are its logarithm.

    Args:
        surfaces: by task, a row for each (a, b).
        arm: whose solution.
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
        note="at the edges the quadratic model adds four times the loss of the centre",
    )


def line_figure(lines: Mapping[str, pd.DataFrame], arms: tuple[str, str]) -> Figure:
    """The loss between the solutions of two arms, a panel a task."""
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
        note="parameters and running statistics of batch normalisation interpolated alike; "
        "no line: a running variance is negative there, and there is no loss",
    )


def spectra_figure(spectra: pd.DataFrame, task: str) -> MapFigure:
    """All eigenvalues of the exact Hessian over training, an arm a picture.

    The colour of an eigenvalue λ is sign(λ) times the decades of |λ| above the floor, below which
    all are white: :data:`DECADES` below the largest of all.
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
        note="exact Hessian of the loss over all samples, float64; one run an arm; "
        f"white: below {10.0**floor:.0e}",
    )
