"""Speed of single runs, from curves with known speeds."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from adaptive_opt.evidence.speedup import Curve, reference_curve, run_speeds

SHARES = (0.0625, 0.125, 0.25, 0.5, 1.0)


def table(loss: object, shares: tuple[float, ...] = SHARES, seeds: int = 3) -> pd.DataFrame:
    """Final losses of identical runs."""
    rows = [(seed, share, loss(share)) for seed in range(seeds) for share in shares]  # type: ignore[operator]
    return pd.DataFrame(rows, columns=["seed", "share", "train_loss"])


def transformer(speed: float) -> object:
    return lambda share: min(5.4, 4 + 0.23 * (speed * share) ** -0.95)


def root(speed: float) -> object:
    return lambda share: 0.01 * (speed * share) ** -0.6


def speed_of(own: pd.DataFrame, reference: pd.DataFrame, seeds: int = 3) -> list[tuple[float, int]]:
    curve = reference_curve(reference, "train_loss")
    assert curve is not None
    found = run_speeds(own, curve, "train_loss", range(seeds), 1)
    return [(math.exp(run.log), run.bound) for run in found.runs.values()]


@pytest.mark.parametrize("loss", [transformer, root])
@pytest.mark.parametrize("speed", [0.3, 0.7, 0.9, 1.0, 1.1, 1.7, 3.0, 9.0])
def test_slower_and_faster_runs_have_their_true_speed(loss: object, speed: float) -> None:
    reference = table(loss(1.0), (*SHARES, 2.0))  # type: ignore[operator]
    for found, bound in speed_of(table(loss(speed)), reference):  # type: ignore[operator]
        assert found == pytest.approx(speed, rel=0.04)
        assert bound == 0


def test_beyond_the_lengths_only_a_bound_is_known() -> None:
    reference = table(root(1.0))
    assert speed_of(table(root(40.0)), reference) == [(pytest.approx(16), 1)] * 3
    assert speed_of(table(root(0.01)), reference) == [(pytest.approx(1 / 16), -1)] * 3


def test_fewer_lengths_give_weaker_bounds() -> None:
    reference = table(root(1.0))
    assert speed_of(table(root(1.5), (0.5, 1.0)), reference)[0] == (pytest.approx(1.5, rel=0.02), 0)
    assert speed_of(table(root(3.0), (0.5, 1.0)), reference)[0] == (pytest.approx(2), 1)
    assert speed_of(table(root(3.0), (1.0,)), reference)[0] == (pytest.approx(1), 1)
    assert speed_of(table(root(0.4), (1.0,)), reference)[0] == (pytest.approx(0.4, rel=0.02), 0)


def test_a_run_that_stays_on_the_plateau_is_slower_by_a_bound() -> None:
    reference = table(transformer(1.0))
    curve = reference_curve(reference, "train_loss")
    assert curve is not None
    # The reference is on the plateau at its shortest lengths, so the loss alone is not enough.
    found = run_speeds(table(lambda share: 5.39), curve, "train_loss", range(3), 1, stuck_above=5.3)
    for run in found.runs.values():
        assert (math.exp(run.log), run.bound) == (pytest.approx(1 / 16), -1)


def test_diverged_and_missing_runs_get_the_lowest_bound() -> None:
    reference = table(root(1.0))
    assert speed_of(table(lambda share: math.nan), reference) == [(pytest.approx(1 / 16), -1)] * 3
    assert speed_of(table(root(2.0)).query("seed != 1"), reference)[1] == (
        pytest.approx(1 / 16),
        -1,
    )


def test_the_reference_is_the_median_even_if_one_run_diverged() -> None:
    runs = table(root(1.0))
    runs.loc[(runs["seed"] == 2) & (runs["share"] == 1), "train_loss"] = math.nan
    curve = reference_curve(runs, "train_loss")
    assert curve is not None
    assert math.exp(curve.at(1.0)) == pytest.approx(0.01)
    assert reference_curve(runs.assign(train_loss=math.nan), "train_loss") is None


def test_a_rising_curve_is_flattened_and_inverted_in_the_middle() -> None:
    curve = Curve.fit([0.25, 0.5, 1.0], [4.0, 1.0, 4.0])
    assert np.all(np.diff(curve.losses) <= 1e-12)
    level = curve.at(1.0)
    assert level == pytest.approx(math.log(2))
    assert math.exp(curve.length_for(level)) == pytest.approx(math.sqrt(0.5))
    assert curve.length_for(2.0) == -math.inf
    assert curve.length_for(-1.0) == math.inf


def test_means_are_over_the_seeds_of_each_search() -> None:
    reference = table(root(1.0), seeds=4)
    own = pd.concat(
        [table(root(s), seeds=1).assign(seed=i) for i, s in enumerate((1.0, 2.0, 1.0, 4.0))]
    )
    curve = reference_curve(reference, "train_loss")
    assert curve is not None
    found = run_speeds(own, curve, "train_loss", range(4), 2)
    assert np.exp(found.means) == pytest.approx([1.0, math.sqrt(8)], rel=0.02)
    between, within = found.spread()
    assert between == pytest.approx(np.std(found.means, ddof=1))
    assert within == pytest.approx(math.sqrt(0.5 * np.var(np.log([2, 4]), ddof=1)), rel=0.05)
    assert len(run_speeds(own, curve, "train_loss", range(4), 1).means) == 4  # one search: seeds
