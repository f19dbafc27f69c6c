"""Compact PNG files of Matplotlib figures."""

from __future__ import annotations

from io import BytesIO

import matplotlib.figure as mpl_figure
from PIL import Image

__all__ = ["to_png"]


def to_png(drawn: mpl_figure.Figure, dpi: int = 80) -> bytes:
    """Render a figure as a PNG file that is small enough for a notebook.

    Args:
        drawn: the Matplotlib figure.
        dpi: dots per inch.
    """
    full, small = BytesIO(), BytesIO()
    drawn.savefig(full, format="png", dpi=dpi)
    with Image.open(full) as picture:
        # 256 colours take a quarter of the bytes; a median cut would change colours of thin lines.
        few = picture.convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
        few.save(small, format="png", optimize=True)
    return small.getvalue()
