r"""Two arms compared over searches and seeds: how much faster is one, and how sure is that?

The unit is the *search*: what a user of an optimizer does is tune it and then train. For arm a,
the log speeds of its runs (:mod:`.speedup`) are averaged over the seeds of search j to x_aj; the
estimate of a log speed-up is the difference of two arms' means over j,

    d = x̄_a − x̄_r,    SE² = (s̃_a² + s̃_r²) / S,

with s_a² the variance of x_aj over the S searches, which holds both the luck of a search and,
divided by the seeds of each, that of a seed. Three searches alone give s² two degrees of freedom.
All arms of a task are therefore read together, as in Smyth, *Stat. Appl. Genet. Mol. Biol.* 3
(2004):

    s̃² = (d₀ s̄² + d s²) / (d₀ + d),    on d₀ + d degrees of freedom,

with s̄² the mean variance of all arms and d = S − 1. d₀ is fixed at 4: estimated from so few
variances, as Smyth does with thousands, it makes the intervals too narrow. d/SE follows Student's t
with Welch–Satterthwaite degrees of freedom.

Arms share seeds, which makes them vary together and the intervals a little too wide, never too
narrow. Resampling searches instead would be too narrow: three can be drawn in ten ways only
(docs/method.md has both, simulated).
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
"""d₀: the weight of the other arms' variances, in degrees of freedom."""

NEGLIGIBLE = 1e-12
"""A variance below this is that of equal numbers: of runs that all sit at a bound."""


@dataclass(frozen=True)
class Group:
    """Means of an arm, one for each search.

    Attributes:
        means: ``[searches]``; with one search, one for each seed.
        variance: moderated, of one mean.
        df: its degrees of freedom.
        most: degrees of freedom of all arms together, which no comparison can exceed.
    """

    means: Array
    variance: float
    df: float
    most: float = math.inf

    @property
    def mean(self) -> float:
        """Over searches."""
        return float(self.means.mean())

    @property
    def error(self) -> float:
        """Squared standard error of :attr:`mean`."""
        return self.variance / len(self.means)


def moderate(
    means: Mapping[str, ArrayLike], prior: Sequence[str] | None = None
) -> dict[str, Group]:
    """Variances of all arms, each moderated by those of the others.

    Args:
        means: by arm, ``[searches]``.
        prior: arms whose variances make s̄²; default: all.

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
    if not seen:  # all runs of an arm alike, or one of each
        return {arm: Group(x, 0.0 if len(x) > 1 else math.inf, 1.0) for arm, x in arrays.items()}
    variances, dfs = (np.array(column, dtype=np.float64) for column in zip(*seen, strict=True))
    pool = float(np.average(variances, weights=dfs))
    most = float(dfs.sum())
    groups = {}
    for arm, x in arrays.items():
        df = len(x) - 1
        own = float(x.var(ddof=1)) if df else 0.0
        prior_df = min(PRIOR_DF, max(0.0, most - df))
        if df + prior_df == 0:  # one number, and nothing to learn its variance from
            groups[arm] = Group(x, math.inf, 1.0)
            continue
        mixed = (prior_df * pool + df * own) / (prior_df + df)
        groups[arm] = Group(x, mixed, prior_df + df, most)
    return groups


@dataclass(frozen=True)
class Comparison:
    """Two arms, before the correction for the number of them.

    Attributes:
        estimate: d, a difference of means of logs.
        error: its standard error.
        df: degrees of freedom.
    """

    estimate: float
    error: float
    df: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the difference; infinite where one number is all there is."""
        half = float(stats.t.ppf(0.5 + confidence / 2, self.df)) * self.error
        return self.estimate - half, self.estimate + half

    @property
    def p_different(self) -> float:
        """Two-sided, that there is no difference."""
        if self.error == 0:
            return 0.0 if self.estimate else 1.0
        return float(2 * stats.t.sf(abs(self.estimate) / self.error, self.df))

    def p_equivalent(self, margin: float) -> float:
        """The larger of two one-sided tests that the difference is beyond ± margin."""
        if self.error == 0:
            return 0.0 if abs(self.estimate) < margin else 1.0
        return float(stats.t.sf((margin - abs(self.estimate)) / self.error, self.df))

    def shifted(self, by: float, error: float = 0.0, df: float = math.inf) -> Comparison:
        """The same, with an independent estimate added.

        Args:
            by: what is added.
            error: its standard error.
            df: degrees of freedom of that.
        """
        both = math.hypot(self.error, error)
        return Comparison(self.estimate + by, both, _satterthwaite([self, _Part(error, df)]))


@dataclass(frozen=True)
class _Part:
    error: float
    df: float


def _satterthwaite(parts: Sequence[_Part | Comparison]) -> float:
    """Degrees of freedom of a sum of independent parts (Welch, 1947)."""
    total = sum(p.error**2 for p in parts)
    if math.isinf(total):
        return 1.0
    below = sum(p.error**4 / p.df for p in parts if p.df > 0)
    return total**2 / below if below > 0 else max(p.df for p in parts)


def compare(arm: Group, other: Group) -> Comparison:
    """An arm against another, by their means over searches.

    Example:
        >>> groups = moderate({"a": [0.0, 0.1, 0.2], "b": [1.0, 1.1, 1.2], "c": [2.0, 2.1, 2.2]})
        >>> found = compare(groups["b"], groups["a"])
        >>> round(found.estimate, 6), round(found.error, 4), found.df
        (1.0, 0.0816, 6.0)
    """
    parts = [_Part(math.sqrt(g.error), g.df) for g in (arm, other)]
    error = math.hypot(parts[0].error, parts[1].error)
    df = min(_satterthwaite(parts), max(1.0, arm.most))
    return Comparison(arm.mean - other.mean, error, df)


def mean_interval(group: Group, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of one arm and its interval."""
    half = float(stats.t.ppf(0.5 + confidence / 2, group.df)) * math.sqrt(group.error)
    return group.mean, group.mean - half, group.mean + half


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


def decide(estimate: float, p_different: float, p_equivalent: float, alpha: float = 0.05) -> Word:
    """``faster``, ``slower``, ``equivalent`` or ``undecided``.

    Equivalent comes first: a difference inside the margin is none, however sure.

    Args:
        estimate: of the log speed-up.
        p_different, p_equivalent: corrected for the number of arms.
        alpha: level.
    """
    if p_equivalent <= alpha:
        return "equivalent"
    if p_different <= alpha:
        return "faster" if estimate > 0 else "slower"
    return "undecided"
