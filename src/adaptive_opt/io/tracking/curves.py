"""Histories, thinned to as many points as a browser draws at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CURVES", "final_values", "history_curves", "share_of"]

CURVES = ("train_loss", "valid_loss")
"""Columns of a history that are tracked."""

CLOCKS = ("gradient_equivalents", "device_seconds")

Points = list[tuple[int, float]]


def share_of(iteration: int, length: int, points: int) -> int:
    """The part of a run that an iteration is in, of ``points`` equal ones and the very end.

    Of each part the first value of a column is kept: ``points`` + 1 of them at most.

    Example:
        >>> [share_of(t, 100, 4) for t in (0, 24, 25, 99, 100)]
        [0, 0, 1, 3, 4]
    """
    return iteration * points // max(1, length)


def history_curves(
    history: pd.DataFrame, length: int, points: int
) -> Iterator[tuple[int, str, Points]]:
    """Seed, column and thinned curve of every run of a finished history.

    Args:
        history: of the runs of an arm.
        length: iterations of a run.
        points: parts that one is kept of each.
    """
    columns = [name for name in CURVES if name in history]
    for seed, rows in history.groupby("seed", sort=True):
        rows = rows.sort_values("iteration")
        steps = rows["iteration"].to_numpy()
        for name in columns:
            values = rows[name].to_numpy()
            present = np.isfinite(values)
            kept = _first_of_each(steps[present], length, points)
            curve = zip(steps[present][kept].tolist(), values[present][kept].tolist(), strict=True)
            yield int(str(seed)), name, list(curve)


def _first_of_each(steps: Any, length: int, points: int) -> Any:
    shares = share_of(steps, length, points)
    return np.flatnonzero(np.diff(shares, prepend=-1))


def final_values(history: pd.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    """Seed, and what it had cost and was worth on test data at the end."""
    names = [n for n in history if n in CLOCKS or str(n).startswith("test_")]
    for seed, rows in history.groupby("seed", sort=True):
        last = rows.sort_values("iteration")[names].iloc[-1]
        yield int(str(seed)), dict(_finite(last.items()))


def _finite(values: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, float]]:
    for name, value in values:
        if np.isfinite(value):
            yield str(name), float(value)
