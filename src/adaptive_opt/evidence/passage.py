"""First passages: when a loss first comes down to a level."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["first_passage", "losses_by_seed", "settling_iteration"]


def losses_by_seed(history: pd.DataFrame, column: str = "train_loss") -> pd.DataFrame:
    """Iterations as rows, seeds as columns; missing where a run had diverged."""
    return history.pivot(index="iteration", columns="seed", values=column).sort_index()


def first_passage(losses: pd.DataFrame, target: float) -> pd.Series:
    """Iteration at which each seed's loss is first at or below the target; inf if never.

    Args:
        losses: iterations × seeds, as from :func:`losses_by_seed`.
        target: the level.

    Example:
        >>> losses = pd.DataFrame({0: [3.0, 1.0, 2.0], 1: [3.0, 3.0, 3.0]}, index=[0, 10, 20])
        >>> first_passage(losses, 1.5).tolist()
        [10.0, inf]
    """
    reached = losses <= target
    return reached.idxmax().astype(float).where(reached.any(), np.inf)


def settling_iteration(losses: pd.Series, within: float) -> float:
    """Iteration at which a run's loss stops moving.

    The first at which the loss is within a factor ``within`` of its final level, the median
    over the last hundredth of the logged iterations. A run with a missing end never settles.

    Example:
        >>> settling_iteration(pd.Series([8.0, 1.9, 1.0, 1.0], index=[0, 10, 20, 30]), 2.0)
        10.0
    """
    tail = losses.iloc[-max(1, len(losses) // 100) :]
    if tail.isna().any():
        return float("nan")
    below = losses <= within * tail.median()
    return float(losses.index[int(below.to_numpy().argmax())])
