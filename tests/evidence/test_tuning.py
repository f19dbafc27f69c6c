"""Table, report and best-of-n curve of a search, with known answers."""

import itertools

import numpy as np
import pytest

from adaptive_opt.evidence.tuning import best_of_n, report, search_table


@pytest.mark.parametrize("values", [[3.0], [2.0, 1.0], [5.0, 1.0, 1.0, 4.0], list(range(7))])
def test_best_of_n_is_the_mean_over_all_draws(values):
    for n, expected in enumerate(best_of_n(values), start=1):
        draws = [min(draw) for draw in itertools.combinations(values, n)]
        assert expected == pytest.approx(np.mean(draws))


def test_best_of_n_falls_to_the_best():
    values = np.random.default_rng(0).lognormal(size=200)
    curve = best_of_n(values)
    assert (np.diff(curve) <= 1e-12).all()
    assert curve[0] == pytest.approx(values.mean())
    assert curve[-1] == values.min()


def test_diverged_trials_count_as_infinitely_bad():
    curve = best_of_n([1.0, np.inf, 2.0, np.inf])
    assert np.isinf(curve[:2]).all()  # both of two may have diverged
    assert curve[2:] == pytest.approx([1.5 - 0.25, 1.0])
    assert best_of_n([]).size == 0


def record(arm, **changes):
    return {
        "task": "rr_cond29",
        "arm": arm,
        "source": "search",
        "objective": "time_to_target",
        "values": {"lr": 0.1, "beta2": 0.99},
        "value": 0.25,
        "edges": {},
        "space": {"lr": [0.1, 1.0, "log"], "beta2": [0.9, 0.999, "log_complement"]},
        "trials": {"complete": 5, "diverged": 2, "failed": 1},
        "budget": 100.0,
        "spent": 95.0,
        "seconds": 3.21,
        **changes,
    }


def test_the_report_states_configurations_and_costs():
    given = {"arm": "custom", "task": "rr_cond29", "source": "published", "values": {}}
    records = [record("adam"), record("ssdh", edges={"lr": "low"}), {**given, "edges": {}}]
    text = report(search_table(records), "base")
    assert "| Adam | 0.25 | lr 0.1, beta2 0.99 | 5 | 0 | 2 | 1 | 95.0 % | 3.2 |" in text
    assert "| Custom | as given |  | 0 | 0 | 0 | 0 | – | 0.0 |" in text
    assert "SSDH: lr (low: 0.1)" in text
    assert "Adam: lr" not in text
    assert "Budget of every arm: 100 gradient-equivalents" in text


def test_published_configurations_are_reported_as_such():
    given = {"arm": "adam", "task": "rr_cond29", "source": "published", "values": {}, "edges": {}}
    assert "nothing was searched" in report(search_table([given]), "base")
