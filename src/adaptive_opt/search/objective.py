"""Score of a trial: one number, lower is better."""

from __future__ import annotations

import numpy as np
import pandas as pd

__all__ = ["score"]


def score(history: pd.DataFrame, objective: str, *, target: float, iterations: int) -> float:
    """Compute the objective of a trial from its history so far.

    - ``train_loss``: the last training loss; ``valid_loss``: the lowest validation loss so far.
      Both are geometric means over seeds, because losses range over decades.
    - ``time_to_target``: the first iteration with a training loss at or below the target, divided
      by the length of the trial. A run that has not reached the target scores
      1 + log10(last loss / target). The mean over seeds.

    The score is infinite if a seed has no finite loss. A diverged run keeps the loss at which
    it was frozen.

    Args:
        history: columns ``seed``, ``iteration``, ``train_loss`` and, for the objective
            ``valid_loss``, ``valid_loss``; sorted by iteration.
        objective: ``time_to_target``, ``train_loss`` or ``valid_loss``.
        target: training loss to reach.
        iterations: length of a complete trial.

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
