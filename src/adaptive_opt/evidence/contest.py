"""Arms of a task compared by one loss: speeds where they are known, losses where they are not.

A run that is beyond the trained lengths has a bound in place of a speed, and bounds cannot be
tested for equality. Whether an arm is faster can be tested all the same, by losses: an arm whose
step costs c times the other's is faster on a clock if its loss at length h ≤ 1/c is below the
other's at full length (for c < 1: its loss at full length below the other's at a length ≥ c). So
the direction of an arm with bounded runs is tested by its bounds and by log losses at trained
lengths (Bonferroni over the two), and its speed-up stays a bound. The known end of its interval is
the further of the two that these tests give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from adaptive_opt.study import get_arm

from . import statistics
from .schema import Bound, Clock, Metric, Speedup, Word
from .speedup import Curve, Speeds, run_speeds

__all__ = ["Contest", "Shift", "is_placebo"]

Shift = tuple[float, float, float]
"""What a clock adds to a log speed-up in iterations: the number, its error, its df."""

TIE = 1e-9
"""Lengths this near are the same."""


def is_placebo(arm: str) -> bool:
    """Whether an arm is a rung of the ladder below its parent, or the exact one above."""
    return get_arm(arm).kind == "ladder"


class Contest:
    """The arms of one task by one loss.

    Args:
        lengths: by arm, final losses at every length.
        curve: of the reference.
        metric: ``train_loss`` or ``valid_loss``.
        studies: by arm, the number of its searches.
        seeds: number of runs of an arm.
        stuck_above: see :func:`.speedup.run_speeds`.
        settings: the parameters ``analysis.verdict``.
    """

    def __init__(
        self,
        lengths: Mapping[str, pd.DataFrame],
        curve: Curve,
        metric: Metric,
        *,
        studies: Mapping[str, int],
        seeds: int,
        stuck_above: float,
        settings: Mapping[str, Any],
    ) -> None:
        self.lengths, self.metric, self.settings = lengths, metric, settings
        self.studies, self.seeds = studies, seeds
        self.speeds = {
            arm: run_speeds(table, curve, metric, range(seeds), studies[arm], stuck_above)
            for arm, table in lengths.items()
        }
        free = [a for a, s in self.speeds.items() if not any(s.bounded)]
        self.groups = self._moderated({a: s.means for a, s in self.speeds.items()}, free)
        self._by_loss: dict[tuple[str, float], list[float]] = {}

    def _moderated(
        self, means: Mapping[str, Any], prior: Sequence[str] | None = None
    ) -> dict[str, statistics.Group]:
        """Moderated by arms of their own sort.

        Placebos are a sort of their own: with less information they are more erratic, and would
        widen the intervals of all others. Arms with a bound say nothing of how much speeds differ.
        """
        groups: dict[str, statistics.Group] = {}
        for placebos in (False, True):
            own = {a: m for a, m in means.items() if is_placebo(a) == placebos}
            groups |= statistics.moderate(own, prior)
        return groups

    def results(
        self, pairs: Sequence[tuple[str, str]], shifts: Sequence[Shift], clock: Clock
    ) -> list[Speedup]:
        """Each pair compared on a clock, corrected for the number of pairs.

        Args:
            pairs: an arm, and the one that it is compared with.
            shifts: for each pair.
            clock: by which.
        """
        margin = math.log1p(self.settings["margin"])
        compared, known = [], []
        for (arm, other), shift in zip(pairs, shifts, strict=True):
            found = statistics.compare(self.groups[arm], self.groups[other]).shifted(*shift)
            compared.append(found)
            known.append(self._relative(arm, other))
        tested = [
            self._by_both(*pair, shift, c, own) if any(own.bounded) else (c.p_different, c.estimate)
            for pair, shift, own, c in zip(pairs, shifts, known, compared, strict=True)
        ]
        different = statistics.holm([p for p, _ in tested])
        equivalent = statistics.holm([c.p_equivalent(margin) for c in compared])
        alpha = 1 - self.settings["confidence"]
        results = []
        for pair, c, own, shift, (_, sign), p, q in zip(
            pairs, compared, known, shifts, tested, different, equivalent, strict=True
        ):
            same = 1.0 if any(own.bounded) else q  # of a bound nobody knows how near it is
            word = statistics.decide(sign, p, same, alpha)
            results.append(
                self._speedup(pair, c, own, shift, word, clock)
                | {"p_different": p, "p_equivalent": same}
            )
        return [Speedup(**r) for r in results]

    def _relative(self, arm: str, other: str) -> Speeds:
        """Speeds against the reference as they are, against any other arm run by run."""
        if is_placebo(other) or (is_placebo(arm) and get_arm(arm).tuned_as == other):
            return self.speeds[arm].minus(self.speeds[other])
        return self.speeds[arm]

    def _speedup(
        self,
        pair: tuple[str, str],
        found: statistics.Comparison,
        own: Speeds,
        shift: Shift,
        word: Word,
        clock: Clock,
    ) -> dict[str, Any]:
        below, above = own.bounded
        low, high = found.interval(self.settings["confidence"])
        if below or above:
            low, high = self._interval_by_both(pair, shift, found, (below, above))
        log = found.estimate if own.bound is None else own.bound + shift[0]
        return {
            "metric": self.metric,
            "clock": clock,
            "verdict": word,
            "ratio": math.exp(log),
            "low": math.exp(low) if math.isfinite(low) else None,
            "high": math.exp(high) if math.isfinite(high) else None,
            "bound": _bound(below, above, len(own.runs)),
        }

    def _by_both(
        self, arm: str, other: str, shift: Shift, found: statistics.Comparison, own: Speeds
    ) -> tuple[float, float]:
        """The stronger of two tests, corrected for their number.

        With bounds for speeds a difference looks smaller than it is, which is safe, but only where
        no run may be on the other side of its bound; by losses it is whole, but only at the trained
        lengths.
        """
        below, above = own.bounded
        safe = not (below if found.estimate > 0 else above)
        by_speed = found.p_different if safe else 1.0
        tests = [(by_speed, found.estimate), self._direction(arm, other, shift)]
        p, sign = min(tests)
        return min(1.0, 2 * p), sign

    def _interval_by_both(
        self,
        pair: tuple[str, str],
        shift: Shift,
        found: statistics.Comparison,
        bounded: tuple[int, int],
    ) -> tuple[float, float]:
        """Log speed-ups that neither test rejects; infinite where there is no end."""
        by, reach = self._shifted(shift)
        below, above = bounded
        confidence = 1 - (1 - self.settings["confidence"]) / 2  # two tests
        low, high = found.interval(confidence)
        ends = (-math.inf if below else low, math.inf if above else high)
        p = (1 - confidence) / 2  # of an end
        low = max(ends[0], self._proven(*pair, p, faster=True) + by - reach)
        high = min(ends[1], self._proven(*pair, p, faster=False) + by + reach)
        return (low, high) if low <= high else ends

    def _proven(self, arm: str, other: str, p: float, *, faster: bool) -> float:
        """The largest log speed-up in iterations that losses show an arm to exceed.

        A fixed sequence of tests, from the least claim to the greatest, which ends at the first
        that fails and needs no correction for their number. Not ``faster``: the smallest that
        they show it to stay below.
        """
        own, theirs = (self._trained(a) for a in (arm, other))
        if _full(own) is None or _full(theirs) is None:
            return -math.inf if faster else math.inf
        claims = [(1 / share, share, 1.0) for share in own]
        claims += [(share, 1.0, share) for share in theirs if share < 1]
        proven = -math.inf if faster else math.inf
        for speed, share, other_share in sorted(claims, reverse=not faster):
            sides = [(arm, share), (other, other_share)]
            (a, at_a), (b, at_b) = sides if faster else sides[::-1]
            if self._p_lower(a, b, at_a, at_b) > p:
                break
            proven = math.log(speed)
        return proven

    def _shifted(self, shift: Shift) -> tuple[float, float]:
        """The number of a shift, and how far its interval reaches."""
        by, error, df = shift
        reach = float(stats.t.ppf(0.5 + self.settings["confidence"] / 2, df)) * error
        return by, reach

    def _direction(self, arm: str, other: str, shift: Shift) -> tuple[float, float]:
        """Two-sided p, and a number with the sign of arm − other (above 0: faster)."""
        by, reach = self._shifted(shift)
        own, theirs = (self._trained(a) for a in (arm, other))
        price = -by  # log of what a step costs, in steps of the other
        faster = self._p_lower(arm, other, *_lengths_for_faster(price + reach, own, theirs))
        slower = self._p_lower(
            other, arm, *reversed(_lengths_for_slower(price - reach, own, theirs))
        )
        return min(1.0, 2 * min(faster, slower)), slower - faster

    def _trained(self, arm: str) -> list[float]:
        shares = self.lengths[arm]["share"]
        return sorted({float(s) for s in shares if s <= 1})

    def _p_lower(
        self, arm: str, other: str, share: float | None, other_share: float | None
    ) -> float:
        """One-sided p that an arm's loss at a length is not below another's at a length."""
        if share is None or other_share is None:
            return 1.0
        groups = self._moderated(
            {
                **{a: self._losses(a, 1.0) for a in self.lengths if len(self.lengths[a])},
                arm: self._losses(arm, share),
                other: self._losses(other, other_share),
            }
        )
        found = statistics.compare(groups[arm], groups[other])
        if found.error == 0:
            return 0.0 if found.estimate < 0 else 1.0
        return float(stats.t.cdf(found.estimate / found.error, found.df))

    def _losses(self, arm: str, share: float) -> list[float]:
        """Mean log loss of each search at a length; runs that diverged count as the worst."""
        key = (arm, share)
        if key not in self._by_loss:
            table = self.lengths[arm]
            rows = table[(table["share"] - share).abs() < TIE].set_index("seed")
            losses = rows[self.metric].reindex(range(self.seeds))
            known = losses.where((losses > 0) & (losses < math.inf))
            logs = known.map(math.log, na_action="ignore").fillna(self._worst)
            by_study = logs.groupby(logs.index % self.studies[arm]).mean()
            self._by_loss[key] = (by_study if len(by_study) > 1 else logs).tolist()
        return self._by_loss[key]

    @cached_property
    def _worst(self) -> float:
        """A log loss above that of any run."""
        values = pd.concat([t[self.metric] for t in self.lengths.values()])
        seen = values[np.isfinite(values) & (values > 0)]
        return float(np.log(seen.max())) if len(seen) else 0.0


def _lengths_for_faster(
    price: float, own: Sequence[float], theirs: Sequence[float]
) -> tuple[float | None, float | None]:
    """Lengths at which a lower loss of the arm shows that it is faster at a log price.

    Example:
        >>> _lengths_for_faster(math.log(1.5), [0.25, 0.5, 1.0], [0.5, 1.0])
        (0.5, 1.0)
        >>> _lengths_for_faster(math.log(0.8), [0.25, 0.5, 1.0], [0.5, 1.0])
        (1.0, 1.0)
    """
    wanted = math.exp(-price)
    if wanted <= 1 + TIE:
        return max((s for s in own if s <= wanted + TIE), default=None), _full(theirs)
    return _full(own), min((s for s in theirs if s >= 1 / wanted - TIE), default=None)


def _lengths_for_slower(
    price: float, own: Sequence[float], theirs: Sequence[float]
) -> tuple[float | None, float | None]:
    """Lengths at which a higher loss of the arm shows that it is slower at a log price.

    Example:
        >>> _lengths_for_slower(math.log(1.5), [0.25, 0.5, 1.0], [0.5, 1.0])
        (1.0, 1.0)
        >>> _lengths_for_slower(math.log(0.8), [0.25, 0.5, 1.0], [0.5, 1.0])
        (1.0, 0.5)
    """
    wanted = math.exp(-price)
    if wanted <= 1 + TIE:
        return min((s for s in own if s >= wanted - TIE), default=None), _full(theirs)
    return _full(own), max((s for s in theirs if s <= 1 / wanted + TIE), default=None)


def _full(shares: Sequence[float]) -> float | None:
    return 1.0 if shares and max(shares) == 1 else None


def _bound(below: int, above: int, runs: int) -> Bound:
    if below and above:
        return ""
    if below:
        return "<" if 2 * below > runs else "≤"
    if above:
        return ">" if 2 * above > runs else "≥"
    return ""
