r"""Speed-up at equal loss: how much longer the reference must train to reach the loss of an arm.

Every arm is trained at several lengths h·T, each with its whole schedule (``engine.lengths``).
Let L(h) be the final loss of a run at length h, R the curve of the reference (median over its
runs), and ℓ = R(1). The speed of the run is

    1 / h*          if L reaches ℓ at a length h* ≤ 1,
    R⁻¹(L(1))       otherwise: the length at which the reference has the run's final loss.

So faster and slower runs both have a number. Beyond the ends of a curve the run is censored and the
number is a bound: a run below ℓ at its shortest length h₀ is at least 1/h₀ times as fast; a run
that ends above R(h₀) is at most h₀ times as fast.

Curves are made monotone by isotonic regression of the log loss (Barlow et al., 1972) and
interpolated by monotone cubics in log h and log L (Fritsch & Carlson, 1980). Linear interpolation
between lengths that double would have errors of up to 4 % in speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression

__all__ = ["Curve", "Speed", "Speeds", "curves_of", "reference_curve", "run_speeds"]

Array = NDArray[np.float64]

TINY = 1e-30
"""Smallest loss; smaller ones are raised to it before the logarithm."""


@dataclass(frozen=True)
class Curve:
    """Final log loss as a non-increasing function of log length.

    Attributes:
        lengths: log shares of the full length, ascending.
        losses: log losses, non-increasing.
    """

    lengths: Array
    losses: Array

    @classmethod
    def fit(cls, shares: ArrayLike, losses: ArrayLike) -> Curve:
        """Fit by isotonic regression of the log loss; a loss that is not finite counts as 1e6.

        Example:
            >>> Curve.fit([0.5, 1.0], [1.0, math.e]).losses.tolist()
            [0.5, 0.5]
        """
        given = np.asarray(shares, dtype=np.float64)
        order = np.argsort(given)
        lengths = np.log(given[order])
        raw = np.asarray(losses, dtype=np.float64)[order]
        # Above any real loss, but not so high that one diverged run shifts the whole curve.
        logs = np.log(np.maximum(np.where(np.isfinite(raw), raw, 1e6), TINY))
        if np.any(np.diff(logs) > 0):
            logs = np.asarray(isotonic_regression(logs, increasing=False).x)
        return cls(lengths, logs)

    def at(self, share: float) -> float:
        """Log loss at one of the curve's lengths."""
        return float(self.losses[np.argmin(np.abs(self.lengths - math.log(share)))])

    def length_for(self, level: float) -> float:
        """Log length at which the log loss equals ``level``.

        −inf if the whole curve is below the level, inf if it is above. Where the curve is flat at
        this level, the middle of the flat part.
        """
        if level > self.losses[0]:
            return -math.inf
        if level < self.losses[-1]:
            return math.inf
        return float(self._inverse(level))

    @cached_property
    def _inverse(self) -> Callable[[float], Any]:
        """Interpolator from log loss to log length, within the range of the losses."""
        rising, where = np.unique(self.losses, return_inverse=True)
        middles = np.bincount(where, weights=self.lengths) / np.bincount(where)
        if len(rising) < 2:
            return lambda _: middles[0]
        return PchipInterpolator(rising, middles)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Speed:
    """Speed of one run relative to the reference.

    Attributes:
        log: natural logarithm of the speed, or of its bound.
        bound: 0: ``log`` is the speed; −1: an upper bound; 1: a lower bound; 2: unknown.
    """

    log: float
    bound: int


@dataclass(frozen=True)
class Speeds:
    """Speeds of all runs of an arm.

    Attributes:
        runs: speeds by seed.
        study_of: by seed, the number of the search that found the run's configuration.
    """

    runs: Mapping[int, Speed]
    study_of: Mapping[int, int]

    @property
    def means(self) -> list[float]:
        """Mean log speed of each search; with a single search, the log speed of each seed."""
        by_study: dict[int, list[float]] = {}
        for seed, speed in self.runs.items():
            by_study.setdefault(self.study_of[seed], []).append(speed.log)
        if len(by_study) == 1:
            return next(iter(by_study.values()))
        return [float(np.mean(logs)) for _, logs in sorted(by_study.items())]

    def spread(self) -> tuple[float, float]:
        """Standard deviation of log speeds between searches, and between the seeds of a search.

        NaN with a single search, or a single seed per search.
        """
        frame = pd.DataFrame(
            {
                "study": [self.study_of[s] for s in self.runs],
                "log": [r.log for r in self.runs.values()],
            }
        )
        groups = frame.groupby("study")["log"]
        between = float(groups.mean().std(ddof=1)) if groups.ngroups > 1 else math.nan
        within = (
            float(np.sqrt(np.nanmean(groups.var(ddof=1))))
            if len(frame) > groups.ngroups
            else math.nan
        )
        return between, within

    def minus(self, other: Speeds) -> Speeds:
        """Speeds relative to another arm, run by run; bounds are combined."""
        runs = {}
        for seed, own in self.runs.items():
            theirs = other.runs[seed]
            sides = {own.bound, -theirs.bound} - {0}
            bound = 2 if len(sides) == 2 else sides.pop() if sides else 0
            runs[seed] = Speed(own.log - theirs.log, bound)
        return Speeds(runs, self.study_of)

    @property
    def bound(self) -> float | None:
        """Log of the bound that most runs are beyond, on the same side; None without one."""
        for side, nearest in ((-1, max), (1, min)):
            logs = [r.log for r in self.runs.values() if r.bound == side]
            if 2 * len(logs) > len(self.runs):
                return float(nearest(logs))
        return None

    @property
    def bounded(self) -> tuple[int, int]:
        """Number of censored runs: those with unknown lower end, those with unknown upper end."""
        found = [r.bound for r in self.runs.values()]
        unknown = found.count(2)
        return found.count(-1) + unknown, found.count(1) + unknown


def curves_of(lengths: pd.DataFrame, metric: str, seeds: Sequence[int]) -> dict[int, Curve | None]:
    """Fit the curve of every run of an arm, up to the full length.

    Args:
        lengths: final losses of one (task, arm), see ``engine.lengths.COLUMNS``.
        metric: ``train_loss`` or ``valid_loss``.
        seeds: planned seeds; the curve of a seed without a run is None.
    """
    rows = lengths[lengths["share"] <= 1]
    found: dict[int, Curve | None] = dict.fromkeys(seeds)
    wide = rows.pivot(index="seed", columns="share", values=metric)
    for seed, losses in zip(wide.index, wide.to_numpy(), strict=True):
        found[int(seed)] = Curve.fit(wide.columns.to_numpy(), losses)
    return found


def reference_curve(lengths: pd.DataFrame, metric: str) -> Curve | None:
    """Fit the median over runs at each length; None if the metric has no finite value.

    Example:
        >>> table = pd.DataFrame({"share": [1, 1, 1], "train_loss": [1.0, 2.0, np.nan]})
        >>> round(float(np.exp(reference_curve(table, "train_loss").losses[0])), 6)
        2.0
    """
    losses = lengths[metric].fillna(np.inf)
    if not np.isfinite(losses).any():
        return None
    # For an even number of runs, the mean of the middle two log losses.
    logs = np.log(losses.clip(lower=TINY)).groupby(lengths["share"]).median()
    return Curve.fit(logs.index.tolist(), np.exp(logs).tolist())


def run_speeds(
    lengths: pd.DataFrame,
    reference: Curve,
    metric: str,
    seeds: Sequence[int],
    studies: int,
    stuck_above: float = math.inf,
) -> Speeds:
    """Speed of every run of an arm relative to the reference.

    Args:
        lengths: final losses of the arm on one task.
        reference: curve of the reference, see :func:`reference_curve`.
        metric: ``train_loss`` or ``valid_loss``.
        seeds: planned seeds. A seed without a run, because its search or training failed, gets the
            lowest bound.
        studies: number of searches.
        stuck_above: a run with a final loss above this has learnt nothing and gets the lowest
            bound.
    """
    level = reference.at(1.0)
    slowest = Speed(float(reference.lengths[0]), -1)
    runs = {}
    for seed, curve in curves_of(lengths, metric, seeds).items():
        stuck = curve is None or curve.losses[-1] > math.log(stuck_above)
        runs[seed] = slowest if curve is None or stuck else _speed(curve, reference, level)
    return Speeds(runs, {seed: seed % studies for seed in runs})


def _speed(curve: Curve, reference: Curve, level: float) -> Speed:
    if (own := curve.length_for(level)) == -math.inf:  # below the level at every length
        return Speed(-float(curve.lengths[0]), 1)
    if own <= 0:
        return Speed(-own, 0)
    same = reference.length_for(float(curve.losses[-1]))
    if same == -math.inf:
        return Speed(float(reference.lengths[0]), -1)
    return Speed(min(same, 0.0), 0)
