"""A figure shows what it is of: labels stand at the ends of their lines."""

from __future__ import annotations

import numpy as np
import pytest

from adaptive_opt.plots.figure import Figure, Line, Panel, to_matplotlib, to_plotly


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
