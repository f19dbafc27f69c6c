"""Values over a plane, as contours or as coloured cells, drawn by Plotly or Matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.figure as mpl_figure
import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from .template import add_caption

__all__ = ["Map", "MapFigure", "maps_to_matplotlib", "maps_to_plotly"]

GAP = 0.16
"""Space for a colour bar between two maps in Plotly, as a share of the figure's width."""

LEVELS = 18
DIVERGING = ("RdBu_r", "RdBu_r")
SEQUENTIAL = ("viridis", "Viridis")
"""Matplotlib and Plotly names of the colour maps."""


@dataclass(frozen=True)
class Map:
    """A table of numbers, drawn as colours.

    Attributes:
        title, x_label, y_label: texts.
        x, y: coordinates of the columns and rows.
        z: ``[rows, columns]``; NaN is left white.
        marks: points to mark, as (x, y, label).
    """

    title: str
    x: ArrayLike
    y: ArrayLike
    z: ArrayLike
    x_label: str
    y_label: str
    marks: Sequence[tuple[float, float, str]] = ()


@dataclass(frozen=True)
class MapFigure:
    """Maps in a grid.

    Attributes:
        title: title above all maps.
        maps: maps to draw; without any, the figure shows ``missing``.
        z_label: label of the colour bar.
        ticks: ticks of the colour bar, as (value, label); default: automatic.
        columns: number of columns of the grid.
        contours: draw contours, with one colour range per map. Otherwise draw one cell per number,
            rows from the top, with the same colour range for all maps.
        caption: one to three sentences: what is drawn, and what to look for.
        missing: text of a figure without maps.
    """

    title: str
    maps: Sequence[Map]
    z_label: str
    ticks: Sequence[tuple[float, str]] = ()
    columns: int = 2
    contours: bool = True
    caption: str = ""
    missing: str = "no data"


def _grid(figure: MapFigure) -> tuple[int, int]:
    columns = max(1, min(figure.columns, len(figure.maps)))
    return max(1, -(-len(figure.maps) // columns)), columns


def _limit(figure: MapFigure) -> float:
    """Largest absolute value of all maps; colours range from −limit to limit."""
    sizes = [np.nanmax(np.abs(np.asarray(m.z, float)), initial=0) for m in figure.maps]
    return float(max(sizes, default=1) or 1)


def maps_to_matplotlib(figure: MapFigure) -> mpl_figure.Figure:
    """Draw with Matplotlib."""
    rows, columns = _grid(figure)
    with mpl.rc_context({"font.size": 10}):
        drawn = mpl_figure.Figure(figsize=(6 * columns, 4.4 * rows), dpi=130, layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False).flatten()
        limit = _limit(figure)
        for ax, one in zip(axes, figure.maps, strict=False):
            if figure.contours:
                shown = ax.contourf(one.x, one.y, one.z, levels=LEVELS, cmap=SEQUENTIAL[0])
                ax.contour(
                    one.x,
                    one.y,
                    one.z,
                    levels=LEVELS,
                    colors="white",
                    linewidths=0.4,
                    linestyles="solid",
                )
            else:
                shown = _rectangles(ax, one, limit)
            for x, y, word in one.marks:
                ax.plot([x], [y], marker="+", color="#D55E00", markersize=9)
                ax.annotate(word, (x, y), xytext=(5, 5), textcoords="offset points", color="white")
            ax.set(title=one.title, xlabel=one.x_label, ylabel=one.y_label)
            bar = drawn.colorbar(shown, ax=ax, label=figure.z_label)
            if figure.ticks:
                bar.set_ticks([v for v, _ in figure.ticks], labels=[w for _, w in figure.ticks])
        for ax in axes[len(figure.maps) :]:
            ax.set_axis_off()
        if not figure.maps:
            axes[0].text(0.5, 0.5, figure.missing, ha="center", va="center", color="#555555")
        drawn.suptitle(figure.title, fontsize=13)
        add_caption(drawn, figure.caption)
    return drawn


def _rectangles(ax: Any, one: Map, limit: float) -> Any:
    """Draw one cell per number; columns have equal width, the first row is on top."""
    z = np.ma.masked_invalid(np.asarray(one.z, dtype=np.float64))
    shown = ax.imshow(
        z, aspect="auto", cmap=DIVERGING[0], vmin=-limit, vmax=limit, interpolation="nearest"
    )
    x = np.asarray(one.x)
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), 7)).round().astype(int))
    ax.set_xticks(chosen, [f"{x[i]:,g}" for i in chosen])
    return shown


def maps_to_plotly(figure: MapFigure) -> go.Figure:
    """Draw with Plotly; the caption is in ``layout.meta["caption"]``."""
    rows, columns = _grid(figure)
    drawn = make_subplots(
        rows, columns, subplot_titles=[m.title for m in figure.maps], horizontal_spacing=GAP
    )
    limit = _limit(figure)
    for i, one in enumerate(figure.maps):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        bar: dict[str, Any] = {"title": {"text": figure.z_label, "side": "right"}}
        bar |= {"len": 0.8 / rows, "yanchor": "middle", "y": 1 - (i // columns + 0.5) / rows}
        right = (i % columns + 1) * (1 + GAP) / columns - GAP
        bar |= {"x": right + 0.005, "xanchor": "left", "thickness": 12}
        if figure.ticks:
            bar |= {
                "tickvals": [v for v, _ in figure.ticks],
                "ticktext": [w for _, w in figure.ticks],
            }
        z = np.asarray(one.z, dtype=np.float64)
        if figure.contours:
            drawn.add_trace(
                go.Contour(
                    x=one.x, y=one.y, z=z, ncontours=LEVELS, colorscale=SEQUENTIAL[1], colorbar=bar
                ),
                **at,
            )
        else:
            names = [f"{v:,g}" for v in np.asarray(one.x)]
            drawn.add_trace(
                go.Heatmap(
                    x=names, y=one.y, z=z, zmin=-limit, zmax=limit, colorscale=DIVERGING[1],
                    colorbar=bar, showscale=i == 0,
                ),
                **at,
            )  # fmt: skip
            drawn.update_xaxes(type="category", **at)
            drawn.update_yaxes(autorange="reversed", **at)
        drawn.update_xaxes(title=one.x_label, **at)
        drawn.update_yaxes(title=one.y_label, **at)
        for x, y, word in one.marks:
            drawn.add_annotation(x=x, y=y, text=word, showarrow=True, font={"color": "white"}, **at)
    if not figure.maps:
        drawn.add_annotation(text=figure.missing, showarrow=False, font={"size": 14})
    drawn.update_layout(
        title=figure.title,
        template="plotly_white",
        height=440 * rows,
        width=620 * columns,
        meta={"caption": figure.caption},
    )
    return drawn
