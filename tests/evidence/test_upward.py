"""The ladder upwards on simulated studies: shares with intervals, frontier, sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from adaptive_opt.evidence.judge import Judge
from adaptive_opt.evidence.prices import PRICE_COLUMNS
from adaptive_opt.evidence.upward import (
    Point,
    Share,
    frontier,
    paragraph,
    points,
    ratio_interval,
    read_shares,
    share_table,
    shares,
)
from adaptive_opt.evidence.verdict import TaskData, build_verdict
from adaptive_opt.plots.figure import to_matplotlib, to_plotly
from adaptive_opt.plots.frontier import frontier_figure

from .simulated import SETTINGS, Truth, draw

SPEEDS = {"sgdm": 0.9, "sadh": 1.2, "ssdh": 1.1, "sadh_diagonal": 1.5, "sadh_whole": 4.0}
SPEEDS |= {"sadh_layers": 2.5, "ssdh_permuted": 1.0, "ssdh_constant": 0.8}
PRICES = {"sadh": 1.2, "ssdh": 1.3, "sadh_diagonal": 1.1, "sadh_whole": 3.0, "sadh_layers": 1.5}
TRUE = math.log(1.5) / math.log(4.0)


def study(
    speeds: Mapping[str, float] = SPEEDS, seed: int = 0, prices: Mapping[str, float] = PRICES
) -> TaskData:
    data = draw(speeds, Truth(), np.random.default_rng(seed))
    jitter = np.random.default_rng(seed + 1)
    rows = []
    for arm in data.bests:
        for r in range(5):
            step = 1e-3 * prices.get(arm, 1.0) * math.exp(jitter.normal(0, 0.01))
            rows.append((data.task, arm, r, step, 0.0, step))
    return replace(data, prices=pd.DataFrame(rows, columns=list(PRICE_COLUMNS)))


def of_pair(found: list[Share], arm: str, clock: str = "iteration") -> Share:
    return next(s for s in found if (s.arm, s.clock) == (arm, clock))


def test_intervals_cover_the_true_share() -> None:
    inside = 0
    for seed in range(60):
        found = of_pair(shares(Judge(study(seed=seed), SETTINGS)), "sadh_diagonal")
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.share < found.high  # type: ignore[operator]
        inside += found.low <= TRUE <= found.high
    assert inside >= 52  # of 60; 57 are expected


def test_share_in_seconds_takes_the_prices_into_account() -> None:
    found = of_pair(shares(Judge(study(), SETTINGS)), "sadh_diagonal", "device_seconds")
    expected = math.log(1.5 / 1.1) / math.log(4.0 / 3.0)
    if found.share is not None:
        assert found.low <= expected <= found.high  # type: ignore[operator]
    cheap = {**PRICES, "sadh_whole": 1.1}
    found = of_pair(shares(Judge(study(prices=cheap), SETTINGS)), "sadh_diagonal", "device_seconds")
    expected = math.log(1.5 / 1.1) / math.log(4.0 / 1.1)
    assert found.low <= expected <= found.high  # type: ignore[operator]


def test_without_a_speed_up_of_the_whole_matrix_there_is_no_share() -> None:
    found = of_pair(shares(Judge(study({**SPEEDS, "sadh_whole": 1.0}), SETTINGS)), "sadh_diagonal")
    assert found.share is found.low is found.high is None
    assert "no proven speed-up" in found.reason


def test_beyond_the_lengths_there_is_no_share() -> None:
    found = of_pair(shares(Judge(study({**SPEEDS, "sadh_whole": 40.0}), SETTINGS)), "sadh_diagonal")
    assert found.share is None
    assert "beyond the trained lengths" in found.reason


def test_only_pairs_of_the_study_are_compared() -> None:
    found = shares(Judge(study(), SETTINGS))
    assert {s.arm for s in found} == {"sadh_diagonal", "sadh_layers", "sadh", "ssdh"}
    without = {arm: v for arm, v in SPEEDS.items() if arm != "sadh_whole"}
    assert shares(Judge(study(without), SETTINGS)) == []


def test_fiellers_interval_has_the_ends_at_which_the_test_turns() -> None:
    x, y, vx, vy, c, t = 0.5, 1.5, 0.01, 0.04, 0.005, 2.5
    interval = ratio_interval(x, y, vx, vy, c, t)
    assert interval is not None
    for end in interval:
        error = math.sqrt(vx - 2 * end * c + end**2 * vy)
        assert abs(x - end * y) / error == pytest.approx(t)
    low, high = interval
    assert low < x / y < high
    assert ratio_interval(x, 0.4, vx, vy, c, t) is None  # y is not above 2.5 · 0.2


def test_fiellers_interval_covers_a_ratio_of_normal_numbers() -> None:
    random, inside = np.random.default_rng(0), 0
    cov = np.array([[0.04, 0.02], [0.02, 0.09]])
    t = float(stats.norm.ppf(0.975))
    for x, y in random.multivariate_normal([0.6, 1.5], cov, 2000):
        found = ratio_interval(x, y, cov[0, 0], cov[1, 1], cov[0, 1], t)
        inside += found is None or found[0] <= 0.4 <= found[1]
    assert 0.935 <= inside / 2000 <= 0.965


def test_shares_survive_a_table() -> None:
    found = shares(Judge(study({**SPEEDS, "sadh_layers": 40.0}), SETTINGS))
    assert {s.share is None for s in found} == {True, False}
    assert read_shares(share_table(found)) == found
    assert read_shares(share_table([])) == []


def test_frontier_keeps_what_no_cheaper_point_exceeds() -> None:
    rows = [("a", 1.0, 1.0), ("b", 1.2, 0.9), ("c", 1.2, 3.0), ("d", 2.0, 3.0), ("e", 4.0, 5.0)]
    made = [Point(n, n, p, p, p, s, s, s) for n, p, s in rows]
    assert [p.arm for p in frontier(made)] == ["a", "c", "e"]
    assert frontier([]) == []


def test_points_are_the_arms_with_a_speed_up_and_a_price() -> None:
    verdict = build_verdict([study()], SETTINGS, "base", {})
    (task,) = verdict.tasks
    found = {p.arm: p for p in points(task)}
    assert {*found} == {"adam", *SPEEDS}
    assert (found["adam"].speedup, found["adam"].price) == (1.0, 1.0)
    assert found["sadh_whole"].price == pytest.approx(3.0, rel=0.05)
    assert found["sadh_whole"].price_low < 3.0 < found["sadh_whole"].price_high
    best = [p.arm for p in frontier(list(found.values()))]
    assert best[-3:] == ["sadh_diagonal", "sadh_layers", "sadh_whole"]
    in_seconds = {p.arm: p for p in points(task, "device_seconds")}
    whole = found["sadh_whole"]
    assert in_seconds["sadh_whole"].speedup == pytest.approx(whole.speedup / whole.price)


def test_paragraph_has_the_share_and_the_frontier() -> None:
    data = study()
    (task,) = build_verdict([data], SETTINGS, "base", {}).tasks
    found = shares(Judge(data, SETTINGS))
    text = paragraph(task, found)
    share = of_pair(found, "sadh_diagonal").share
    assert f"SADH, diagonal gets {100 * share:.0f} %" in text  # type: ignore[operator]
    assert "of what SADH, whole matrix would give" in text
    assert "In iterations, no other arm with as cheap a step is faster than:" in text
    censored = paragraph(task, [Share("transformer", "sadh_diagonal", "sadh_whole", "iteration",
                                      reason="it is so")])  # fmt: skip
    assert "none, because it is so" in censored


def test_figure_has_a_point_an_arm_and_the_frontier() -> None:
    verdict = build_verdict([study({**SPEEDS, "sadh_whole": 40.0})], SETTINGS, "base", {})
    figure = frontier_figure(verdict, ["A sentence."])
    assert [p.y_label for p in figure.panels] == ["speed-up in iterations", "speed-up in seconds"]
    labels = [line.label for line in figure.panels[0].lines if line.label]
    assert labels[0] == "frontier"
    assert len(labels) == 2 + len(SPEEDS)
    symbols = {line.label: line.symbol for line in figure.panels[0].lines}
    assert symbols["SADH, whole matrix"] == "triangle"
    assert symbols["SADH, diagonal"] == "dot"
    assert figure.caption.endswith("A sentence.")
    to_plotly(figure)
    to_matplotlib(figure)


def test_a_study_without_prices_has_no_points() -> None:
    data = replace(study(), prices=None)
    (task,) = build_verdict([data], SETTINGS, "base", {}).tasks
    assert points(task) == []
    assert "nothing to compare" in paragraph(task, [])
    verdict = build_verdict([data], SETTINGS, "base", {})
    to_matplotlib(frontier_figure(verdict))
