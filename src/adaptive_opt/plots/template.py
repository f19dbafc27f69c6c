"""What figures have in common, and how they are made in less time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.figure as mpl_figure
import plotly.io as pio

__all__ = ["lay_out", "white_background"]


@contextmanager
def white_background() -> Iterator[None]:
    """Plotly figures made inside are on white.

    By Plotly's default, which is put back after: a template that a figure is given later is
    checked key by key, which takes longer than all the rest of the figure. So is a default that
    is set in public.
    """
    before = pio.templates._default
    pio.templates._default = "plotly_white"
    try:
        yield
    finally:
        pio.templates._default = before


def lay_out(drawn: mpl_figure.Figure) -> None:
    """Give the panels of a Matplotlib figure their places for good.

    A figure that still has a layout engine when it is saved is drawn once for nothing before.
    """
    engine = drawn.get_layout_engine()
    if engine is not None:
        engine.execute(drawn)
        drawn.set_layout_engine(None)
