r"""Compare two arms over searches and seeds: estimate, interval and p-values of a log speed-up.

The unit is the *search*, because a user of an optimizer tunes it and then trains. For arm a, the
log speeds of the runs (:mod:`.speedup`) are averaged over the seeds of search j to x_aj. The
estimate of the log speed-up is the difference of two arms' means over j,

    d = x̄_a − x̄_r,    SE² = (s̃_a² + s̃_r²) / S.

The variance s_a² of x_aj over the S searches contains the variation between searches and between
seeds. Three searches give it only two degrees of freedom. It is therefore moderated with the
variances of the task's other arms (Smyth, *Stat. Appl. Genet. Mol. Biol.* 3, 2004):

    s̃² = (d₀ s̄² + d s²) / (d₀ + d),    with d₀ + d degrees of freedom,

where s̄² is the mean variance of all arms and d = S − 1. d₀ is fixed at 4. Smyth estimates it from
thousands of variances; estimated from so few, it makes intervals too narrow. d/SE follows Student's
t with Welch–Satterthwaite degrees of freedom.

Arms share seeds, so their speeds are correlated. This makes intervals slightly too wide, never too
narrow. Bootstrapping three searches makes them too narrow: there are only ten different resamples
(simulations of both: docs/comparison.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .schema import Word

__all__ = ["Comparison", "Group", "compare", "decide", "holm", "mean_interval", "moderate"]

Array = NDArray[np.float64]

PRIOR_DF = 4.0
"""d₀, the weight of the mean variance of all arms, in degrees of freedom."""

NEGLIGIBLE = 1e-12
"""Smaller variances count as zero: all runs of the arm are censored at the same bound."""


@dataclass(frozen=True)
class Group:
    """Means of one arm with their moderated variance.

    Attributes:
        means: ``[searches]``; with a single search, one value per seed.
        variance: moderated variance of one mean.
        df: degrees of freedom of the variance.
        max_df: degrees of freedom of all arms together, an upper limit for comparisons.
    """

    means: Array
    variance: float
    df: float
    max_df: float = math.inf

    @property
    def mean(self) -> float:
        """Mean over searches."""
        return float(self.means.mean())

    @property
    def variance_of_mean(self) -> float:
        """Squared standard error of :attr:`mean`."""
        return self.variance / len(self.means)


def moderate(
    means: Mapping[str, ArrayLike], prior: Sequence[str] | None = None
) -> dict[str, Group]:
    """Moderate the variance of each arm with the mean variance of all arms.

    Args:
        means: ``[searches]`` by arm.
        prior: arms whose variances are averaged to s̄²; default: all.

    Example:
        >>> groups = moderate({"a": [0.0, 0.1, 0.2], "b": [1.0, 1.1, 1.2], "c": [2.0, 2.1, 2.2]})
        >>> round(groups["a"].variance, 6), groups["a"].df
        (0.01, 6.0)
    """
    arrays = {arm: np.asarray(x, dtype=np.float64) for arm, x in means.items()}
    seen = [
        (float(x.var(ddof=1)), len(x) - 1)
        for arm, x in arrays.items()
        if len(x) > 1 and (prior is None or arm in prior)
    ]
    seen = [(v, df) for v, df in seen if v > NEGLIGIBLE]
    if not seen:  # there is no variance to average
        return {arm: Group(x, 0.0 if len(x) > 1 else math.inf, 1.0) for arm, x in arrays.items()}
    variances, dfs = (np.array(column, dtype=np.float64) for column in zip(*seen, strict=True))
    pool = float(np.average(variances, weights=dfs))
    most = float(dfs.sum())
    groups = {}
    for arm, x in arrays.items():
        df = len(x) - 1
        own = float(x.var(ddof=1)) if df else 0.0
        prior_df = min(PRIOR_DF, max(0.0, most - df))
        if df + prior_df == 0:  # a single mean, and no other arm to estimate its variance from
            groups[arm] = Group(x, math.inf, 1.0)
            continue
        mixed = (prior_df * pool + df * own) / (prior_df + df)
        groups[arm] = Group(x, mixed, prior_df + df, most)
    return groups


@dataclass(frozen=True)
class Comparison:
    """Difference of two arms, not corrected for the number of comparisons.

    Attributes:
        estimate: d, the difference of the mean log speeds.
        error: standard error of d.
        df: degrees of freedom.
    """

    estimate: float
    error: float
    df: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the difference; infinite if the standard error is unknown."""
        half = float(stats.t.ppf(0.5 + confidence / 2, self.df)) * self.error
        return self.estimate - half, self.estimate + half

    @property
    def p_different(self) -> float:
        """Two-sided p-value for the hypothesis of no difference."""
        if self.error == 0:
            return 0.0 if self.estimate else 1.0
        return float(2 * stats.t.sf(abs(self.estimate) / self.error, self.df))

    def p_equivalent(self, margin: float) -> float:
        """p-value of two one-sided tests (TOST) for a difference of at least ``margin``."""
        if self.error == 0:
            return 0.0 if abs(self.estimate) < margin else 1.0
        return float(stats.t.sf((margin - abs(self.estimate)) / self.error, self.df))

    def shifted(self, by: float, error: float = 0.0, df: float = math.inf) -> Comparison:
        """Add an independent estimate.

        Args:
            by: the estimate to add.
            error: standard error of ``by``.
            df: degrees of freedom of ``error``.
        """
        both = math.hypot(self.error, error)
        return Comparison(self.estimate + by, both, _satterthwaite([self, _ErrorTerm(error, df)]))


@dataclass(frozen=True)
class _ErrorTerm:
    error: float
    df: float


def _satterthwaite(parts: Sequence[_ErrorTerm | Comparison]) -> float:
    """Degrees of freedom of a sum of independent terms (Welch, 1947)."""
    total = sum(p.error**2 for p in parts)
    if math.isinf(total):
        return 1.0
    below = sum(p.error**4 / p.df for p in parts if p.df > 0)
    return total**2 / below if below > 0 else max(p.df for p in parts)


def compare(arm: Group, other: Group) -> Comparison:
    """Compare one arm with another by their means over searches.

    Example:
        >>> groups = moderate({"a": [0.0, 0.1, 0.2], "b": [1.0, 1.1, 1.2], "c": [2.0, 2.1, 2.2]})
        >>> found = compare(groups["b"], groups["a"])
        >>> round(found.estimate, 6), round(found.error, 4), found.df
        (1.0, 0.0816, 6.0)
    """
    parts = [_ErrorTerm(math.sqrt(g.variance_of_mean), g.df) for g in (arm, other)]
    error = math.hypot(parts[0].error, parts[1].error)
    df = min(_satterthwaite(parts), max(1.0, arm.max_df))
    return Comparison(arm.mean - other.mean, error, df)


def mean_interval(group: Group, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of one arm, and the lower and upper end of its confidence interval."""
    half = float(stats.t.ppf(0.5 + confidence / 2, group.df)) * math.sqrt(group.variance_of_mean)
    return group.mean, group.mean - half, group.mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for the number of tests: p₍ᵢ₎ becomes max over j ≤ i of (n − j + 1) p₍ⱼ₎.

    Equal to statsmodels' ``multipletests``, which takes 50 ms per call for a garbage collection.

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


def decide(estimate: float, p_different: float, p_equivalent: float, alpha: float = 0.05) -> Word:
    """Decide between ``faster``, ``slower``, ``equivalent`` and ``undecided``.

    Equivalence is tested first: a significant difference inside the margin counts as equivalent.

    Args:
        estimate: estimated log speed-up.
        p_different, p_equivalent: p-values, corrected for the number of arms.
        alpha: significance level.
    """
    if p_equivalent <= alpha:
        return "equivalent"
    if p_different <= alpha:
        return "faster" if estimate > 0 else "slower"
    return "undecided"
