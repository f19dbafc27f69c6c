"""Tables of Rahimi–Recht tasks, from histories with known answers."""

import math

import numpy as np
import pandas as pd
import pytest

from adaptive_opt.evidence.passage import first_passage, losses_by_seed, settling_iteration
from adaptive_opt.evidence.rahimi_recht import (
    best_seed,
    convergence_table,
    decade_table,
    report,
)
from adaptive_opt.evidence.tables import time_to_target_table

NAN = math.nan


def history(losses, arm="ssdh", task="rr_cond29", step=10):
    """History from one list of losses per seed."""
    rows = [
        {"task": task, "arm": arm, "seed": seed, "iteration": step * i, "train_loss": value}
        for seed, column in losses.items()
        for i, value in enumerate(column)
    ]
    return pd.DataFrame(rows)


def test_first_passage():
    losses = losses_by_seed(
        history(
            {0: [9, 4, 1, 4, 1], 1: [9, 9, 9, 9, 9], 2: [1, 9, 9, 9, 9], 3: [9, 1, NAN, NAN, NAN]}
        )
    )
    assert first_passage(losses, 1).tolist() == [20, math.inf, 0, 10]
    assert first_passage(losses, 0.5).tolist() == [math.inf] * 4
    assert first_passage(losses, 9).tolist() == [0] * 4


def test_first_passage_of_a_single_seed_and_row():
    assert first_passage(losses_by_seed(history({7: [3.0]})), 3).tolist() == [0]


def test_settling_is_relative_to_the_final_level():
    falling = pd.Series([1000.0, 100.0, 9.0, 1.0, 1.0], index=[0, 10, 20, 30, 40])
    assert settling_iteration(falling, 10) == 20
    assert settling_iteration(falling, 2) == 30
    assert settling_iteration(pd.Series([5.0, 5.0], index=[0, 10]), 2) == 0
    assert math.isnan(settling_iteration(pd.Series([5.0, NAN], index=[0, 10]), 2))


def test_settling_takes_the_median_of_the_last_hundredth():
    losses = pd.Series(np.r_[np.full(100, 100.0), np.full(197, 1.0), [1.0, 1.0, 50.0]])
    assert settling_iteration(losses, 2) == 100


def test_time_to_target():
    fast = history({0: [9, 1, 1], 1: [9, 9, 1], 2: [9, 9, 9]})
    never = history({0: [9, 9, 9], 1: [9, NAN, NAN], 2: [9, 9, 9]}, arm="adam")
    half = history({0: [9, 1, 1], 1: [9, 9, 9], 2: [9, 9, 9]}, arm="sadh")
    table = time_to_target_table([fast, never, half], {"rr_cond29": 1.0}).set_index("arm")
    assert table.loc["ssdh", ["never", "median_of_reached", "median_of_all"]].tolist() == [
        1,
        15,
        20,
    ]
    assert table.loc["ssdh", ["fastest", "slowest_reached"]].tolist() == [10, 20]
    assert table.loc["adam", ["never", "median_of_reached"]].tolist() == [3, math.inf]
    assert table.loc["sadh", ["median_of_reached", "median_of_all"]].tolist() == [10, math.inf]
    assert (table["seeds"] == 3).all()


def test_convergence_is_that_of_the_best_run():
    best = [1000.0, 50.0, 1.0, 1.0, 1.0]
    table = convergence_table(
        [history({0: [1000.0, 20, 20, 20, 20], 1: best, 2: [9, NAN, NAN, NAN, NAN]})], 10
    )
    row = table.iloc[0]
    assert (row["best_seed"], row["final_loss"], row["iteration"]) == (1, 1.0, 20)
    assert row["convergence_pct"] == 50.0
    assert row["median_convergence_pct"] == pytest.approx(100 * 15 / 40)


def test_a_tie_goes_to_the_first_seed():
    table = convergence_table([history({3: [9.0, 1.0], 4: [9.0, 1.0]})], 2)
    assert table["best_seed"].tolist() == [3]


def test_decades_have_closed_lower_ends():
    table = decade_table(
        [history({0: [1, 1e-3], 1: [1, 9.9e-4], 2: [1, 9.9e-3], 3: [1, NAN], 4: [1, 0.01]})]
    )
    row = table.iloc[0]
    assert row["1e-4..1e-3"] == 1
    assert row["1e-3..1e-2"] == 2
    assert row["1e-2..1e-1"] == 1
    assert row["diverged"] == 1
    assert row.drop(["task", "arm"]).sum() == 5


def test_decades_of_a_zero_loss_and_of_nothing():
    table = decade_table([history({0: [1.0, 0.0]})])
    assert table.drop(columns=["task", "arm", "diverged"]).to_numpy().sum() == 1
    assert decade_table([history({0: [1.0, NAN]})])["diverged"].tolist() == [1]


def test_the_report_states_medians_and_arms_that_never_arrive():
    histories = [
        history({0: [9, 1, 1], 1: [9, 9, 1]}),
        history({0: [9, 9, 9], 1: [9, 9, 9]}, arm="adam"),
    ]
    text = report(
        time_to_target_table(histories, {"rr_cond29": 1.0}),
        convergence_table(histories, 10),
        decade_table(histories),
        scale="made up",
        settled_within=10,
    )
    assert "SSDH 15 (2 of 2). No seed reaches it: Adam." in text
    assert "| Adam | never | never | – | 2 of 2 |" in text
    assert "| SSDH | 15 | 15 | 10 – 20 | 0 of 2 |" in text


def test_the_best_among_ties_is_the_lowest_seed_in_any_order():
    tied = history({5: [9.0, 1.0], 3: [9.0, 1.0], 4: [9.0, 2.0]}).iloc[::-1]
    assert best_seed(tied) == 3
    assert convergence_table([tied], 2)["best_seed"].tolist() == [3]


def test_convergence_of_a_single_seed():
    row = convergence_table([history({7: [9.0, 1.0, 1.0]})], 2).iloc[0]
    assert (row["best_seed"], row["convergence_pct"], row["median_convergence_pct"]) == (7, 50, 50)


def test_a_diverged_run_is_never_the_best():
    """Its loss before divergence does not count."""
    assert best_seed(history({0: [9.0, 1e-9, NAN], 1: [9.0, 9.0, 8.0]})) == 1
    assert best_seed(history({0: [9.0, 1e-9, math.inf], 1: [9.0, 9.0, 8.0]})) == 1
    nothing = [history({0: [9.0, NAN], 1: [9.0, NAN]})]
    assert best_seed(nothing[0]) is None
    row = convergence_table(nothing, 10).iloc[0]
    assert row[["best_seed", "final_loss", "iteration", "convergence_pct"]].isna().all()
    text = report(
        time_to_target_table(nothing, {"rr_cond29": 1.0}),
        convergence_table(nothing, 10),
        decade_table(nothing),
        scale="made up",
        settled_within=10,
    )
    assert "| SSDH | never | – | – | – |" in text
    assert "nan" not in text


def test_seeds_that_end_at_different_iterations():
    """A shorter seed has not diverged: its own last loss and its own length count."""
    uneven = [history({0: [100.0, 50.0, 1.0, 1.0, 1.0], 1: [100.0, 0.5, 0.5]})]
    row = convergence_table(uneven, 10).iloc[0]
    assert (row["best_seed"], row["final_loss"], row["iteration"]) == (1, 0.5, 10)
    assert row["convergence_pct"] == 50
    assert row["median_convergence_pct"] == 50  # both at half of their run
    decades = decade_table(uneven).iloc[0]
    assert (decades["1e-1..1e0"], decades["1e0..1e1"], decades["diverged"]) == (1, 1, 0)
    passed = time_to_target_table(uneven, {"rr_cond29": 0.9}).iloc[0]
    assert (passed["seeds"], passed["never"], passed["median_of_reached"]) == (2, 1, 10)


def test_arms_of_different_length_have_their_own_percentages():
    table = convergence_table(
        [history({0: [9.0, 1.0, 1.0]}), history({0: [9.0, 9.0, 9.0, 1.0, 1.0]}, arm="adam")], 2
    )
    assert table["convergence_pct"].tolist() == [50, 75]


def test_an_infinite_loss_counts_as_diverged():
    row = decade_table([history({0: [1.0, math.inf], 1: [1.0, 0.5]})]).iloc[0]
    assert (row["1e-1..1e0"], row["diverged"]) == (1, 1)
