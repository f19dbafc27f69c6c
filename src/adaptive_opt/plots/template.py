"""Helpers that both kinds of figures share; they save drawing time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.figure as mpl_figure
import plotly.io as pio

__all__ = ["add_caption", "lay_out", "white_background"]

CHARACTERS_PER_INCH = 14
"""In a caption."""


@contextmanager
def white_background() -> Iterator[None]:
    """Give Plotly figures that are created inside a white background.

    This changes Plotly's private default template and restores it afterwards. Setting a template on
    a figure, or the default through Plotly's public attribute, validates the template key by key,
    which takes longer than drawing the figure.
    """
    before = pio.templates._default
    pio.templates._default = "plotly_white"
    try:
        yield
    finally:
        pio.templates._default = before


def add_caption(drawn: mpl_figure.Figure, caption: str) -> None:
    """Write a caption below a Matplotlib figure, wrapped to its width."""
    if caption:
        width = int(CHARACTERS_PER_INCH * drawn.get_figwidth())
        drawn.supxlabel(textwrap.fill(caption, width), fontsize=8, color="#555555")


def lay_out(drawn: mpl_figure.Figure) -> None:
    """Compute the layout of a Matplotlib figure once and remove its layout engine.

    Saving a figure that still has a layout engine would draw it twice.
    """
    engine = drawn.get_layout_engine()
    if engine is not None:
        engine.execute(drawn)
        drawn.set_layout_engine(None)
