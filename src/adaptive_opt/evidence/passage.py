"""Time to target and other quantities of single loss curves."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = [
    "batches_per_epoch",
    "epoch_means",
    "first_passage",
    "last_rows",
    "losses_by_seed",
    "runs",
    "settling_iteration",
]


def losses_by_seed(history: pd.DataFrame, column: str = "train_loss") -> pd.DataFrame:
    """Pivot to iterations × seeds; NaN after a run has diverged or ended."""
    return history.pivot(index="iteration", columns="seed", values=column).sort_index()


def runs(history: pd.DataFrame, column: str = "train_loss") -> dict[int, pd.Series]:
    """Values of each seed by iteration, up to the end of its own run; seeds ascending.

    Infinite values become NaN, as after divergence.
    """
    clean = history[column].replace([np.inf, -np.inf], np.nan)
    frame = history.assign(**{column: clean}).sort_values("iteration")
    groups = frame.groupby("seed", sort=True)
    return {int(str(seed)): g.set_index("iteration")[column] for seed, g in groups}


def last_rows(history: pd.DataFrame) -> pd.DataFrame:
    """Last row of each seed, indexed by seed; the loss of a diverged run is NaN."""
    rows = history.sort_values("iteration").groupby("seed", sort=True).tail(1)
    rows = rows.set_index("seed").sort_index()
    return rows.assign(train_loss=rows["train_loss"].replace([np.inf, -np.inf], np.nan))


def batches_per_epoch(history: pd.DataFrame) -> float:
    """Iterations per epoch; the length of the history if it contains no end of an epoch.

    Example:
        >>> batches_per_epoch(pd.DataFrame({"iteration": [0, 5, 7, 14], "epoch": [0, 0, 1, 2]}))
        7.0
    """
    later = history[history["epoch"] > 0]
    if later.empty:
        return float(max(1, history["iteration"].max()))
    return float((later["iteration"] / later["epoch"]).min())


def epoch_means(history: pd.DataFrame, column: str) -> pd.DataFrame:
    """Running mean of a batch quantity over one epoch.

    Each row of the history is the mean over the batches since the previous row (engine.train). With
    n(t) the number of batches up to row t and L the batches per epoch,

        S(t) = Σ_{s ≤ t} x(s) (n(s) − n(s⁻)),   mean(t) = (S(t) − S(t − L)) / L,

    with S linear between rows. During the first epoch, the mean is over all batches so far.

    Args:
        history: history of one (task, arm).
        column: ``train_loss`` or ``train_accuracy``.

    Returns:
        Iterations × seeds; NaN after a run has diverged.
    """
    length = batches_per_epoch(history)
    smoothed = {}
    for seed, values in runs(history, column).items():
        end = values.index.max()
        seen = values.dropna()
        count = np.minimum(seen.index.to_numpy(dtype=np.float64) + 1, max(end, 1))
        total = np.cumsum(seen.to_numpy(dtype=np.float64) * np.diff(count, prepend=0.0))
        n, s = np.append(0.0, count), np.append(0.0, total)
        window = np.minimum(count, length)
        means = (total - np.interp(count - window, n, s)) / np.where(window > 0, window, 1)
        smoothed[seed] = pd.Series(means, index=seen.index)
    return pd.DataFrame(smoothed).sort_index()


def first_passage(losses: pd.DataFrame, target: float) -> pd.Series:
    """Time to target: first iteration with a loss at or below the target; inf if never.

    Args:
        losses: iterations × seeds, as from :func:`losses_by_seed`.
        target: the loss to reach.

    Example:
        >>> losses = pd.DataFrame({0: [3.0, 1.0, 2.0], 1: [3.0, 3.0, 3.0]}, index=[0, 10, 20])
        >>> first_passage(losses, 1.5).tolist()
        [10.0, inf]
    """
    reached = losses <= target
    return reached.idxmax().astype(float).where(reached.any(), np.inf)


def settling_iteration(losses: pd.Series, within: float) -> float:
    """Iteration at which the loss of a run settles; NaN for a diverged run.

    This is the first iteration with a loss of at most ``within`` times the final level: the median
    over the last hundredth of the logged iterations.

    Example:
        >>> settling_iteration(pd.Series([8.0, 1.9, 1.0, 1.0], index=[0, 10, 20, 30]), 2.0)
        10.0
    """
    tail = losses.iloc[-max(1, len(losses) // 100) :]
    if not len(tail) or tail.isna().iloc[-1]:
        return float("nan")
    below = losses <= within * tail.median()
    return float(losses.index[int(below.to_numpy().argmax())])
