"""Compare the arms of a task by one loss: with their speeds if known, otherwise with their losses.

A run beyond the trained lengths is censored: it has a bound instead of a speed, and bounds cannot
be tested for equality. Losses can still show that an arm is faster. Let a step of the arm cost c
steps of the other arm. The arm is faster on that clock if its loss at a length h ≤ 1/c is below the
other's loss at full length (for c < 1: its loss at full length below the other's at a length ≥ c).

So two tests decide the direction of an arm with censored runs: one by bounds, one by log losses at
trained lengths (Bonferroni over the two). The speed-up remains a bound. The known end of its
interval is the tighter of the two ends that these tests give.
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

__all__ = ["LossComparison", "Shift", "is_placebo"]

Shift = tuple[float, float, float]
"""Added to a log speed-up in iterations to change the clock: value, standard error, df."""

TIE = 1e-9
"""Lengths that differ by less than this are equal."""


def is_placebo(arm: str) -> bool:
    """Whether an arm is a rung of an information ladder other than its parent."""
    return get_arm(arm).kind == "ladder"


class LossComparison:
    """Speeds and tests for the arms of one task, by one loss.

    Args:
        lengths: final losses at every length, by arm.
        curve: loss curve of the reference.
        metric: ``train_loss`` or ``valid_loss``.
        studies: number of searches, by arm.
        seeds: number of runs per arm.
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
        """Moderate placebos with placebos and other arms with other arms.

        Speeds of placebos vary more and would widen the intervals of all other arms. Arms with
        censored runs are no ``prior``: their variance is not that of speeds.
        """
        groups: dict[str, statistics.Group] = {}
        for placebos in (False, True):
            own = {a: m for a, m in means.items() if is_placebo(a) == placebos}
            groups |= statistics.moderate(own, prior)
        return groups

    def results(
        self, pairs: Sequence[tuple[str, str]], shifts: Sequence[Shift], clock: Clock
    ) -> list[Speedup]:
        """Compare pairs of arms on one clock, corrected for the number of pairs.

        Args:
            pairs: the arm, and the arm that it is compared with.
            shifts: for each pair, the change from iterations to the clock.
            clock: name of the clock.
        """
        margin = math.log1p(self.settings["margin"])
        compared, known = [], []
        for (arm, other), shift in zip(pairs, shifts, strict=True):
            found = statistics.compare(self.groups[arm], self.groups[other]).shifted(*shift)
            compared.append(found)
            known.append(self._relative(arm, other))
        tested = [
            self._test_censored(*pair, shift, c, own)
            if any(own.bounded)
            else (c.p_different, c.estimate)
            for pair, shift, own, c in zip(pairs, shifts, known, compared, strict=True)
        ]
        different = statistics.holm([p for p, _ in tested])
        equivalent = statistics.holm([c.p_equivalent(margin) for c in compared])
        alpha = 1 - self.settings["confidence"]
        results = []
        for pair, c, own, shift, (_, sign), p, q in zip(
            pairs, compared, known, shifts, tested, different, equivalent, strict=True
        ):
            same = 1.0 if any(own.bounded) else q  # a bound cannot show equivalence
            word = statistics.decide(sign, p, same, alpha)
            results.append(
                self._speedup(pair, c, own, shift, word, clock)
                | {"p_different": p, "p_equivalent": same}
            )
        return [Speedup(**r) for r in results]

    def _relative(self, arm: str, other: str) -> Speeds:
        """Speeds of an arm relative to the reference or, run by run, to another rung."""
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
            low, high = self._censored_interval(pair, shift, found, (below, above))
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

    def _test_censored(
        self, arm: str, other: str, shift: Shift, found: statistics.Comparison, own: Speeds
    ) -> tuple[float, float]:
        """Test an arm with censored runs; returns p and the sign of the difference.

        The smaller p of two tests counts, corrected for their number. The test by bounds
        underestimates the difference, so it is used only if no run can lie on the other side of its
        bound. The test by losses sees the whole difference, but only at the trained lengths.
        """
        below, above = own.bounded
        safe = not (below if found.estimate > 0 else above)
        by_speed = found.p_different if safe else 1.0
        tests = [(by_speed, found.estimate), self._test_losses(arm, other, shift)]
        p, sign = min(tests)
        return min(1.0, 2 * p), sign

    def _censored_interval(
        self,
        pair: tuple[str, str],
        shift: Shift,
        found: statistics.Comparison,
        bounded: tuple[int, int],
    ) -> tuple[float, float]:
        """Log speed-ups that neither test rejects; an unknown end is infinite."""
        by, reach = self._shift_and_margin(shift)
        below, above = bounded
        confidence = 1 - (1 - self.settings["confidence"]) / 2  # two tests
        low, high = found.interval(confidence)
        ends = (-math.inf if below else low, math.inf if above else high)
        p = (1 - confidence) / 2  # for each end
        low = max(ends[0], self._proven_speedup(*pair, p, faster=True) + by - reach)
        high = min(ends[1], self._proven_speedup(*pair, p, faster=False) + by + reach)
        return (low, high) if low <= high else ends

    def _proven_speedup(self, arm: str, other: str, p: float, *, faster: bool) -> float:
        """Largest log speed-up in iterations that losses prove an arm to exceed.

        If not ``faster``: the smallest that they prove it to stay below. Claims are tested in a
        fixed order, from the weakest to the strongest, until one fails. Such a sequence needs no
        correction for the number of tests.
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

    def _shift_and_margin(self, shift: Shift) -> tuple[float, float]:
        """Value of a shift and half the width of its interval."""
        by, error, df = shift
        reach = float(stats.t.ppf(0.5 + self.settings["confidence"] / 2, df)) * error
        return by, reach

    def _test_losses(self, arm: str, other: str, shift: Shift) -> tuple[float, float]:
        """Two-sided p of the test by losses, and a number that is positive if the arm is faster."""
        by, reach = self._shift_and_margin(shift)
        own, theirs = (self._trained(a) for a in (arm, other))
        price = -by  # log cost of a step, in steps of the other arm
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
        """One-sided p that the loss of ``arm`` at a length is not below that of ``other``."""
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
        """Mean log loss of each search at one length; a diverged run gets the worst loss of all."""
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
        """Largest log loss of all runs."""
        values = pd.concat([t[self.metric] for t in self.lengths.values()])
        seen = values[np.isfinite(values) & (values > 0)]
        return float(np.log(seen.max())) if len(seen) else 0.0


def _lengths_for_faster(
    price: float, own: Sequence[float], theirs: Sequence[float]
) -> tuple[float | None, float | None]:
    """Lengths of both arms at which a lower loss proves the arm faster, for a log cost per step.

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
    """Lengths of both arms at which a higher loss proves the arm slower, for a log cost per step.

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
