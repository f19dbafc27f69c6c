"""The published tables of networks, from histories with known answers."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from adaptive_opt.evidence.milestones import (
    image_markdown,
    image_table,
    text_markdown,
    text_table,
)
from adaptive_opt.evidence.passage import batches_per_epoch, epoch_means

NAN = math.nan


def history(task, columns, arm="ssdh", step=5, length=10):
    """History with a row at every ``step`` iterations; ``columns``: name to a list per seed."""
    seeds = range(len(next(iter(columns.values()))))
    frames = []
    for seed in seeds:
        values = {name: by_seed[seed] for name, by_seed in columns.items()}
        frame = pd.DataFrame(values)
        frame.insert(0, "iteration", step * np.arange(len(frame)))
        frames.append(frame.assign(seed=seed))
    frame = pd.concat(frames, ignore_index=True)
    frame["epoch"] = frame["iteration"] // length
    frame["device_seconds"] = 0.1 * frame["iteration"] * (1 + frame["seed"])
    return frame.assign(task=task, arm=arm)


# An epoch has 10 iterations; validation data are evaluated at its end.
IMAGES = {
    "train_loss": [[3.0, 2, 1, 1, 1], [3.0, 2, 1, 1, 1]],
    "train_accuracy": [[0.0, 0.5, 0.9, 1.0, 1.0], [0.0, 0.5, 0.9, 1.0, 1.0]],
    "valid_accuracy": [[0.1, NAN, 0.7, NAN, 0.8], [0.1, NAN, 0.8, NAN, 0.9]],
    "test_accuracy": [[NAN, NAN, NAN, NAN, 0.6], [NAN, NAN, NAN, NAN, 0.8]],
}


def one(table):
    (row,) = table.to_dict("records")
    return row


def test_final_accuracy_and_when_it_is_first_reached():
    row = one(image_table([history("resnet18", IMAGES)], 0.94))
    assert row["test_accuracy"] == pytest.approx(0.7)
    assert row["test_accuracy_std"] == pytest.approx(math.sqrt(0.02))
    assert row["valid_accuracy"] == pytest.approx(0.85)
    # 0.75 at iteration 10 is below 0.85 − 0.0707, so only the end is within.
    assert (row["settled_iteration"], row["settled_pct"]) == (20, 100)
    assert row["settled_seconds"] == pytest.approx(3.0)  # 2 s and 4 s
    # Means over an epoch: about 0.65 at iteration 10, 0.95 at 15 and 1 at 20.
    assert row["level_iteration"] == 15
    assert row["level_pct"] == 75


def test_the_limit_of_one_standard_deviation_is_included():
    values = {**IMAGES, "valid_accuracy": [[0.1, NAN, 0.7, NAN, 0.7], [0.1, NAN, 0.7, NAN, 0.9]]}
    row = one(image_table([history("resnet18", values)], 0.9))
    assert row["valid_accuracy_std"] == pytest.approx(math.sqrt(0.02))
    assert row["settled_iteration"] == 10  # 0.7 is above 0.8 − 0.141
    low = one(image_table([history("resnet18", values | {"valid_accuracy": [[0.7] * 5] * 2})], 0.9))
    assert (low["valid_accuracy_std"], low["settled_iteration"]) == (0, 0)


def test_one_seed_has_no_standard_deviation():
    single = {name: by_seed[:1] for name, by_seed in IMAGES.items()}
    row = one(image_table([history("resnet18", single)], 0.9))
    assert row["test_accuracy"] == pytest.approx(0.6)
    for name in ("test_accuracy_std", "valid_accuracy_std", "settled_iteration", "settled_pct"):
        assert math.isnan(row[name])
    assert np.isfinite(row["level_iteration"])
    table = image_table([history("resnet18", single)], 0.9)
    assert "| SSDH | 60.00 % | 80.00 % | – | – |" in image_markdown(table)


def test_a_level_never_reached_is_infinite():
    # The last epoch is nine batches at 1 and one at 0.9.
    row = one(image_table([history("resnet18", IMAGES)], 0.99))
    assert row["level_iteration"] == 20
    assert one(image_table([history("resnet18", IMAGES)], 0.991))["level_iteration"] == math.inf
    short = {name: [v[:-1] for v in by_seed] for name, by_seed in IMAGES.items()}
    table = image_table([history("resnet18", short)], 0.999)
    assert one(table)["level_pct"] == one(table)["level_seconds"] == math.inf
    text = image_markdown(table)
    assert "| never | – |" in text
    assert "training accuracy 99.9 % at" in text


def test_diverged_seeds_are_counted_and_left_out():
    values = {name: [*by_seed, [by_seed[0][0], *[NAN] * 4]] for name, by_seed in IMAGES.items()}
    row = one(image_table([history("resnet18", values)], 0.94))
    whole = one(image_table([history("resnet18", IMAGES)], 0.94))
    assert (row["seeds"], row["diverged"]) == (3, 1)
    for name, value in whole.items():
        assert name in ("seeds", "diverged") or row[name] == value
    nothing = {name: [[1.0, *[NAN] * 4]] for name in IMAGES}
    table = image_table([history("resnet18", nothing)], 0.94)
    row = one(table)
    assert row["diverged"] == 1
    assert math.isnan(row["level_iteration"])
    assert "| SSDH | – | – | – | – | – | – |" in image_markdown(table)


TEXT = {
    "train_loss": [[5.0, 3.0, 2.0, 1.5], [5.0, 4.0, 3.0, 2.5]],
    "valid_loss": [[5.0, NAN, 3.0, 4.0], [5.0, NAN, 3.2, 3.0]],
    "test_perplexity": [[NAN, NAN, NAN, 40.0], [NAN, NAN, NAN, 42.0]],
}


def test_losses_and_perplexities_of_texts():
    table = text_table([history("transformer", TEXT)], {"transformer": 2.5})
    row = one(table)
    assert (row["target_iteration"], row["target_seconds"]) == (10, 1.5)  # mean 2.5 there
    assert row["target_pct"] == pytest.approx(100 * 10 / 15)
    assert row["train_loss"] == pytest.approx(2.0)
    assert row["train_loss_std"] == pytest.approx(math.sqrt(0.5))
    assert (row["valid_loss"], row["valid_loss_std"]) == (3.0, 0.0)
    assert row["valid_perplexity"] == pytest.approx(math.exp(3))
    assert row["test_perplexity"] == 41
    text = text_markdown(table)
    assert "training loss ≤ 2.5 at" in text
    assert "| SSDH | 66.67 % | 1.5 | 2.000 ± 0.707 | 3.000 ± 0.000 | 20.1 ± 0.0 |" in text


def test_a_target_that_is_never_reached_with_one_seed():
    single = {name: by_seed[:1] for name, by_seed in TEXT.items()}
    table = text_table([history("transformer", single)], {"transformer": 0.1})
    row = one(table)
    assert row["target_iteration"] == row["target_pct"] == row["target_seconds"] == math.inf
    assert math.isnan(row["valid_loss_std"])
    assert "| SSDH | never | – | 1.500 | 3.000 | 20.1 | 40.0 |" in text_markdown(table)


def test_seeds_of_unequal_length():
    """A seed that ends earlier has not diverged; its last value counts."""
    values = {name: [by_seed[0], by_seed[1][:3]] for name, by_seed in TEXT.items()}
    row = one(text_table([history("transformer", values)], {"transformer": 1.5}))
    assert (row["seeds"], row["diverged"]) == (2, 0)
    assert row["train_loss"] == pytest.approx((1.5 + 3.0) / 2)
    assert row["valid_loss"] == pytest.approx((3.0 + 3.2) / 2)
    assert row["target_iteration"] == 15


def test_each_table_has_one_kind_of_task():
    histories = [history("resnet18", IMAGES), history("transformer", TEXT)]
    assert image_table(histories, 0.9)["task"].tolist() == ["resnet18"]
    assert text_table(histories, {"transformer": 1.0})["task"].tolist() == ["transformer"]
    empty = image_table([], 0.9)
    assert len(empty) == 0
    assert {"task", "test_accuracy", "level_pct"} <= set(empty.columns)


def test_means_over_an_epoch_weight_all_batches_equally():
    """Rows are means of different numbers of batches; the result is that of single batches."""
    batches = np.random.default_rng(0).uniform(size=40)
    length = 8
    at = [*range(0, 40, 4), 40]
    means = [batches[0], *(batches[a + 1 : b + 1].mean() for a, b in pairwise(at))]
    frame = pd.DataFrame({"iteration": at, "seed": 0, "train_accuracy": means})
    frame["epoch"] = frame["iteration"] // length
    assert batches_per_epoch(frame) == length
    found = epoch_means(frame, "train_accuracy")[0]
    for t in at[3:]:
        seen = batches[: min(t + 1, 40)]
        assert found[t] == pytest.approx(seen[-length:].mean() if t < 40 else found[40])
    assert found[0] == batches[0]
    assert found[4] == pytest.approx(batches[:5].mean())
