"""Values over a plane: contours of a loss, or a picture of spectra; by Plotly or by Matplotlib."""

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

__all__ = ["Map", "MapFigure", "maps_to_matplotlib", "maps_to_plotly"]

GAP = 0.16
"""Between two maps for a browser, of the width of all: a bar of colours stands there."""

LEVELS = 18
DIVERGING = ("RdBu_r", "RdBu_r")
SEQUENTIAL = ("viridis", "Viridis")
"""Colour maps, as Matplotlib and Plotly call them."""


@dataclass(frozen=True)
class Map:
    """A table of numbers as colours.

    Attributes:
        title, x_label, y_label: words.
        x, y: where its columns and rows are.
        z: ``[rows, columns]``; missing values are left white.
        marks: points to mark, as (x, y, word).
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
    """Maps in a grid, each with a colour bar of its own or all with one.

    Attributes:
        title: above all.
        maps: what is drawn; none: a figure that says so.
        z_label: what the colours are.
        ticks: of the colour bar, value and word; none: as it comes.
        columns: of the grid.
        contours: lines of equal value; otherwise a rectangle for each number, rows from the top,
            and one range of colours for all.
        note: small print.
        missing: what is said where there is nothing.
    """

    title: str
    maps: Sequence[Map]
    z_label: str
    ticks: Sequence[tuple[float, str]] = ()
    columns: int = 2
    contours: bool = True
    note: str = ""
    missing: str = "there is nothing to be seen"


def _grid(figure: MapFigure) -> tuple[int, int]:
    columns = max(1, min(figure.columns, len(figure.maps)))
    return max(1, -(-len(figure.maps) // columns)), columns


def _range(figure: MapFigure) -> float:
    """Of all maps, symmetric around 0."""
    sizes = [np.nanmax(np.abs(np.asarray(m.z, float)), initial=0) for m in figure.maps]
    return float(max(sizes, default=1) or 1)


def maps_to_matplotlib(figure: MapFigure) -> mpl_figure.Figure:
    """The figure for a PNG file."""
    rows, columns = _grid(figure)
    with mpl.rc_context({"font.size": 10}):
        drawn = mpl_figure.Figure(figsize=(6 * columns, 4.4 * rows), dpi=130, layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False).flatten()
        limit = _range(figure)
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
        if figure.note:
            drawn.supxlabel(figure.note, fontsize=8, color="#555555")
    return drawn


def _rectangles(ax: Any, one: Map, limit: float) -> Any:
    """Columns of equal width, labelled by what they are; the first row on top."""
    z = np.ma.masked_invalid(np.asarray(one.z, dtype=np.float64))
    shown = ax.imshow(
        z, aspect="auto", cmap=DIVERGING[0], vmin=-limit, vmax=limit, interpolation="nearest"
    )
    x = np.asarray(one.x)
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), 7)).round().astype(int))
    ax.set_xticks(chosen, [f"{x[i]:,g}" for i in chosen])
    return shown


def maps_to_plotly(figure: MapFigure) -> go.Figure:
    """The figure for a browser."""
    rows, columns = _grid(figure)
    drawn = make_subplots(
        rows, columns, subplot_titles=[m.title for m in figure.maps], horizontal_spacing=GAP
    )
    limit = _range(figure)
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
        title=figure.title, template="plotly_white", height=440 * rows, width=620 * columns
    )
    return drawn
