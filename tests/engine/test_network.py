"""Training of networks: every arm, comparison with plain training, ensembles, histories."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from adaptive_opt.engine.network import build_network_task
from adaptive_opt.engine.provenance import code_digest
from adaptive_opt.engine.seeds import derive_seed
from adaptive_opt.evidence.networks import outcome_table
from adaptive_opt.study import arm_names, arms_on, get_task
from tests.engine.networks import images, task_parameters, text, train, training_parameters

TASKS = ("resnet18", "transformer")
EVERY = [(task, arm) for task in TASKS for arm in arms_on(get_task(task), arm_names())]


def timeless(history):
    return history[[c for c in history if c != "device_seconds"]]


def losses(history, column="train_loss"):
    return history.pivot(index="iteration", columns="seed", values=column)


@pytest.mark.parametrize(("task", "arm"), EVERY)
def test_every_arm_learns_and_repeats_exactly(task, arm):
    sizes = {"epochs": 8 if task == "resnet18" else 6}
    history, weights, summary = train(task, arm, sizes=sizes)
    again, weights_again, _ = train(task, arm, sizes=sizes)
    found = losses(history)
    assert (found.iloc[-1] < 0.97 * found.iloc[0]).all()
    assert timeless(history).equals(timeless(again))
    for name, w in weights.items():
        assert torch.equal(w, weights_again[name])
    assert summary["diverged_at"] == [None, None]


def test_exact_curvature_is_not_offered_on_networks():
    assert "ssdh_exact" not in arms_on(get_task("resnet18"), arm_names())
    assert "ssdh_exact" in arms_on(get_task("rr_cond29"), arm_names())


@pytest.mark.parametrize("task", TASKS)
def test_plain_training_gives_the_same_weights(task):
    """Plain training: a module, a loop, torch's SGD and clipping, one run."""
    augmentation = {"crop_padding": 0, "flip": False} if task == "resnet18" else {"dropout": 0.0}
    hyper = {"lr": 0.1, "momentum": 0.9}
    settings = training_parameters(schedule="constant", channels_last=False)
    sizes = task_parameters(task, **augmentation)
    data = images() if task == "resnet18" else text()
    _, weights, _ = train(
        task, "sgdm", seeds=(1,), hyperparameters=hyper, sizes=augmentation,
        schedule="constant", channels_last=False,
    )  # fmt: skip
    problem = build_network_task(data, task, [1], sizes, settings)
    torch.manual_seed(derive_seed(task, 1, "weights"))
    module = problem.build()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        for x, y in problem.epoch(epoch):
            x, y = (x[0], y[0]) if task == "resnet18" else (x, y)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x).flatten(0, -2), y.flatten()).backward()
            if sizes.max_grad_norm:
                nn.utils.clip_grad_norm_(module.parameters(), sizes.max_grad_norm)
            optimizer.step()
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        torch.testing.assert_close(weights[name][0], value.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("arm", ["adam", "ssdh", "ssvp"])
def test_ensembles_equal_separate_runs(task, arm):
    """Without dropout, whose random numbers the members of an ensemble share."""
    sizes = {"dropout": 0.0} if task == "transformer" else {}
    sizes |= {"epochs": 1}
    apart, w, _ = train(task, arm, ensemble="apart", sizes=sizes)
    together, w_together, summary = train(task, arm, ensemble="together", sizes=sizes)
    assert summary["ensemble"] == "together"
    for column in ("train_loss", "valid_loss", "gradient_norm", "gradient_equivalents"):
        np.testing.assert_allclose(
            losses(together, column), losses(apart, column), rtol=2e-2, atol=1e-3
        )
    assert list(w) == list(w_together)
    assert all(w[name].shape == w_together[name].shape for name in w)


@pytest.mark.parametrize("task", TASKS)
def test_initial_losses_agree_between_arms_and_differ_between_seeds(task):
    a, b = (losses(train(task, arm)[0], "batch_loss").iloc[0] for arm in ("sgdm", "ssdh"))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert a[0] != a[1]


@pytest.mark.parametrize("task", TASKS)
def test_history_has_the_planned_rows_and_columns(task):
    history, _, summary = train(task, "ssdh", sizes={"epochs": 2})
    length = summary["iterations"]
    per_epoch = length // 2
    one = history[history["seed"] == 1].set_index("iteration")
    expected = sorted({*range(0, length, 2), *range(0, length, 4), 0, per_epoch, length})
    assert one.index.tolist() == expected
    assert one["epoch"].tolist() == [t // per_epoch for t in expected]
    # Validation data at each epoch, test data once.
    assert one["valid_loss"].dropna().index.tolist() == [0, per_epoch, length]
    assert one["test_loss"].dropna().index.tolist() == [length]
    extra = "accuracy" if task == "resnet18" else "perplexity"
    assert np.isfinite(one.loc[length, f"test_{extra}"])
    if task == "resnet18":
        assert one["batch_accuracy"].dropna().between(0, 1).all()
    # Row 0 has the first batch; every other row has the mean since the row before.
    assert one.loc[0, "train_loss"] == one.loc[0, "batch_loss"]
    assert one["device_seconds"].is_monotonic_increasing
    assert one["clipped_fraction"].dropna().between(0, 1).all()
    refreshes = math.ceil(length / 10)
    assert summary["gradient_equivalents"] == length + 2 * refreshes
    assert one["lr"].iloc[0] == pytest.approx(0.05)
    assert one["lr"].iloc[-1] == pytest.approx(0.005)


@pytest.mark.parametrize("quantity", ["loss", "accuracy"])
def test_training_loss_and_accuracy_are_means_since_the_last_row(quantity):
    every, _, _ = train("resnet18", "adam", sizes={"epochs": 2, "log_every": 1})
    third, _, _ = train("resnet18", "adam", sizes={"epochs": 2, "log_every": 3}, statistics_every=3)
    batches = losses(every, f"batch_{quantity}")
    means = losses(third, f"train_{quantity}")
    np.testing.assert_allclose(means.loc[3], batches.loc[1:3].mean(), rtol=1e-5)
    np.testing.assert_allclose(means.loc[6], batches.loc[4:6].mean(), rtol=1e-5)


def test_gradient_and_curvature_are_clipped_by_the_same_factor():
    """Active clipping scales m and c, so that SADH's update m/D hardly changes."""
    hyper = {"lr": 1e-3, "beta2": 0.5, "rho": 1e6, "eps": 1e-12}
    norms, curvatures = [], []
    for limit in (1e-3, 1e-2):
        history, _, _ = train(
            "transformer", "sadh", seeds=(0,), hyperparameters=hyper,
            sizes={"max_grad_norm": limit, "epochs": 1},
        )  # fmt: skip
        norms.append(history["gradient_norm"].dropna().iloc[0])
        curvatures.append(history["curvature_norm"].dropna().iloc[0])
    assert norms == pytest.approx([1e-3, 1e-2], rel=1e-2)
    assert curvatures[1] / curvatures[0] == pytest.approx(10, rel=1e-2)


@pytest.mark.parametrize("task", TASKS)
def test_curvature_on_part_of_the_batch_costs_that_part(task):
    history, _, summary = train(task, "ssdh", curvature_share=0.25, sizes={"epochs": 4})
    length = summary["iterations"]
    assert summary["gradient_equivalents"] == length + 0.75 * math.ceil(length / 10)
    found = losses(history)
    assert (found.iloc[-1] < found.iloc[0]).all()


def test_a_diverged_seed_is_marked_and_the_others_go_on():
    hyper = {"optimizer": "torch.optim.SGD", "lr": 1e9}
    for ensemble in ("apart", "together"):
        history, weights, summary = train(
            "resnet18", "custom", hyperparameters=hyper, ensemble=ensemble, diverged_above=10.0
        )
        assert all(t is not None for t in summary["diverged_at"])
        assert summary["final_train_loss"] == [None, None]
        assert (
            history.loc[history["iteration"] > summary["diverged_at"][0], "train_loss"].isna().all()
        )
        assert all(torch.isfinite(weights[n]).all() for n in weights if "running" not in n)


@pytest.mark.parametrize("ensemble", ["apart", "together"])
def test_a_run_that_ends_early_has_a_history_of_full_length(ensemble):
    """Its values are NaN from where it diverged."""
    history, _, summary = train(
        "resnet18", "custom", hyperparameters={"optimizer": "torch.optim.SGD", "lr": 1e9},
        ensemble=ensemble, diverged_above=10.0, sizes={"epochs": 40, "log_every": 1},
    )  # fmt: skip
    assert all(t is not None for t in summary["diverged_at"])
    assert history.groupby("seed")["iteration"].max().tolist() == [120, 120]
    assert summary["final_train_loss"] == [None, None]
    assert outcome_table([history]).iloc[0]["diverged"] == 2


def test_a_diverged_seed_has_its_last_good_buffers():
    _, weights, summary = train(
        "resnet18", "custom", hyperparameters={"optimizer": "torch.optim.SGD", "lr": 1e9},
        diverged_above=10.0, sizes={"epochs": 40, "log_every": 1},
    )  # fmt: skip
    assert all(t is not None for t in summary["diverged_at"])
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_data_of_another_family_is_refused():
    with pytest.raises(TypeError, match="TextData cannot be learnt with ImageTaskParameters"):
        build_network_task(
            text(), "resnet18", [0], task_parameters("resnet18"), training_parameters()
        )


@pytest.mark.gpu
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("arm", ["adam", "ssdh", "ssvp"])
def test_the_same_code_trains_on_a_gpu(task, precision, arm):
    history, _, summary = train(task, arm, device="cuda", precision=precision)
    found = losses(history)
    assert summary["device"].startswith("cuda")
    assert (found.iloc[-1] < found.iloc[0]).all()


def test_small_networks_train_seeds_together_and_large_ones_apart(monkeypatch):
    found = [train("transformer", "adam", sizes={"epochs": 1})[2]["ensemble"]]
    monkeypatch.setattr("adaptive_opt.engine.network.SMALL_NETWORK", 100)
    found.append(train("transformer", "adam", sizes={"epochs": 1})[2]["ensemble"])
    assert found == ["together", "apart"]


def test_histories_of_several_seeds_are_one_table():
    history, weights, summary = train("transformer", "adam", seeds=(4, 9))
    assert isinstance(history, pd.DataFrame)
    assert sorted(set(history["seed"])) == [4, 9] == summary["seeds"]
    assert all(len(w) == 2 for w in weights.values())
    logged = history["iteration"] % 2 == 0
    assert history.loc[logged, "train_loss"].notna().all()


def test_progress_is_logged_without_a_terminal(caplog, monkeypatch):
    monkeypatch.setattr("adaptive_opt.engine.results.LOG_INTERVAL", 0.0)
    caplog.set_level("INFO")
    train("transformer", "adam", sizes={"epochs": 1}, ensemble="apart")
    assert "transformer adam: 7 of 14 iterations, about 0 min left" in caplog.text


def test_editing_an_optimizer_changes_the_code_digest(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    text = "import torch\nclass Mine(torch.optim.SGD):\n    pass\n"
    (tmp_path / "mine_for_digest.py").write_text(text)
    before = code_digest("mine_for_digest.Mine")
    assert before == code_digest("mine_for_digest.Mine") != code_digest("torch.optim.SGD")
    (tmp_path / "mine_for_digest.py").write_text(text + "    # changed\n")
    assert code_digest("mine_for_digest.Mine") != before
    before = code_digest("torch.optim.SGD")
    assert before != code_digest("torch.optim.Adam")
    monkeypatch.setattr("adaptive_opt.engine.provenance.version", lambda package: "0.0")
    assert code_digest("torch.optim.SGD") != before
