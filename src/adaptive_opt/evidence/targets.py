"""Targets fixed from the tuned first-order baselines, and when each run reaches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .passage import batches_per_epoch, losses_by_seed
from .schema import Clock
from .tables import Histories, identify

__all__ = ["CLOCKS", "METRICS", "smoothed_losses", "target_ladder", "times_to_targets"]

CLOCKS: tuple[Clock, ...] = ("iteration", "gradient_equivalents", "device_seconds")
"""What time is measured by: updates; gradients, a Hessian-vector product counting as several;
seconds on the device, synchronised."""

METRICS = ("train_loss", "valid_loss")


def smoothed_losses(history: pd.DataFrame, metric: str = "train_loss") -> pd.DataFrame:
    """Iterations × seeds: the mean of what was logged over the epoch that ends there.

    A first passage of the raw loss is the passage of its noise. Where less than a row an epoch
    is logged (Rahimi–Recht, whose loss is over all samples), it is the row itself. Missing
    from where a run diverged.

    Args:
        history: of one (task, arm).
        metric: one of :data:`METRICS`; the second is looked at once an epoch or less, and is
            not smoothed.
    """
    wide = losses_by_seed(history, metric).dropna(how="all")
    if metric != "train_loss" or len(wide) < 2:
        return wide
    step = float(np.median(np.diff(wide.index)))
    rows = int(batches_per_epoch(history) // step)
    if rows <= 1:
        return wide
    return wide.rolling(rows, min_periods=1).mean().where(wide.notna())


def target_ladder(
    baselines: Histories, metric: str, shares: Sequence[float], reached_by: float
) -> dict[str, Any]:
    """Levels of the loss, from what the best baseline comes down to.

    The best baseline is the one whose seeds' lowest smoothed losses have the lowest median.
    The deepest level L is what at least the share ``reached_by`` of its seeds come down to; with
    ℓ the median of its losses at the start, level i is ℓ · (L / ℓ)^shareᵢ. Nothing but the
    baselines is looked at.

    Args:
        baselines: histories of one task's first-order arms.
        metric: one of :data:`METRICS`.
        shares: of the way from the start to the deepest level, in decades; rising to 1.
        reached_by: see above.

    Returns:
        ``{"baseline": arm, "start": ℓ, "levels": [...]}``; no levels where no baseline has
        the metric, or none learns.
    """
    best: tuple[float, str, pd.DataFrame] | None = None
    for history in baselines:
        if metric not in history:
            continue
        losses = smoothed_losses(history, metric)
        lowest = losses.min().fillna(np.inf)
        if best is None or lowest.median() < best[0]:
            best = (float(lowest.median()), identify(history)[1], losses)
    if best is None or not np.isfinite(best[0]):
        return {"baseline": "", "start": float("nan"), "levels": []}
    losses = best[2]
    start = float(losses.iloc[0].median())
    ordered = np.sort(losses.min().fillna(np.inf).to_numpy())
    deepest = float(ordered[int(np.ceil(reached_by * len(ordered))) - 1])
    levels = []
    if 0 < deepest < start:
        levels = [float(start * (deepest / start) ** share) for share in shares]
        levels[-1] = deepest  # as it is, and not as rounded by the power: a tie is a passage
    return {"baseline": best[1], "start": start, "levels": levels}


def times_to_targets(
    histories: Histories, targets: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> pd.DataFrame:
    """When each run's smoothed loss is first at or below each target.

    Args:
        histories: one for each (task, arm).
        targets: by task and metric, levels by name.

    Returns:
        A row for each (task, arm, seed, metric, target): ``level``; ``reached``; on each of
        the :data:`CLOCKS` the time of the first passage or, where the run never gets there or
        diverges before, the time at which it ended, which is in ``end_<clock>`` for all:
        right-censored, never zero. A loss below the level from the start passes it at the first
        row after it.
    """
    rows = []
    for history in histories:
        task, arm = identify(history)
        clocks: dict[str, pd.DataFrame] = {c: losses_by_seed(history, c) for c in CLOCKS[1:]}
        clocks["iteration"] = clocks[CLOCKS[1]].apply(lambda c: c.index.where(c.notna()))
        for metric, levels in targets.get(task, {}).items():
            if metric not in history or not levels:
                continue
            losses = smoothed_losses(history, metric)
            for seed in losses:
                run = {"task": task, "arm": arm, "seed": int(str(seed)), "metric": metric}
                own = {clock: wide[seed].dropna() for clock, wide in clocks.items()}
                rows += [{**run, **row} for row in _passages(losses[seed], levels, own)]
    columns = ["task", "arm", "seed", "metric", "target", "level", "reached"]
    return pd.DataFrame(rows, columns=[*columns, *CLOCKS, *(f"end_{c}" for c in CLOCKS)])


def _passages(
    losses: pd.Series, levels: Mapping[str, float], clocks: Mapping[str, pd.Series]
) -> list[dict[str, Any]]:
    """One run's rows. Clocks go on to the end of the run, whether or not it diverged."""
    logged = next(iter(clocks.values())).index
    first, end = logged[min(1, len(logged) - 1)], logged[-1]
    ends = {f"end_{c}": float(series.loc[end]) for c, series in clocks.items()}
    rows = []
    for name, level in levels.items():
        below = np.flatnonzero(losses.to_numpy() <= level)
        at = max(losses.index[below[0]], first) if len(below) else end
        times = {clock: float(series.loc[at]) for clock, series in clocks.items()}
        rows.append({"target": name, "level": level, "reached": bool(len(below)), **times, **ends})
    return rows
