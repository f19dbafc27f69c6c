"""Figures as small pictures."""

from __future__ import annotations

from io import BytesIO

import matplotlib.figure as mpl_figure
from PIL import Image

__all__ = ["to_png"]


def to_png(drawn: mpl_figure.Figure, dpi: int = 80) -> bytes:
    """A figure as a PNG file small enough to be kept in a notebook.

    Args:
        drawn: with Matplotlib.
        dpi: dots per inch.
    """
    full, small = BytesIO(), BytesIO()
    drawn.savefig(full, format="png", dpi=dpi)
    with Image.open(full) as picture:
        # A quarter of the bytes of true colour; a median cut would lose the colour of thin lines.
        few = picture.convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
        few.save(small, format="png", optimize=True)
    return small.getvalue()
