"""A figure as data: panels of lines and bands, drawn by Plotly or by Matplotlib.

Interactive previews need Plotly, files for people need PNG without a browser; describing a
figure once keeps the two the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import matplotlib.figure as mpl_figure
import numpy as np
import plotly.graph_objects as go
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from plotly.subplots import make_subplots

__all__ = ["Figure", "Line", "Panel", "to_matplotlib", "to_plotly"]

MAX_POINTS = 600

SYMBOLS = {
    "dot": ("o", "circle"),
    "ring": ("o", "circle-open"),
    "triangle": ("^", "triangle-up-open"),
}
"""By the names of :class:`Line`, those of Matplotlib and of Plotly."""


@dataclass(frozen=True)
class Line:
    """A curve with an optional band around it.

    Attributes:
        x, y: the curve; missing values break it.
        label: written at its end and in the legend; empty: neither.
        colour: hex.
        dash: drawn dashed.
        marker: points instead of a line.
        symbol: of the points: ``dot``, ``ring`` or ``triangle``, an open one.
        low, high: the band's edges.
    """

    x: ArrayLike
    y: ArrayLike
    label: str
    colour: str
    dash: bool = False
    marker: bool = False
    symbol: str = "dot"
    low: ArrayLike | None = None
    high: ArrayLike | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title, x_label, y_label: words.
        lines: what is drawn.
        y_log: whether y is logarithmic.
        level: of a dotted line across.
        ticks: words in place of the numbers 0, 1, 2, … along x.
    """

    title: str
    lines: Sequence[Line]
    y_label: str
    x_label: str = "iteration"
    y_log: bool = True
    level: float | None = None
    ticks: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """Panels in a grid, row by row."""

    title: str
    panels: Sequence[Panel]
    columns: int = 2
    note: str = ""
    size: tuple[float, float] = field(default=(6.4, 4.2))


def to_matplotlib(figure: Figure) -> mpl_figure.Figure:
    """The figure for a PNG file, lines labelled at their ends."""
    columns = max(1, min(figure.columns, len(figure.panels)))
    rows = max(1, -(-len(figure.panels) // columns))
    size = (figure.size[0] * columns, figure.size[1] * rows)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = mpl_figure.Figure(figsize=size, dpi=130, layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False).flatten()
        for ax, panel in zip(axes, figure.panels, strict=False):
            _draw_panel(ax, panel)
        for ax in axes[len(figure.panels) :]:
            ax.set_axis_off()
        drawn.suptitle(figure.title, fontsize=13)
        if figure.note:
            drawn.supxlabel(figure.note, fontsize=8, color="#555555")
    return drawn


def _draw_panel(ax: Any, panel: Panel) -> None:
    ends = []
    for line in panel.lines:
        x, y = _thin(line.x), _thin(line.y)
        style: dict[str, Any] = {}
        if line.marker:
            face = line.colour if line.symbol == "dot" else "none"
            style = {"linestyle": "none", "marker": SYMBOLS[line.symbol][0], "markersize": 4}
            style["markerfacecolor"] = face
        dash = "--" if line.dash else "-"
        ax.plot(x, y, **{"linestyle": dash, "linewidth": 1.4, "color": line.colour, **style})
        if line.low is not None and line.high is not None:
            ax.fill_between(
                x, _thin(line.low), _thin(line.high), color=line.colour, alpha=0.15, linewidth=0
            )
        seen = np.flatnonzero(np.isfinite(y))
        if line.label and len(seen):
            ends.append((line, x[seen[-1]], float(y[seen[-1]])))
    ax.set_yscale("log" if panel.y_log else "linear")
    if panel.level is not None:
        ax.axhline(panel.level, color="#888888", linewidth=0.8, linestyle=":")
    ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    ax.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    if panel.ticks:
        ax.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=30, ha="right")
        ax.set_xlim(-0.5, len(panel.ticks) - 0.5)
    elif all(float(v).is_integer() for line in panel.lines for v in np.asarray(line.x, np.float64)):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.autoscale_view()  # else the limits, and with them the transform, are not up to date
    transform = ax.transData + ax.transAxes.inverted()
    heights = [transform.transform((x, y))[1] for _, x, y in ends]
    for (line, _, _), height in zip(ends, _spread(heights, 0.055), strict=True):
        ax.annotate(
            line.label,
            xy=(1.01, height),
            xycoords="axes fraction",
            color=line.colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def to_plotly(figure: Figure) -> go.Figure:
    """The figure for a browser, with a legend that switches arms in all panels."""
    columns = max(1, min(figure.columns, len(figure.panels)))
    rows = max(1, -(-len(figure.panels) // columns))
    drawn = make_subplots(rows, columns, subplot_titles=[p.title for p in figure.panels])
    named: set[str] = set()
    for i, panel in enumerate(figure.panels):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        for line in panel.lines:
            for trace in _traces(line, first=line.label not in named):
                drawn.add_trace(trace, **at)
            named.add(line.label)
        if panel.level is not None:
            drawn.add_hline(panel.level, line={"dash": "dot", "color": "#888888", "width": 1}, **at)
        words = {"tickvals": [*range(len(panel.ticks))], "ticktext": [*panel.ticks]}
        drawn.update_xaxes(title=panel.x_label, **(words if panel.ticks else {}), **at)
        drawn.update_yaxes(
            title=panel.y_label,
            type="log" if panel.y_log else "linear",
            exponentformat="power",
            **at,
        )
    drawn.update_layout(
        title=figure.title, template="plotly_white", height=420 * rows, width=620 * columns
    )
    return drawn


def _traces(line: Line, *, first: bool) -> list[go.Scatter]:
    x, y = _thin(line.x), _thin(line.y)
    group = {"legendgroup": line.label, "name": line.label}
    traces = []
    if line.low is not None and line.high is not None:
        edge = {"x": x, "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, **group}
        fill = "rgba({},{},{},0.15)".format(*(int(line.colour[i : i + 2], 16) for i in (1, 3, 5)))
        traces.append(go.Scatter(y=_thin(line.low), **edge))
        traces.append(go.Scatter(y=_thin(line.high), fill="tonexty", fillcolor=fill, **edge))
    style = {"color": line.colour, "width": 1.6, "dash": "dash" if line.dash else "solid"}
    traces.append(
        go.Scatter(
            x=x,
            y=y,
            mode="markers" if line.marker else "lines",
            line=style,
            marker={"color": line.colour, "symbol": SYMBOLS[line.symbol][1]},
            showlegend=first and bool(line.label),
            **group,
        )
    )
    return traces


def _thin(values: ArrayLike) -> NDArray[np.float64]:
    """At most :data:`MAX_POINTS` values, evenly taken, the last one kept."""
    array = np.asarray(values, dtype=np.float64)
    step = -(-len(array) // MAX_POINTS)
    if step <= 1:
        return array
    index = np.arange(0, len(array), step)
    return array[np.append(index, len(array) - 1) if index[-1] != len(array) - 1 else index]


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move label heights apart, in order, by as little as keeps ``gap`` between them."""
    order = np.argsort(heights, kind="stable")
    placed = np.asarray(heights, dtype=np.float64).copy()
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    excess = max(0.0, placed[order[-1]] - 1.0) if len(order) else 0.0
    if excess:
        placed -= excess
        for upper, lower in pairwise(order[::-1]):
            placed[lower] = min(placed[lower] + excess, placed[upper] - gap)
    return [float(h) for h in placed]
