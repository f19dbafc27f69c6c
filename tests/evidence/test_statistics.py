"""Moderated variances, Welch's t and Holm, compared with references and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from adaptive_opt.evidence import statistics


def coverage(arms: int, uneven: float, shared: float = 0.0, searches: int = 3) -> float:
    """Share of intervals that contain the true value, for three arms compared with a fourth."""
    random = np.random.default_rng(0)
    inside = total = 0
    for _ in range(1500):
        spread = np.exp(random.normal(0, uneven, arms))[:, None]
        x = spread * random.normal(0, 1, (arms, searches)) + random.normal(0, shared, searches)
        groups = statistics.moderate({str(i): row for i, row in enumerate(x)})
        for i in (1, 2, 3):
            low, high = statistics.compare(groups[str(i)], groups["0"]).interval()
            inside += low <= 0 <= high
            total += 1
    return inside / total


@pytest.mark.parametrize("arms", [4, 7, 12])
@pytest.mark.parametrize("uneven", [0.0, 0.3])
def test_intervals_of_three_searches_cover_the_true_value(arms: int, uneven: float) -> None:
    assert 0.93 <= coverage(arms, uneven) <= 0.97


def test_shared_seeds_do_not_lower_the_coverage() -> None:
    assert 0.94 <= coverage(12, 0.3, shared=0.3) <= 0.98


def test_three_searches_alone_give_wide_intervals_and_the_bootstrap_too_narrow_ones() -> None:
    random = np.random.default_rng(0)
    resampled = 0
    for _ in range(600):
        x, y = random.normal(size=(2, 3))
        drawn = random.integers(3, size=(2, 400, 3))
        means = x[drawn[0]].mean(axis=1) - y[drawn[1]].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        resampled += low <= 0 <= high
    assert resampled / 600 < 0.87  # docs/comparison.md
    alone = statistics.moderate({"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0]})
    together = statistics.moderate({n: [0.0, 1.0, 2.0] for n in "abcdefgh"})
    halves = [np.ptp(statistics.compare(g["a"], g["b"]).interval()) for g in (alone, together)]
    assert halves[0] > 1.2 * halves[1]


def test_variance_and_p_value_of_two_arms_alone() -> None:
    a, b = [0.1, 0.5, 0.2], [1.0, 1.3, 0.8]
    groups = statistics.moderate({"a": a, "b": b})
    mean_variance = (np.var(a, ddof=1) + np.var(b, ddof=1)) / 2
    expected = (2 * mean_variance + 2 * np.var(a, ddof=1)) / 4
    assert groups["a"].variance == pytest.approx(expected)
    found = statistics.compare(groups["b"], groups["a"])
    assert found.df <= 4  # the degrees of freedom of both arms together
    t = found.estimate / found.error
    assert found.p_different == pytest.approx(2 * stats.t.sf(t, found.df))
    assert stats.ttest_ind(a, b).pvalue == pytest.approx(found.p_different, rel=0.05)


def test_one_run_of_each_arm_decides_nothing() -> None:
    groups = statistics.moderate({"a": [0.0], "b": [3.0]})
    found = statistics.compare(groups["b"], groups["a"])
    assert found.p_different == 1
    assert found.interval() == (-math.inf, math.inf)


def test_an_arm_with_only_censored_runs_takes_the_variance_of_the_others() -> None:
    groups = statistics.moderate({"a": [-2.8] * 3, "b": [0.0, 0.2, 0.1], "c": [0.1, 0.0, 0.3]})
    assert groups["a"].variance > 0
    assert statistics.compare(groups["a"], groups["b"]).p_different < 0.001


def test_equivalence_needs_the_whole_difference_inside_the_margin() -> None:
    narrow = statistics.Comparison(0.0, 0.01, 20.0)
    wide = statistics.Comparison(0.0, 0.10, 20.0)
    shifted = statistics.Comparison(0.09, 0.01, 20.0)
    margin = math.log(1.1)
    assert narrow.p_equivalent(margin) < 1e-6
    assert wide.p_equivalent(margin) > 0.15
    assert shifted.p_equivalent(margin) > 0.2
    assert statistics.Comparison(0.0, 0.0, 1.0).p_equivalent(margin) == 0


def test_an_independent_error_widens_the_interval() -> None:
    found = statistics.Comparison(0.5, 0.1, 10.0)
    moved = found.shifted(-0.2, error=0.1, df=4)
    assert moved.estimate == pytest.approx(0.3)
    assert moved.error == pytest.approx(math.sqrt(0.02))
    assert moved.df == pytest.approx(0.02**2 / (1e-4 / 10 + 1e-4 / 4))
    assert found.shifted(0.0).df == pytest.approx(10)


def test_holm_equals_statsmodels() -> None:
    p = np.random.default_rng(1).uniform(0, 0.2, 9)
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


@pytest.mark.parametrize(
    ("estimate", "different", "equivalent", "word"),
    [
        (0.5, 0.01, 0.9, "faster"),
        (-0.5, 0.01, 0.9, "slower"),
        (0.05, 0.01, 0.01, "equivalent"),
        (0.5, 0.2, 0.9, "undecided"),
    ],
)
def test_verdicts_follow_from_p_values(
    estimate: float, different: float, equivalent: float, word: str
) -> None:
    assert statistics.decide(estimate, different, equivalent) == word
