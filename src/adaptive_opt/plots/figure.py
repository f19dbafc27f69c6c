"""A figure as data: panels of lines and bands, drawn by Plotly or Matplotlib.

Reports and kedro-viz use Plotly, PNG files and notebooks Matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import matplotlib.figure as mpl_figure
import numpy as np
import plotly.graph_objects as go
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from .colours import DASHES
from .picture import to_png
from .points import is_single, outline, spread, thin
from .template import add_caption, lay_out, white_background

__all__ = ["Counts", "Figure", "Line", "Panel", "to_matplotlib", "to_plotly"]

SYMBOLS = {
    "dot": ("o", "circle"),
    "ring": ("o", "circle-open"),
    "triangle": ("^", "triangle-up-open"),
}
"""Matplotlib and Plotly names of the symbols of :class:`Line`."""


@dataclass(frozen=True)
class Line:
    """A curve with an optional band.

    Attributes:
        x, y: coordinates; NaN makes a gap.
        label: text at the end of the curve and in the legend; empty: none.
        colour: hex colour.
        dash: key of :data:`.colours.DASHES`.
        marker: draw points instead of a line.
        symbol: ``dot``, ``ring`` or ``triangle`` (open).
        low, high: lower and upper edge of the band.
    """

    x: ArrayLike
    y: ArrayLike
    label: str
    colour: str
    dash: str = "solid"
    marker: bool = False
    symbol: str = "dot"
    low: ArrayLike | None = None
    high: ArrayLike | None = None


@dataclass(frozen=True)
class Counts:
    """A table of counts, drawn as discs with the number inside; zeros are left out.

    Attributes:
        rows: label of each row, from the top.
        colours: hex colour of each row.
        columns: label of each column.
        numbers: ``[rows, columns]``, integers.
    """

    rows: Sequence[str]
    colours: Sequence[str]
    columns: Sequence[str]
    numbers: ArrayLike


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title, x_label, y_label: texts.
        lines: curves to draw.
        y_log: whether the y axis is logarithmic.
        level: height of a dotted horizontal line.
        counts: table to draw instead of the lines.
        x_log: whether the x axis is logarithmic.
        ticks: labels for the positions 0, 1, 2, … on the x axis.
    """

    title: str
    lines: Sequence[Line]
    y_label: str
    x_label: str = "iteration"
    y_log: bool = True
    level: float | None = None
    counts: Counts | None = None
    x_log: bool = False
    ticks: Sequence[str] = ()

    @property
    def empty(self) -> bool:
        """Whether the panel has no finite value to draw."""
        shown = [v for line in self.lines for v in np.asarray(line.y, dtype=np.float64)]
        return self.counts is None and not np.isfinite(shown).any()


@dataclass(frozen=True)
class Figure:
    """Panels in a grid, row by row.

    Attributes:
        title: title above all panels.
        panels: panels to draw; without any, the figure shows ``missing``.
        columns: number of columns of the grid.
        caption: one to three sentences: what is drawn, and what to look for.
        size: width and height of a panel in inches; panels with many labels are higher.
        missing: text in place of a panel without data.
    """

    title: str
    panels: Sequence[Panel] = field(repr=False)
    columns: int = 2
    caption: str = ""
    size: tuple[float, float] = field(default=(6.4, 4.2))
    missing: str = "no data for these arms"

    @property
    def height(self) -> float:
        """Height of a panel in inches, with one line for each label."""
        named = [sum(bool(line.label) for line in p.lines) for p in self.panels]
        rows = [len(p.counts.rows) for p in self.panels if p.counts is not None]
        lines, discs = 1.2 + 0.2 * max(named, default=0), 1.2 + 0.25 * max(rows, default=0)
        return max(self.size[1], lines, discs)

    def _repr_png_(self) -> bytes:
        return to_png(to_matplotlib(self))


def to_matplotlib(figure: Figure) -> mpl_figure.Figure:
    """Draw with Matplotlib; labels stand at the ends of their lines."""
    columns = max(1, min(figure.columns, len(figure.panels)))
    rows = max(1, -(-len(figure.panels) // columns))
    size = (figure.size[0] * columns, figure.height * rows)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = mpl_figure.Figure(figsize=size, dpi=130, layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False).flatten()
        for ax, panel in zip(axes, figure.panels, strict=False):
            if panel.counts is not None:
                pitch = (figure.height - 1.2) / max(1, len(panel.counts.rows))
                _draw_counts(ax, panel, panel.counts, min(26.0, 68 * pitch))
            elif panel.empty:
                ax.set(title=panel.title, xticks=[], yticks=[])
            else:
                _draw_panel(ax, panel, gap=0.17 / (figure.height - 1.0))
            if panel.empty:
                _write_centred(ax, figure.missing)
        if not figure.panels:
            _write_centred(axes[0], figure.missing)
        for ax in axes[len(figure.panels) :]:
            ax.set_axis_off()
        drawn.suptitle(figure.title, fontsize=13)
        add_caption(drawn, figure.caption)
        lay_out(drawn)
    return drawn


FEW = 8
"""Largest number of x values that are all labelled on a logarithmic axis."""


class _PlainFormatter(LogFormatter):
    """Formats 2.4, where Matplotlib's own formatter writes 2.4 × 10⁰."""

    def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
        del vmin, vmax
        return f"{x:g}"


def _matplotlib_dash(line: Line) -> Any:
    return (0, DASHES[line.dash]) if DASHES[line.dash] else "-"


def _write_centred(ax: Any, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#555555")


def _draw_counts(ax: Any, panel: Panel, counts: Counts, diameter: float) -> None:
    for row, column, number, size in _discs(counts):
        colour = counts.colours[row]
        area = diameter**2 * size
        ax.scatter([column], [row], s=area, color=colour, linewidth=0, clip_on=False)
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": _readable_on(colour)}
        ax.annotate(str(number), (column, row), **style)
    ax.set_xticks(range(len(counts.columns)), counts.columns)
    ax.set_yticks(range(len(counts.rows)), counts.rows)
    ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    ax.set_xlim(-0.6, max(len(counts.columns), 1) - 0.4)
    ax.set_ylim(len(counts.rows) - 0.4, -0.6)
    ax.tick_params(axis="x", labelrotation=35, labelsize=8)
    ax.grid(True, color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)


def _discs(counts: Counts) -> list[tuple[int, int, int, float]]:
    """Row, column, number and relative area of each disc; 1 is the largest area.

    Areas are at least 0.45, so that the number fits into the disc.
    """
    numbers = np.asarray(counts.numbers, dtype=np.int64)
    largest = max(1, numbers.max(initial=0))
    seen = zip(*np.nonzero(numbers), strict=True)
    return [
        (int(r), int(c), int(n := numbers[r, c]), 0.45 + 0.55 * float(n) / float(largest))
        for r, c in seen
    ]


def _readable_on(colour: str) -> str:
    """Black or white, depending on the luminance of the background."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def _draw_panel(ax: Any, panel: Panel, gap: float) -> None:
    ends = []
    alpha = min(0.15, 1.2 / max(1, len(panel.lines)))  # or many bands would hide each other
    for line in panel.lines:
        x, y = thin(line.x), thin(line.y)
        style = {"linestyle": _matplotlib_dash(line), "linewidth": 1.4, "color": line.colour}
        if line.marker or is_single(y):
            face = line.colour if line.symbol == "dot" else "none"
            style |= {"linestyle": "none", "marker": SYMBOLS[line.symbol][0], "markersize": 4}
            style["markerfacecolor"] = face
        ax.plot(x, y, **style)
        if line.low is not None and line.high is not None:
            ax.fill_between(
                x, thin(line.low), thin(line.high), color=line.colour, alpha=alpha, linewidth=0
            )
        seen = np.flatnonzero(np.isfinite(y))
        if line.label and len(seen):
            ends.append((line, x[seen[-1]], float(y[seen[-1]])))
    ax.set_yscale("log" if panel.y_log else "linear")
    low, high = ax.get_ylim()
    if panel.y_log and low >= 1e-3 and high <= min(1e5, 100 * low):  # few powers of ten
        ax.yaxis.set_major_formatter(_PlainFormatter(labelOnlyBase=False))
        ax.yaxis.set_minor_formatter(_PlainFormatter(minor_thresholds=(1, 0.4)))
    ax.set_xscale("log" if panel.x_log else "linear")
    if panel.x_log:
        ax.xaxis.set_minor_formatter(NullFormatter())  # labels such as "3 × 10³" would overlap
    if panel.level is not None:
        ax.axhline(panel.level, color="#888888", linewidth=0.8, linestyle=":")
    ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    ax.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    at = {float(v) for line in panel.lines for v in np.asarray(line.x, np.float64)}
    if panel.ticks:
        ax.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=30, ha="right")
        ax.set_xlim(-0.5, len(panel.ticks) - 0.5)
    elif len(at) == 1:
        ax.set_xticks(list(at))
    elif panel.x_log and len(at) <= FEW and min(at) >= 1:
        ax.set_xticks(sorted(at), [f"{v:,.0f}" for v in sorted(at)])
        ax.xaxis.set_minor_locator(NullLocator())
    elif not panel.x_log and all(v.is_integer() for v in at):
        ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    ax.autoscale_view()  # updates the limits, and with them the transform used below
    transform = ax.transData + ax.transAxes.inverted()
    heights = [transform.transform((x, y))[1] for _, x, y in ends]
    _label_lines([line for line, _, _ in ends], ax, spread(heights, gap))


def _label_lines(lines: Sequence[Line], ax: Any, heights: Sequence[float]) -> None:
    """Write labels beside the axes; if dashes differ, after a sample of each line."""
    dashed = any(line.dash != "solid" for line in lines)
    for line, height in zip(lines, heights, strict=True):
        if dashed:
            sample = Line2D([1.01, 1.1], [height, height], color=line.colour, linewidth=1.4)
            sample.set(transform=ax.transAxes, clip_on=False, linestyle=_matplotlib_dash(line))
            ax.add_artist(sample)
        ax.annotate(
            line.label,
            xy=(1.115 if dashed else 1.01, height),
            xycoords="axes fraction",
            color=line.colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


@white_background()
def to_plotly(figure: Figure) -> go.Figure:
    """Draw with Plotly; the legend switches an arm on and off in all panels.

    The caption is stored in ``layout.meta["caption"]``.
    """
    columns = max(1, min(figure.columns, len(figure.panels)))
    rows = max(1, -(-len(figure.panels) // columns))
    drawn = make_subplots(rows, columns, subplot_titles=[p.title for p in figure.panels])
    labelled: set[str] = set()
    for i, panel in enumerate(figure.panels):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        if panel.counts is not None:
            drawn.add_trace(_count_trace(panel.counts), **at)
            order = {"categoryorder": "array", **at}
            names = list(panel.counts.columns), list(panel.counts.rows)
            drawn.update_xaxes(title=panel.x_label, categoryarray=names[0], **order)
            drawn.update_yaxes(autorange="reversed", categoryarray=names[1], **order)
            continue
        if panel.empty:
            where = {"xref": "x domain", "yref": "y domain", "x": 0.5, "y": 0.5, **at}
            drawn.add_annotation(text=figure.missing, showarrow=False, **where)
            continue
        for line in panel.lines:
            for trace in _traces(line, first=line.label not in labelled):
                drawn.add_trace(trace, **at)
            labelled.add(line.label)
        if panel.level is not None:
            drawn.add_hline(panel.level, line={"dash": "dot", "color": "#888888", "width": 1}, **at)
        kind: dict[str, Any] = {}
        if panel.x_log:
            kind = {"type": "log", "exponentformat": "power"}
        if panel.ticks:
            kind |= {"tickvals": [*range(len(panel.ticks))], "ticktext": [*panel.ticks]}
        drawn.update_xaxes(title=panel.x_label, **kind, **at)
        drawn.update_yaxes(
            title=panel.y_label,
            type="log" if panel.y_log else "linear",
            exponentformat="power",
            **at,
        )
    if not figure.panels:
        drawn.add_annotation(text=figure.missing, showarrow=False, font={"size": 14})
    width, height = 97 * figure.size[0] * columns, 100 * figure.height * rows
    drawn.update_layout(
        title=figure.title, height=height, width=width, meta={"caption": figure.caption}
    )
    return drawn


def _count_trace(counts: Counts) -> go.Scatter:
    discs = _discs(counts)
    colours = [counts.colours[row] for row, *_ in discs]
    return go.Scatter(
        x=[counts.columns[c] for _, c, _, _ in discs],
        y=[counts.rows[r] for r, *_ in discs],
        text=[str(n) for _, _, n, _ in discs],
        mode="markers+text",
        marker={"size": [30 * size**0.5 for *_, size in discs], "color": colours, "opacity": 1},
        textfont={"color": [_readable_on(c) for c in colours]},
        showlegend=False,
    )


def _traces(line: Line, *, first: bool) -> list[go.Scatter]:
    x, y = thin(line.x), thin(line.y)
    group = {"legendgroup": line.label, "name": line.label}
    traces = []
    if line.low is not None and line.high is not None:
        fill = "rgba({},{},{},0.15)".format(*(int(line.colour[i : i + 2], 16) for i in (1, 3, 5)))
        around_x, around_y = outline(x, thin(line.low), thin(line.high))
        traces.append(
            go.Scatter(
                x=around_x, y=around_y, mode="lines", line={"width": 0}, fill="toself",
                fillcolor=fill, hoverinfo="skip", showlegend=False, **group,
            )
        )  # fmt: skip
    strokes = ",".join(f"{1.6 * length:g}px" for length in DASHES[line.dash])
    style = {"color": line.colour, "width": 1.6, "dash": strokes or "solid"}
    traces.append(
        go.Scatter(
            x=x,
            y=y,
            mode="markers" if line.marker or is_single(y) else "lines",
            line=style,
            marker={"color": line.colour, "symbol": SYMBOLS[line.symbol][1]},
            showlegend=first and bool(line.label),
            **group,
        )
    )
    return traces
