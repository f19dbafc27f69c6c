r"""Speed-up at equal loss: how much longer the reference must train for what an arm reaches.

Every arm is trained at several lengths h·T, each with its whole schedule (``engine.lengths``).
With L(h) the final loss at length h and R the reference's curve, the median over its runs, the
level is ℓ = R(1). The speed of one run is

    1 / h*          if its own curve comes down to ℓ at a length h* ≤ 1,
    R⁻¹(L(1))       else: the length at which the reference has the run's loss at full length.

So runs that are faster and runs that are slower both have a number. Where a curve is left, the
number is a bound: a run below ℓ at its shortest length h₀ is at least 1/h₀ times as fast, one that
ends above R(h₀) at most h₀ times. Curves are made to fall by isotonic regression of the log loss
(Barlow et al., 1972) and interpolated by monotone cubics in log h and log L (Fritsch & Carlson,
1980): straight lines between lengths that double are off by up to 4 % in speed.
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
"""Losses are at least this, so that they have a logarithm."""


@dataclass(frozen=True)
class Curve:
    """Final log loss against log length, falling.

    Attributes:
        lengths: log shares of the full length, rising.
        losses: log losses, falling or level.
    """

    lengths: Array
    losses: Array

    @classmethod
    def fit(cls, shares: ArrayLike, losses: ArrayLike) -> Curve:
        """Isotonic regression of the log loss; a loss that is not finite counts as very high.

        Example:
            >>> Curve.fit([0.5, 1.0], [1.0, math.e]).losses.tolist()
            [0.5, 0.5]
        """
        given = np.asarray(shares, dtype=np.float64)
        order = np.argsort(given)
        lengths = np.log(given[order])
        raw = np.asarray(losses, dtype=np.float64)[order]
        # Far above any loss, and yet not so far that one missing run moves a whole curve.
        logs = np.log(np.maximum(np.where(np.isfinite(raw), raw, 1e6), TINY))
        if np.any(np.diff(logs) > 0):
            logs = np.asarray(isotonic_regression(logs, increasing=False).x)
        return cls(lengths, logs)

    def at(self, share: float) -> float:
        """Log loss at a length that is one of the curve's."""
        return float(self.losses[np.argmin(np.abs(self.lengths - math.log(share)))])

    def length_for(self, level: float) -> float:
        """Log of the length at which the log loss is ``level``; ±inf beyond the curve's ends.

        In the middle of a stretch where the curve is level.
        """
        if level > self.losses[0]:
            return -math.inf
        if level < self.losses[-1]:
            return math.inf
        return float(self._inverse(level))

    @cached_property
    def _inverse(self) -> Callable[[float], Any]:
        """From a log loss within the range to the log length."""
        rising, where = np.unique(self.losses, return_inverse=True)
        middles = np.bincount(where, weights=self.lengths) / np.bincount(where)
        if len(rising) < 2:
            return lambda _: middles[0]
        return PchipInterpolator(rising, middles)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Speed:
    """Of one run against the reference.

    Attributes:
        log: natural logarithm of the speed; where ``bound`` is not 0, that of the bound.
        bound: −1: at most that; 1: at least; 0: a number; 2: nothing is known.
    """

    log: float
    bound: int


@dataclass(frozen=True)
class Speeds:
    """Of all runs of an arm.

    Attributes:
        runs: by seed.
        study_of: by seed, the search that the run's configuration is from.
    """

    runs: Mapping[int, Speed]
    study_of: Mapping[int, int]

    @property
    def means(self) -> list[float]:
        """Mean of the logs for each search; with one search, the log for each seed."""
        by_study: dict[int, list[float]] = {}
        for seed, speed in self.runs.items():
            by_study.setdefault(self.study_of[seed], []).append(speed.log)
        if len(by_study) == 1:
            return next(iter(by_study.values()))
        return [float(np.mean(logs)) for _, logs in sorted(by_study.items())]

    def spread(self) -> tuple[float, float]:
        """Standard deviation of the logs between searches and between the seeds of a search.

        NaN where there is one search, or one seed of each.
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
        """Speeds relative to those of another arm, run by run, with what is known of them."""
        runs = {}
        for seed, own in self.runs.items():
            theirs = other.runs[seed]
            sides = {own.bound, -theirs.bound} - {0}
            bound = 2 if len(sides) == 2 else sides.pop() if sides else 0
            runs[seed] = Speed(own.log - theirs.log, bound)
        return Speeds(runs, self.study_of)

    @property
    def bound(self) -> float | None:
        """The log of the bound that most runs are beyond, on the same side; None: there is none."""
        for side, nearest in ((-1, max), (1, min)):
            logs = [r.log for r in self.runs.values() if r.bound == side]
            if 2 * len(logs) > len(self.runs):
                return float(nearest(logs))
        return None

    @property
    def bounded(self) -> tuple[int, int]:
        """Number of runs without a lower bound, and without an upper one."""
        found = [r.bound for r in self.runs.values()]
        unknown = found.count(2)
        return found.count(-1) + unknown, found.count(1) + unknown


def curves_of(lengths: pd.DataFrame, metric: str, seeds: Sequence[int]) -> dict[int, Curve | None]:
    """The curve of every run of an arm, up to the full length.

    Args:
        lengths: of one (task, arm), see ``engine.lengths.COLUMNS``.
        metric: ``train_loss`` or ``valid_loss``.
        seeds: that were to be trained; None where one was not.
    """
    rows = lengths[lengths["share"] <= 1]
    found: dict[int, Curve | None] = dict.fromkeys(seeds)
    wide = rows.pivot(index="seed", columns="share", values=metric)
    for seed, losses in zip(wide.index, wide.to_numpy(), strict=True):
        found[int(seed)] = Curve.fit(wide.columns.to_numpy(), losses)
    return found


def reference_curve(lengths: pd.DataFrame, metric: str) -> Curve | None:
    """Median over runs at each length; None where the metric has no value.

    Example:
        >>> table = pd.DataFrame({"share": [1, 1, 1], "train_loss": [1.0, 2.0, np.nan]})
        >>> round(float(np.exp(reference_curve(table, "train_loss").losses[0])), 6)
        2.0
    """
    losses = lengths[metric].fillna(np.inf)
    if not np.isfinite(losses).any():
        return None
    # Of an even number of runs the mean of the middle two logs, as everything is in logs.
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
    """Speed of every run of an arm.

    Args:
        lengths: of the arm on a task.
        reference: see :func:`reference_curve`.
        metric: ``train_loss`` or ``valid_loss``.
        seeds: that were to be trained; one that was not, as its search or its training failed,
            is as slow as can be told.
        studies: number of searches.
        stuck_above: a final loss above this is that of a run which has learnt nothing: the
            reference has it from the start, so the run is as slow as can be told.
    """
    level = reference.at(1.0)
    slowest = Speed(float(reference.lengths[0]), -1)
    runs = {}
    for seed, curve in curves_of(lengths, metric, seeds).items():
        stuck = curve is None or curve.losses[-1] > math.log(stuck_above)
        runs[seed] = slowest if curve is None or stuck else _speed(curve, reference, level)
    return Speeds(runs, {seed: seed % studies for seed in runs})


def _speed(curve: Curve, reference: Curve, level: float) -> Speed:
    if (own := curve.length_for(level)) == -math.inf:  # below the level from the start
        return Speed(-float(curve.lengths[0]), 1)
    if own <= 0:
        return Speed(-own, 0)
    same = reference.length_for(float(curve.losses[-1]))
    if same == -math.inf:
        return Speed(float(reference.lengths[0]), -1)
    return Speed(min(same, 0.0), 0)
