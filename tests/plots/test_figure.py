"""Both renderers draw lines, labels, discs, bands and captions correctly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from adaptive_opt.plots.figure import (
    Counts,
    Figure,
    Line,
    Panel,
    to_matplotlib,
    to_plotly,
)


@pytest.mark.parametrize(("y_log", "low", "high"), [(False, 0.2, 0.8), (True, 1e-4, 1e2)])
def test_labels_stand_at_the_ends_of_their_lines(y_log: bool, low: float, high: float) -> None:
    x = np.arange(10.0)
    lines = [
        Line(x, np.linspace(1.0, low, 10), "low", "#0072b2"),
        Line(x, np.linspace(1.0, high, 10), "high", "#d55e00"),
    ]
    drawn = to_matplotlib(Figure("", [Panel("", lines, "y", y_log=y_log)]))
    drawn.canvas.draw()  # type: ignore[attr-defined]  # the base canvas of a bare figure draws
    ax = drawn.axes[0]
    for text, value in zip(ax.texts, (low, high), strict=True):
        in_axes = (ax.transData + ax.transAxes.inverted()).transform((9.0, value))[1]
        assert text.xy[1] == pytest.approx(in_axes, abs=0.01)  # type: ignore[attr-defined]


def test_both_renderers_show_the_same_lines() -> None:
    x = np.arange(2000.0)
    figure = Figure("title", [Panel("p", [Line(x, x**2 + 1, "square", "#0072b2")], "y")])
    (curve,) = to_plotly(figure).data
    (drawn,) = to_matplotlib(figure).axes[0].lines
    assert np.array_equal(curve.y, drawn.get_ydata())
    assert curve.y[-1] == 1999.0**2 + 1


def test_labels_never_overlap() -> None:
    x = np.arange(3.0)
    for number in (2, 8, 30):
        lines = [Line(x, x + 1 + i / 100, f"arm {i}", "#0072b2") for i in range(number)]
        drawn = to_matplotlib(Figure("", [Panel("", lines, "y")]))
        drawn.canvas.draw()  # type: ignore[attr-defined]
        boxes = [t.get_window_extent() for t in drawn.axes[0].texts]
        heights = sorted((box.y0, box.y1) for box in boxes)
        assert all(a[1] <= b[0] + 1.5 for a, b in pairwise(heights))
        assert heights[0][0] > 0
        assert heights[-1][1] < drawn.bbox.height


def test_counts_are_drawn_as_discs() -> None:
    counts = Counts(["A", "B"], ["#000000", "#56B4E9"], ["low", "high"], [[0, 16], [3, 0]])
    figure = Figure("", [Panel("", [], "", counts=counts)])
    ax = to_matplotlib(figure).axes[0]
    assert {(t.xy, t.get_text()) for t in ax.texts} == {((1, 0), "16"), ((0, 1), "3")}  # type: ignore[attr-defined]
    assert [t.get_color() for t in ax.texts] == ["#ffffff", "#000000"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is on top
    (trace,) = to_plotly(figure).data
    assert list(zip(trace.x, trace.y, trace.text, strict=True)) == [
        ("high", "A", "16"),
        ("low", "B", "3"),
    ]


@pytest.mark.parametrize("panels", [[], [Panel("p", [Line([], [], "a", "#000000")], "y")]])
def test_a_figure_without_data_shows_a_message(panels: list[Panel]) -> None:
    figure = Figure("", panels, missing="no arm clips")
    assert [t.get_text() for t in to_matplotlib(figure).axes[0].texts] == ["no arm clips"]
    assert "no arm clips" in [a.text for a in to_plotly(figure).layout.annotations]


def test_a_single_point_is_visible() -> None:
    figure = Figure("", [Panel("", [Line([0.0, 5.0], [2.0, np.nan], "a", "#000000")], "y")])
    assert to_matplotlib(figure).axes[0].lines[0].get_marker() == "o"
    assert to_plotly(figure).data[0].mode == "markers"


def test_captions_are_wrapped_in_png_and_stored_as_metadata_in_plotly() -> None:
    caption = "Lines are medians over seeds. " * 8
    panel = Panel("p", [Line([0.0, 1.0], [1.0, 2.0], "a", "#000000")], "y")
    figure = Figure("t", [panel], caption=caption)
    (text,) = [t for t in to_matplotlib(figure).texts if "medians" in t.get_text()]
    lines = text.get_text().split("\n")
    assert len(lines) > 1
    assert max(map(len, lines)) <= 6.4 * 14
    assert " ".join(lines) == caption.strip()
    assert to_plotly(figure).layout.meta["caption"] == caption


def test_a_plotly_band_has_no_markers_and_leaves_gaps_open():
    gap = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    line = Line(np.arange(5), gap, "one", "#000000", low=gap - 1, high=gap + 1)
    band, _ = to_plotly(Figure("t", [Panel("p", [line], "y", "x")])).data
    assert (band.mode, band.fill) == ("lines", "toself")
    assert list(band.x) == [0, 1, 1, 0, None, 3, 4, 4, 3, None]
    assert list(band.y) == [0, 1, 3, 2, None, 3, 4, 6, 5, None]
