"""Forest plot: ratios with confidence intervals on a logarithmic axis, one per row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import matplotlib.figure as mpl_figure
import plotly.graph_objects as go
from matplotlib.ticker import NullFormatter
from plotly.subplots import make_subplots

from .picture import to_png
from .template import add_caption, lay_out, white_background

__all__ = ["VERDICT_COLOURS", "Interval", "IntervalFigure", "IntervalPanel"]
__all__ += ["to_matplotlib", "to_plotly"]

VERDICT_COLOURS = {
    "faster": "#009E73",
    "slower": "#D55E00",
    "equivalent": "#0072B2",
    "undecided": "#777777",
    "failed": "#000000",
}
"""Colours of Okabe & Ito; the verdict is also written beside each row."""

WIDEST = 10_000.0
"""Largest factor on an axis; ratios beyond it are drawn as arrows at the edge."""


@dataclass(frozen=True)
class Interval:
    """One row: ratio, interval and verdict. An unknown lower end is 0, an unknown upper end inf."""

    label: str
    ratio: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class IntervalPanel:
    """One pair of axes: rows from the top; ratios within ``margin`` of 1 count as equivalent."""

    title: str
    rows: Sequence[Interval]
    margin: float
    x_label: str = "speed-up"


TICKS = {
    1.6: (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4),
    4.0: (0.25, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0),
    12.0: (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    200.0: (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    math.inf: (0.0001, 0.01, 1.0, 100.0, 10_000.0),
}
"""Ticks by the largest range of an axis (mean factor to either side of 1) that they suit."""


def _axis(panel: IntervalPanel) -> tuple[float, float, list[float]]:
    """Lower limit, upper limit and ticks; 1 is inside, limits are at most :data:`WIDEST` from 1."""
    ends = [e for r in panel.rows for e in (r.ratio, r.low, r.high) if 0 < e < math.inf]
    least = math.log(1.25 * (1 + panel.margin))
    below, above = (
        min(math.exp(1.1 * max([least, *(sign * math.log(e) for e in ends)])), WIDEST)
        for sign in (-1, 1)
    )
    ticks = next(ticks for limit, ticks in TICKS.items() if math.sqrt(below * above) <= limit)
    return 1 / below, above, [t for t in ticks if 1 / below <= t <= above]


@dataclass(frozen=True)
class IntervalFigure:
    """Panels with a title and a caption; notebooks show it as PNG."""

    title: str
    panels: Sequence[IntervalPanel] = field(repr=False)
    caption: str = ""

    def _repr_png_(self) -> bytes:
        return to_png(to_matplotlib(self))


def to_matplotlib(figure: IntervalFigure) -> mpl_figure.Figure:
    """Draw with Matplotlib, two panels per row."""
    panels = figure.panels
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    tallest = max([len(p.rows) for p in panels] or [1])
    size = (7.2 * columns, (1.3 + 0.28 * tallest) * rows + 0.6)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        drawn = mpl_figure.Figure(figsize=size, dpi=130, layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False).flatten()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, panel in zip(axes, panels, strict=False):
            low, high, ticks = _axis(panel)
            ax.axvspan(1 / (1 + panel.margin), 1 + panel.margin, color="#eeeeee", linewidth=0)
            ax.axvline(1, color="#888888", linewidth=0.8)
            for i, row in enumerate(panel.rows):
                colour = VERDICT_COLOURS[row.verdict]
                ends = [min(max(e, low), high) for e in (row.low, row.high)]
                ax.plot(ends, [i, i], color=colour, linewidth=1.8)
                at = min(max(row.ratio, low), high)
                shape = "o" if low <= row.ratio <= high else "<" if row.ratio < low else ">"
                ax.plot([at], [i], shape, color=colour, markersize=6)
                ax.annotate(
                    row.verdict, (1.02, i), xycoords=("axes fraction", "data"),
                    color=colour, va="center", fontsize=9, annotation_clip=False,
                )  # fmt: skip
            ax.set(xscale="log", xlim=(low, high), ylim=(len(panel.rows) - 0.4, -0.6))
            ax.set_yticks(range(len(panel.rows)), [r.label for r in panel.rows])
            ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.set_title(panel.title, fontsize=11)
            ax.set_xlabel(panel.x_label)
        drawn.suptitle(figure.title, fontsize=13)
        add_caption(drawn, figure.caption)
        lay_out(drawn)
    return drawn


def _symbol(row: Interval, low: float, high: float) -> str:
    if low <= row.ratio <= high:
        return "circle"
    return "triangle-left" if row.ratio < low else "triangle-right"


@white_background()
def to_plotly(figure: IntervalFigure) -> go.Figure:
    """Draw with Plotly, two panels per row; the caption is in ``layout.meta["caption"]``."""
    panels = figure.panels
    columns = min(2, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    drawn = make_subplots(
        rows, columns, subplot_titles=[p.title for p in panels], horizontal_spacing=0.22
    )
    for i, panel in enumerate(panels):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        low, high, ticks = _axis(panel)
        for word, colour in VERDICT_COLOURS.items():
            own = [r for r in panel.rows if r.verdict == word]
            if not own:
                continue
            ends = [(min(max(r.low, low), high), min(max(r.high, low), high)) for r in own]
            drawn.add_trace(
                go.Scatter(
                    x=[min(max(r.ratio, low), high) for r in own],
                    y=[r.label for r in own],
                    hovertext=[f"{r.ratio:.3g} ({r.low:.3g} to {r.high:.3g})" for r in own],
                    hoverinfo="y+text",
                    error_x={
                        "array": [max(0.0, e[1] - r.ratio) for r, e in zip(own, ends, strict=True)],
                        "arrayminus": [
                            max(0.0, r.ratio - e[0]) for r, e in zip(own, ends, strict=True)
                        ],
                    },
                    mode="markers",
                    marker={
                        "color": colour,
                        "size": 9,
                        "symbol": [_symbol(r, low, high) for r in own],
                    },
                    name=word,
                    legendgroup=word,
                    showlegend=word not in {t.name for t in drawn.data},
                ),
                **at,
            )
        band = (1 / (1 + panel.margin), 1 + panel.margin)
        drawn.add_vrect(*band, fillcolor="#eeeeee", layer="below", line_width=0, **at)
        drawn.add_vline(1, line={"color": "#888888", "width": 1}, **at)
        drawn.update_xaxes(
            type="log",
            range=[math.log10(low), math.log10(high)],
            tickvals=ticks,
            title=panel.x_label,
            **at,
        )
        order = [r.label for r in panel.rows]
        drawn.update_yaxes(categoryorder="array", categoryarray=order[::-1], **at)
    tallest = max([len(p.rows) for p in panels] or [1])
    height = (140 + 26 * tallest) * rows + 60
    drawn.update_layout(title=figure.title, height=height, meta={"caption": figure.caption})
    return drawn
