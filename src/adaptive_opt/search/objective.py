"""How good a trial was: one number, lower is better."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["score"]


def score(history: pd.DataFrame, objective: str, *, target: float, iterations: int) -> float:
    """The objective of a trial, as far as its history goes.

    ``train_loss``: the last one, ``valid_loss``: the lowest so far; the geometric mean over
    seeds, since losses range over decades. ``time_to_target``: the first iteration with a
    training loss at or below the target, as a share of the trial; a run that has not got
    there scores 1 plus the decades it is short of it; the mean over seeds. Infinite if a seed
    has no finite loss; a run that is frozen where it diverged counts with the loss it had.

    Args:
        history: columns ``seed``, ``iteration``, ``train_loss`` and, for that objective,
            ``valid_loss``; in the order of iterations.
        objective: ``time_to_target``, ``train_loss`` or ``valid_loss``.
        target: training loss.
        iterations: length of a whole trial.

    Example:
        >>> run = pd.DataFrame({"seed": 0, "iteration": [0, 10, 20], "train_loss": [9, 1, .1]})
        >>> score(run, "time_to_target", target=1.0, iterations=20)
        0.5
        >>> score(run, "time_to_target", target=0.01, iterations=20)
        2.0
    """
    scores = []
    for _, run in history.groupby("seed", sort=False):
        losses = run["train_loss"].to_numpy(dtype=np.float64)
        known = np.flatnonzero(~np.isnan(losses))
        if not len(known) or not np.isfinite(last := losses[known[-1]]):
            return float("inf")
        if objective == "time_to_target":
            reached = np.flatnonzero(losses <= target)
            short = max(0.0, float(np.log10(last / target))) if last > 0 else 0.0
            scores.append(
                float(run["iteration"].iloc[reached[0]]) / iterations if len(reached) else 1 + short
            )
        else:
            value = last if objective == "train_loss" else run["valid_loss"].min()
            if not np.isfinite(value):
                return float("inf")
            scores.append(float(np.log(max(value, np.finfo(np.float64).tiny))))
    mean = float(np.mean(scores))
    return mean if objective == "time_to_target" else float(np.exp(mean))
