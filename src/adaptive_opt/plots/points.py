"""Positions of points and labels, for both renderers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["MAX_POINTS", "is_single", "outline", "spread", "thin"]

MAX_POINTS = 600
"""Largest number of points of a drawn line."""


def is_single(y: NDArray[np.float64]) -> bool:
    """Whether a curve has a single finite value, which a line would not show."""
    return int(np.isfinite(y).sum()) == 1


def outline(x: Any, low: Any, high: Any) -> tuple[list[Any], list[Any]]:
    """Outline of a band: one closed polygon for each part without gaps, separated by None."""
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    places = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    x = np.asarray(x)
    around: tuple[list[Any], list[Any]] = ([], [])
    for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
        around[0].extend([*x[run], *x[run[::-1]], None])
        around[1].extend([*low[run], *high[run[::-1]], None])
    return around


def thin(values: ArrayLike) -> NDArray[np.float64]:
    """Keep at most :data:`MAX_POINTS` evenly spaced values, and the last one."""
    array = np.asarray(values, dtype=np.float64)
    step = -(-len(array) // MAX_POINTS)
    if step <= 1:
        return array
    index = np.arange(0, len(array), step)
    return array[np.append(index, len(array) - 1) if index[-1] != len(array) - 1 else index]


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move label heights apart as little as possible, so that they differ by at least ``gap``.

    The order is kept. Heights are fractions of the axes; none exceeds 1.
    """
    order = np.argsort(heights, kind="stable")
    placed = np.asarray(heights, dtype=np.float64).copy()
    for lower, upper in pairwise(order):
        placed[upper] = max(placed[upper], placed[lower] + gap)
    excess = max(0.0, placed[order[-1]] - 1.0) if len(order) else 0.0
    if excess:
        placed -= excess
        for upper, lower in pairwise(order[::-1]):
            placed[lower] = min(placed[lower] + excess, placed[upper] - gap)
    return [float(h) for h in placed]
