"""Tables and figures of networks, from histories with known answers."""

import math

import pandas as pd
import pytest

from adaptive_opt.evidence.milestones import image_table, text_table
from adaptive_opt.evidence.networks import cost_markdown, cost_table, outcome_table, report
from adaptive_opt.evidence.tables import time_to_target_table
from adaptive_opt.plots.networks import loss_figure, optimizer_figure, valid_loss_figure

NAN = math.nan


def history(task, arm, columns, seconds=1.0):
    """History of two seeds at iterations 0, 10 and 20; ``columns``: name to six values."""
    frame = pd.DataFrame({"iteration": [0, 10, 20] * 2, "seed": [0] * 3 + [1] * 3, **columns})
    frame["epoch"] = frame["iteration"] // 10
    frame["task"], frame["arm"] = task, arm
    frame["device_seconds"] = seconds * frame["iteration"] / 20
    frame["gradient_equivalents"] = 1.2 * frame["iteration"]
    return frame


RESNET = history(
    "resnet18",
    "ssdh",
    {
        "train_loss": [2.0, 0.6, 0.4, 3.0, 0.8, 0.6],
        "valid_loss": [2.0, 0.6, 0.8, 2.0, 0.9, 0.4],
        "test_loss": [NAN, NAN, 0.9, NAN, NAN, 0.7],
        "test_accuracy": [NAN, NAN, 0.80, NAN, NAN, 0.90],
        "clipped_fraction": [1.0, 0.5, NAN, 0.8, 0.3, NAN],
    },
    seconds=3.0,
)
DIVERGED = history(
    "resnet18",
    "adam",
    {
        "train_loss": [2.0, 0.6, 0.4, 3.0, NAN, NAN],
        "valid_loss": [2.0, 0.6, 0.8, 2.0, NAN, NAN],
        "test_loss": [NAN, NAN, 0.9, NAN, NAN, NAN],
        "test_accuracy": [NAN, NAN, 0.80, NAN, NAN, NAN],
    },
    seconds=2.0,
)


def test_outcomes_are_means_over_seeds():
    row = outcome_table([RESNET]).iloc[0]
    assert row["iterations"] == 20
    assert row["start"] == pytest.approx(2.5)
    assert row["train_loss"] == pytest.approx(0.6)
    assert row["train_loss_std"] == pytest.approx(math.sqrt(0.02))
    assert row["valid_loss"] == pytest.approx(0.5)  # each seed's lowest: 0.6 and 0.4
    assert row["test_accuracy"] == pytest.approx(0.85)
    assert row["diverged"] == 0


def test_diverged_runs_are_counted_and_left_out():
    row = outcome_table([DIVERGED]).iloc[0]
    assert row["diverged"] == 1
    assert row["train_loss"] == pytest.approx(0.5)
    assert row["test_accuracy"] == pytest.approx(0.80)
    assert math.isnan(row["train_loss_std"])


def test_costs_are_relative_to_the_fastest_arm_of_the_task():
    table = cost_table([RESNET, DIVERGED]).set_index("arm")
    assert table.loc["ssdh", "gradient_equivalents"] == pytest.approx(24)
    assert table["relative_seconds"].to_dict() == pytest.approx({"ssdh": 1.5, "adam": 1.0})


def test_the_report_states_the_tables():
    histories = [RESNET, DIVERGED]
    text = report(
        time_to_target_table(histories, {"resnet18": 0.55}),
        outcome_table(histories),
        cost_table(histories),
        image_table(histories, 0.999),
        text_table(histories, {}),
        scale="base",
    )
    assert "# Networks, scale `base`" in text
    assert "SSDH 20 (1 of 2)" in text
    assert "| SSDH | 2.500 ± 0.707 | 0.600 ± 0.141 | 0.500 ± 0.141 | 85.0 ± 7.1 % | 0 |" in text
    assert "| Adam | 2.500 ± 0.707 | 0.500 | 0.600 | 80.0 % | 1 |" in text
    assert "| SSDH | 20 | 24 | 3.0 | 1.50 |" in text


@pytest.mark.parametrize("clock", ["iteration", "gradient_equivalents", "device_seconds"])
def test_the_loss_figure_can_use_every_clock(clock):
    (panel,) = loss_figure([RESNET, DIVERGED], {"resnet18": 0.6}, clock).panels
    line = panel.lines[0]
    factor = {"iteration": 1, "gradient_equivalents": 1.2, "device_seconds": 0.15}[clock]
    assert list(line.x) == pytest.approx([0, 10 * factor, 20 * factor])
    assert list(line.y) == pytest.approx([2.5, 0.7, 0.5])
    assert list(line.low) == pytest.approx([2.0, 0.6, 0.4])
    assert list(line.high) == pytest.approx([3.0, 0.8, 0.6])
    assert panel.level == 0.6


def test_the_clipping_figure_shows_only_arms_that_clip():
    (panel,) = optimizer_figure([RESNET, DIVERGED], "clipped_fraction").panels
    assert [line.label for line in panel.lines] == ["SSDH"]
    assert list(panel.lines[0].y) == pytest.approx([0.9, 0.4])
    assert len(valid_loss_figure([RESNET, DIVERGED]).panels[0].lines) == 2


def test_seeds_that_end_at_different_iterations():
    """A shorter seed counts with its own last epoch and its own cost."""
    short = RESNET[(RESNET["seed"] == 0) | (RESNET["iteration"] <= 10)]
    row = outcome_table([short]).iloc[0]
    assert (row["seeds"], row["iterations"], row["diverged"]) == (2, 20, 0)
    assert row["train_loss"] == pytest.approx((0.5 + (3.0 + 0.8) / 2) / 2)
    assert row["valid_loss"] == pytest.approx((0.6 + 0.9) / 2)
    assert row["test_accuracy"] == pytest.approx(0.80)
    cost = cost_table([short]).iloc[0]
    assert cost["gradient_equivalents"] == pytest.approx(1.2 * 15)


def test_an_arm_with_only_diverged_runs():
    nothing = DIVERGED[DIVERGED["seed"] == 1]
    row = outcome_table([nothing]).iloc[0]
    assert (row["diverged"], math.isnan(row["train_loss"])) == (1, True)
    costs = cost_table([RESNET, nothing]).set_index("arm")
    assert costs.loc["ssdh", "relative_seconds"] == 1
    assert math.isnan(costs.loc["adam", "relative_seconds"])
    assert "| Adam | 20 | – | – | – |" in cost_markdown(costs.reset_index())
