"""Statistics on simulated data whose truth is known, and against scipy and statsmodels."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from adaptive_opt.evidence import statistics
from adaptive_opt.evidence.statistics import (
    compare,
    decide,
    equivalence_p,
    holm,
    log_rank_p,
    log_ratios,
    mean_interval,
    permutation_p,
    restricted_mean,
    seeds_to_decide,
)

SIMULATIONS = 2000


def simulate(rng, pairs, effect, horizon):
    """Times of two arms that share what is easy about a seed; ln t = effect, on average."""
    seed = rng.normal(0.0, 0.3, pairs)
    t, u = (np.exp(seed + rng.normal(0.0, 0.3, pairs) + e) for e in (effect, 0.0))
    return tuple(np.where(x < horizon, x, np.inf) for x in (t, u))


def horizon_for(share):
    """At which this share of the times without effect has not come yet."""
    return math.exp(math.sqrt(0.18) * stats.norm.ppf(1 - share)) if share else 1e9


@pytest.mark.parametrize("pairs", [10, 12])
@pytest.mark.parametrize("censored", [0.0, 0.3])
def test_no_effect_is_seldom_called_one_and_intervals_cover(pairs, censored):
    rng, horizon = np.random.default_rng(pairs), horizon_for(censored)
    covered = faster = 0
    for i in range(SIMULATIONS):
        result = compare(*simulate(rng, pairs, 0.0, horizon), horizon, seed=i)
        covered += result.low <= 1 <= result.high
        verdict = decide(result, result.p_different, result.p_equivalent)
        faster += verdict == "faster"
    assert faster / SIMULATIONS <= 0.05
    assert 0.93 <= covered / SIMULATIONS <= 0.97
    print(f"{pairs} pairs, {censored:.0%} censored: faster {faster / SIMULATIONS:.3f}, "
          f"covered {covered / SIMULATIONS:.3f}")  # fmt: skip


@pytest.mark.parametrize("censored", [0.0, 0.3])
def test_intervals_cover_a_real_effect(censored):
    """The truth under censoring is the restricted ratio, from a million draws."""
    rng, horizon = np.random.default_rng(3), horizon_for(censored)
    truth = log_ratios(*simulate(rng, 10**6, -0.4, horizon), horizon).mean()
    covered = 0
    for i in range(SIMULATIONS):
        low, high = mean_interval(log_ratios(*simulate(rng, 16, -0.4, horizon), horizon), seed=i)
        covered += low <= truth <= high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


@pytest.mark.parametrize("censored", [0.0, 0.3])
def test_power_rises_with_the_effect(censored):
    rng, horizon, power = np.random.default_rng(4), horizon_for(censored), []
    for effect in (0.0, -0.2, -0.4, -0.8):
        found = 0
        for i in range(100):
            result = compare(*simulate(rng, 12, effect, horizon), horizon, seed=i)
            found += decide(result, result.p_different, 1.0) == "faster"
        power.append(found / 100)
    print(f"{censored:.0%} censored, power at −0, −0.2, −0.4, −0.8: {power}")
    assert power == sorted(power)
    assert power[0] <= 0.05
    assert power[-1] > 0.95


def test_equivalence_is_found_where_it_holds_and_seldom_at_the_margin():
    rng, found = np.random.default_rng(5), {0.0: 0, math.log(1.1): 0}
    for effect in found:
        for _ in range(500):
            values = rng.normal(effect, 0.06, 12)
            found[effect] += equivalence_p(values, math.log(1.1)) <= 0.05
    assert found[0.0] > 0.9 * 500
    assert found[math.log(1.1)] <= 0.07 * 500


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_the_permutation_test_is_scipys(pairs, alternative):
    values = np.random.default_rng(pairs).normal(0.3, 1.0, pairs).round(1)  # with ties
    if pairs > 1:
        expected = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", alternative=alternative,
            vectorized=True, n_resamples=np.inf,
        ).pvalue  # fmt: skip
        assert permutation_p(values, alternative) == pytest.approx(expected)
    else:
        assert permutation_p(values, alternative) in (0.5, 1.0)


def test_more_pairs_than_are_enumerated_are_sampled():
    values = np.random.default_rng(0).normal(0.4, 1.0, 30)
    exact = stats.ttest_1samp(values, 0.0).pvalue
    assert permutation_p(values) == pytest.approx(exact, rel=0.2)


def test_every_sign_pattern_is_there_once():
    signs = statistics._signs(4)
    assert {tuple(s) for s in signs} == set(itertools.product((-1.0, 1.0), repeat=4))


def test_equivalence_agrees_with_the_paired_t_tests():
    x = np.random.default_rng(1).normal(0.0, 0.05, 16)
    p, *_ = ttost_paired(x, np.zeros(16), -0.1, 0.1)
    assert equivalence_p(x, 0.1) == pytest.approx(p, abs=0.002)


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(2)
    for n in range(1, 8):
        p = rng.random(n).round(2)
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_log_rank_and_restricted_mean_are_scipys():
    t, u = np.array([3.0, 5.0, np.inf, 7.0]), np.array([6.0, 9.0, 10.0, np.inf])
    censored = [stats.CensoredData(uncensored=x[np.isfinite(x)], right=[12.0]) for x in (t, u)]
    assert log_rank_p(t, u, 12.0) == pytest.approx(stats.logrank(*censored).pvalue)
    assert restricted_mean(t, 12.0) == pytest.approx(np.minimum(t, 12.0).mean())
    never = np.full(4, np.inf)
    assert log_rank_p(never, never, 12.0) == 1.0
    assert restricted_mean(never, 12.0) == 12.0
    assert 0 < log_rank_p(t, never, 12.0) < 0.2


def test_few_and_equal_values():
    assert mean_interval([0.3]) == (-math.inf, math.inf)
    assert mean_interval([0.3] * 5) == (0.3, 0.3)
    low, high = mean_interval([1.0, 2.0, 4.0])
    expected = stats.ttest_1samp([1.0, 2.0, 4.0], 0.0).confidence_interval(0.95)
    assert (low, high) == pytest.approx(tuple(expected))


def test_times_that_are_none_are_refused():
    with pytest.raises(ValueError, match="positive"):
        log_ratios([0.0], [1.0], 2.0)
    with pytest.raises(ValueError, match="pairs"):
        log_ratios([1.0, 2.0], [1.0], 2.0)


def test_two_arms_that_never_arrive_are_not_equivalent():
    never = np.full(16, np.inf)
    result = compare(never, never, 100.0)
    assert result.both_never == 16
    assert decide(result, result.p_different, result.p_equivalent) == "undecided"
    assert seeds_to_decide(result, 4) is None


def test_an_arm_that_never_arrives_is_not_equivalent_to_one_that_does_so_late():
    result = compare(np.full(16, np.inf), np.full(16, 99.0), 100.0)
    assert result.p_equivalent < 0.001
    assert decide(result, result.p_different, result.p_equivalent) == "slower"


def test_an_arm_that_arrives_where_the_other_never_does_is_faster():
    rng = np.random.default_rng(6)
    result = compare(rng.uniform(10, 20, 16), np.full(16, np.inf), 100.0)
    assert decide(result, result.p_different, result.p_equivalent) == "faster"
    assert result.ratio < 0.21  # of the horizon: an upper bound
    swapped = compare(np.full(16, np.inf), rng.uniform(10, 20, 16), 100.0)
    assert decide(swapped, swapped.p_different, swapped.p_equivalent) == "slower"


def test_seeds_are_not_promised_for_an_equivalence_that_cannot_be_said():
    late = np.where(np.arange(12) < 3, 95.0, np.inf)
    result = compare(late, np.full(12, 99.0), 100.0)
    assert decide(result, result.p_different, result.p_equivalent) == "undecided"
    needed = seeds_to_decide(result, 5)
    assert needed is None or needed > 12


def test_the_number_of_seeds_has_the_power_that_it_promises():
    result = compare(np.exp([-0.5, 0.1, -0.4, 0.0]), np.ones(4), 10.0)
    needed = seeds_to_decide(result, 1)
    effect = -math.log(result.ratio) / result.spread
    power = TTestPower().power
    assert power(effect, needed, 0.05) >= 0.8 > power(effect, needed - 1, 0.05)
    certain = compare(np.full(4, 0.5), np.ones(4), 10.0)
    assert seeds_to_decide(certain, 1) == 6  # 2 / 2⁶ ≤ 5 %
    assert seeds_to_decide(certain, 4) == 8
