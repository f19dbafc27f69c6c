r"""Two sets of runs, paired by seed: how many times faster is one, and how sure is that?

Times t are restricted at a horizon τ that all runs were observed to, min(t, τ), so a run that
never arrives counts with τ and nothing is censored any more: what is estimated is the restricted
ratio, which understates a difference that lies beyond the horizon. Everything is about the log
ratios of the pairs,

    rᵢ = ln(min(tᵢ, τ) / min(uᵢ, τ)),    exp(mean r) = the geometric mean ratio,

below 1 where t is faster. Sources: Hall, *Ann. Statist.* 16, 1988 (the interval); Pitman, 1937
(the permutation test); Schuirmann, 1987 (two one-sided tests); Royston & Parmar, 2013
(restricted means).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.power import TTestPower

__all__ = [
    "MAX_SEEDS",
    "Comparison",
    "compare",
    "decide",
    "equivalence_p",
    "holm",
    "log_rank_p",
    "log_ratios",
    "mean_interval",
    "permutation_p",
    "restricted_mean",
    "seeds_to_decide",
]

Array = NDArray[np.float64]

EXACT_UP_TO = 16
"""Pairs; beyond, 2ⁿ sign patterns are sampled."""

BOOTSTRAP_FROM = 12
"""Pairs; of fewer, resamples are often flat and intervals too wide, and Student's t serves."""

RESAMPLES = 2000
MAX_SEEDS = 1000

VERDICTS = ("faster", "slower", "equivalent", "undecided")


def log_ratios(times: ArrayLike, others: ArrayLike, horizon: float) -> Array:
    """``ln(min(t, τ) / min(u, τ))`` for each pair; shape ``[pairs]``.

    Args:
        times, others: positive; infinite where a run never arrives; in the order of seeds.
        horizon: τ, positive.

    Raises:
        ValueError: a time that is not positive, or unequal numbers.

    Example:
        >>> log_ratios([10.0, np.inf], [20.0, 40.0], horizon=80.0).round(3).tolist()
        [-0.693, 0.693]
    """
    t, u = (np.minimum(np.asarray(x, dtype=np.float64), horizon) for x in (times, others))
    if t.shape != u.shape or t.ndim != 1:
        raise ValueError(f"pairs are needed, got {t.shape} and {u.shape} times")
    if not (np.all(t > 0) and np.all(u > 0)):
        raise ValueError("times must be positive")
    return np.asarray(np.log(t) - np.log(u))


def mean_interval(
    values: ArrayLike, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of the mean: studentised bootstrap, Student's t below twelve values.

    With x̄ and s of the n values and x̄′, s′ of resamples of them, and q the 1−α quantile of
    ``|x̄′ − x̄| / (s′/√n)``, the interval is x̄ ± q s/√n: Hall's symmetric interval (1988). The
    percentile and BCa intervals are too short at the few seeds that there are, and the one with
    unequal tails is so where censoring makes ties. A constant resample (s′ = 0) counts as
    infinitely far out, which widens the interval.

    Args:
        values: ``[n]``.
        confidence: 1 − α.
        seed: of the resampling.

    Returns:
        (low, high): infinite with one value, the value itself if all are the same.
    """
    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    if n < 2:
        return -math.inf, math.inf
    error = float(x.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return mean, mean
    if n < BOOTSTRAP_FROM:
        half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
        return mean - half, mean + half
    drawn = x[np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))]
    away = np.abs(drawn.mean(axis=1) - mean)
    errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    flat = errors <= 1e-12 * error
    distance = np.where(flat & (away > 0), np.inf, away / np.where(flat, 1.0, errors))
    half = float(np.quantile(distance, confidence, method="higher")) * error
    return mean - half, mean + half


def permutation_p(values: ArrayLike, alternative: str = "two-sided", seed: int = 0) -> float:
    """Sign-flip test that values are symmetric about 0, exact up to 16 of them.

    The share of all 2ⁿ sign patterns whose mean is at least as far out; what
    :func:`scipy.stats.permutation_test` gives for ``permutation_type="samples"``, at a hundredth
    of its time for 16 pairs. With n pairs no p-value below 2/2ⁿ (two-sided) is possible.

    Args:
        values: ``[n]``.
        alternative: ``two-sided``, ``less`` or ``greater``.
        seed: of the sampling beyond 16 values.

    Example:
        >>> permutation_p([1.0, 2.0, 3.0])  # 2 of 8 sign patterns are as extreme
        0.25
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) <= EXACT_UP_TO:
        sums, extra = _signs(len(x)) @ x, 0
    else:
        signs = np.random.default_rng(seed).integers(2, size=(2**EXACT_UP_TO, len(x))) * 2.0 - 1
        sums, extra = signs @ x, 1  # the pattern that was observed is one of them
    observed = float(x.sum())
    slack = 1e-12 * float(np.abs(x).sum())  # equal sums differ by rounding
    less = (int(np.sum(sums <= observed + slack)) + extra) / (len(sums) + extra)
    greater = (int(np.sum(sums >= observed - slack)) + extra) / (len(sums) + extra)
    return {"less": less, "greater": greater}.get(alternative, min(1.0, 2 * min(less, greater)))


@cache
def _signs(n: int) -> Array:
    """All patterns of n signs, ``[2ⁿ, n]``."""
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return np.asarray(bits * 2.0 - 1.0)


def equivalence_p(values: ArrayLike, margin: float, seed: int = 0) -> float:
    """Two one-sided permutation tests that the mean lies within ± ``margin``.

    Example:
        >>> equivalence_p([0.01, -0.02, 0.0, 0.01, 0.0, -0.01], margin=0.1)
        0.015625
    """
    x = np.asarray(values, dtype=np.float64)
    return max(permutation_p(x - margin, "less", seed), permutation_p(x + margin, "greater", seed))


def log_rank_p(times: ArrayLike, others: ArrayLike, horizon: float) -> float:
    """Log-rank test of two sets of times, right-censored at the horizon; unpaired.

    :func:`scipy.stats.logrank`; 1 where nothing arrives, or all at the same time.
    """
    samples = [_censored(x, horizon) for x in (times, others)]
    if all(s is None for s in samples):
        return 1.0
    data = [s or _nothing(x, horizon) for s, x in zip(samples, (times, others), strict=True)]
    with np.errstate(all="ignore"):
        p = float(stats.logrank(*data).pvalue)
    return p if math.isfinite(p) else 1.0


def _censored(times: ArrayLike, horizon: float) -> Any:
    t = np.asarray(times, dtype=np.float64)
    arrived = t < horizon
    if not arrived.any():
        return None
    return stats.CensoredData(uncensored=t[arrived], right=np.full(int((~arrived).sum()), horizon))


def _nothing(times: ArrayLike, horizon: float) -> Any:
    return stats.CensoredData(right=np.full(len(np.asarray(times)), horizon))


def restricted_mean(times: ArrayLike, horizon: float) -> float:
    """Area under the Kaplan–Meier curve up to the horizon: the restricted mean time.

    :func:`scipy.stats.ecdf`; with everything observed to the horizon it is the mean of
    min(t, τ).

    Example:
        >>> round(restricted_mean([10.0, 20.0, np.inf], horizon=60.0), 9)
        30.0
    """
    data = _censored(times, horizon)
    if data is None:
        return float(horizon)
    survival = stats.ecdf(data).sf
    ends = np.minimum(np.append(survival.quantiles, horizon), horizon)
    heights = np.concatenate([[1.0], survival.probabilities])
    return float(np.sum(heights * np.diff(np.concatenate([[0.0], ends]))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for the number of tests: p₍ᵢ₎ becomes max over j ≤ i of (n − j + 1) p₍ⱼ₎.

    As statsmodels' ``multipletests``, which collects garbage at every call: 50 ms each.

    Example:
        >>> holm([0.04, 0.01])
        [0.04, 0.02]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(v) for v in corrected]


@dataclass(frozen=True)
class Comparison:
    """Two arms on one target and clock.

    Attributes:
        pairs: seeds that both have.
        never, both_never: pairs of which a run never arrives, and of which neither does.
        ratio, low, high: geometric mean ratio of restricted times and its interval.
        spread: standard deviation of the log ratios.
        p_different, p_equivalent: permutation test, and the larger of the two one-sided.
        p_log_rank: unpaired, of the censored times.
        restricted_mean, restricted_mean_other: of each arm.
        horizon: τ.
    """

    pairs: int
    never: int
    both_never: int
    ratio: float
    low: float
    high: float
    spread: float
    p_different: float
    p_equivalent: float
    p_log_rank: float
    restricted_mean: float
    restricted_mean_other: float
    horizon: float

    @property
    def silent(self) -> bool:
        """Whether in more than half of the pairs a run never arrives."""
        return 2 * self.never > self.pairs


def compare(
    times: ArrayLike,
    others: ArrayLike,
    horizon: float,
    *,
    margin: float = 0.1,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Everything about two arms, before the correction for the number of them.

    Args:
        times, others: ``[pairs]``, infinite where a run never arrives.
        horizon: τ.
        margin: ratios from 1 / (1 + margin) to 1 + margin count as the same.
        confidence: of the interval.
        seed: of the resampling.
    """
    r = log_ratios(times, others, horizon)
    t, u = np.asarray(times, dtype=np.float64), np.asarray(others, dtype=np.float64)
    low, high = mean_interval(r, confidence, seed)
    return Comparison(
        pairs=len(r),
        never=int(np.sum((t >= horizon) | (u >= horizon))),
        both_never=int(np.sum((t >= horizon) & (u >= horizon))),
        ratio=math.exp(float(r.mean())),
        low=_exp(low),
        high=_exp(high),
        spread=float(r.std(ddof=1)) if len(r) > 1 else math.nan,
        p_different=permutation_p(r, seed=seed),
        p_equivalent=equivalence_p(r, math.log1p(margin), seed),
        p_log_rank=log_rank_p(t, u, horizon),
        restricted_mean=restricted_mean(t, horizon),
        restricted_mean_other=restricted_mean(u, horizon),
        horizon=float(horizon),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def decide(
    comparison: Comparison, p_different: float, p_equivalent: float, alpha: float = 0.05
) -> str:
    """``faster``, ``slower``, ``equivalent`` or ``undecided``.

    Equivalent where both one-sided tests say so, which comes first: a difference inside the
    margin is none, however sure. Never where in more than half of the pairs a run never
    arrives: that both fail, or that one does just before the end of the other's run, is no
    evidence that they are as fast. Faster or slower where the
    corrected p-value is at most α and the interval leaves out 1.

    Args:
        comparison: of the two arms.
        p_different, p_equivalent: corrected for the number of arms.
        alpha: α.
    """
    if p_equivalent <= alpha and not comparison.silent:
        return "equivalent"
    if p_different <= alpha:
        if comparison.high < 1:
            return "faster"
        if comparison.low > 1:
            return "slower"
    return "undecided"


def seeds_to_decide(
    comparison: Comparison, tests: int, *, margin: float = 0.1, alpha: float = 0.05
) -> int | None:
    """Seeds at which these effect and spread would be decided four times out of five.

    The lower of what a difference and, where :func:`decide` could say it, an equivalence needs,
    by the power of paired t tests at α / ``tests`` (the first step of Holm), and at least what
    the exact test can reach that level with: 2/2ⁿ ≤ α / tests.

    Args:
        comparison: as observed.
        tests: number of arms that are corrected for.
        margin, alpha: as in :func:`compare` and :func:`decide`.

    Returns:
        The number; None where it is above :data:`MAX_SEEDS`, or nothing can be said.
    """
    if comparison.pairs < 2 or 2 * comparison.both_never > comparison.pairs:
        return None
    level = alpha / max(1, tests)
    least = math.ceil(math.log2(2 / level))
    effect, spread = abs(math.log(comparison.ratio)), max(comparison.spread, 1e-9)
    needed = [_pairs(effect / spread, level, "two-sided")]
    if effect < math.log1p(margin) and not comparison.silent:
        needed.append(_pairs((math.log1p(margin) - effect) / spread, level, "larger"))
    found = [n for n in needed if n is not None]
    best = max(least, min(found)) if found else None
    return best if best is not None and best <= MAX_SEEDS else None


def _pairs(effect: float, level: float, alternative: str, power: float = 0.8) -> int | None:
    """Pairs at which a t test of such a standardised effect has the power; None: too many."""
    if effect < 1e-3:
        return None
    low, high = 2, MAX_SEEDS + 1
    if _power(effect, high, level, alternative) < power:
        return None
    while low < high:  # the power rises with the number
        middle = (low + high) // 2
        if _power(effect, middle, level, alternative) >= power:
            high = middle
        else:
            low = middle + 1
    return low


def _power(effect: float, pairs: int, level: float, alternative: str) -> float:
    """Of a paired t test; far out, where statsmodels gives no number, it is 1."""
    if effect * math.sqrt(pairs) > 15.0:
        return 1.0
    return float(TTestPower().power(effect, pairs, level, alternative=alternative))
