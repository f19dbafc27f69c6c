"""Training at several lengths: jobs, their hyperparameters, and resuming after interruptions."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from adaptive_opt.engine.checkpoint import Checkpoint
from adaptive_opt.engine.lengths import COLUMNS, Lengths, plan_jobs
from adaptive_opt.engine.network import run_network
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.parameters import TaskParameters, TrainingParameters
from adaptive_opt.tasks.rr_functions import synthesise

from . import networks

HYPER = {"beta1": 0.9, "beta2": 0.99, "rho": 0.3, "eps": 1e-12, "update_period": 10}
STUDIES = [{**HYPER, "lr": lr} for lr in (0.02, 0.1)]
TRAINING = TrainingParameters(device="cpu", hessian_every=40)


def function():
    return synthesise(
        "singular_values", condition=10.0, x_dim=4, hidden_dim=5, y_dim=6, layers=2, samples=64,
        seed=0,
    )  # fmt: skip


def trained(shares, optimizer="adaptive_opt.optim.SSDH", studies=STUDIES, chosen=None, **options):
    lengths = Lengths(shares)
    history, weights, summary = run_rahimi_recht(
        function(),
        task="rr_cond29",
        arm="ssdh",
        optimizer=optimizer,
        hyperparameters=studies,
        task_parameters=TaskParameters(batch_size=16, epochs=20, seeds=4, target=1e-3),
        training=TRAINING,
        lengths=lengths,
        seeds=chosen,
        **options,
    )
    return history, weights, summary, lengths.table()


def test_every_length_has_a_row_with_its_own_schedule():
    history, _, _, table = trained((0.25, 2.0))
    assert list(table.columns) == list(COLUMNS)
    assert table.groupby("share")["seed"].apply(list).to_dict() == {
        0.25: [0, 1, 2, 3], 1.0: [0, 1, 2, 3], 2.0: [0, 1],
    }  # fmt: skip
    assert table.groupby("share")["iterations"].first().tolist() == [20, 80, 160]
    assert (table["study"] == table["seed"] % 2).all()
    full = table[table["share"] == 1].set_index("seed")["train_loss"]
    last = history[history["iteration"] == 80].set_index("seed")["train_loss"]
    assert full.tolist() == pytest.approx(last.tolist(), rel=1e-6)
    # A short run is not the beginning of a long one: its learning rate decays earlier.
    early = history[history["iteration"] == 20].set_index("seed")["train_loss"]
    short = table[table["share"] == 0.25].set_index("seed")["train_loss"]
    assert not (short == early.astype(float)).any()
    assert (table["gradient_equivalents"] >= table["iterations"]).all()


def test_each_seed_uses_the_configuration_of_its_search():
    _, weights, summary, table = trained((0.5,))
    alone = [trained((0.5,), studies=[config]) for config in STUDIES]
    for seed in range(4):
        other = alone[seed % 2]
        for name, value in weights.items():
            assert torch.allclose(value[seed], other[1][name][seed])
        rows = [t[t["seed"] == seed]["train_loss"].tolist() for t in (table, other[3])]
        assert rows[0] == pytest.approx(rows[1], rel=1e-6)
    assert summary["hyperparameters"] == STUDIES


def history_of_seed(history, seed):
    rows = history[history["seed"] == seed]
    return rows.drop(columns="device_seconds").reset_index(drop=True)


def test_a_foreign_optimizer_trains_each_search_separately():
    studies = [{"lr": 0.01}, {"lr": 0.1}]
    history, weights, _, table = trained((0.5,), optimizer="torch.optim.RAdam", studies=studies)
    for i, config in enumerate(studies):
        other = trained((0.5,), optimizer="torch.optim.RAdam", studies=[config])
        for seed in (i, i + 2):
            assert torch.equal(weights["W1"][seed], other[1]["W1"][seed])
            pd.testing.assert_frame_equal(
                history_of_seed(history, seed), history_of_seed(other[0], seed)
            )
    assert len(table) == 8


def test_seeds_of_searches_without_result_are_not_trained():
    jobs = plan_jobs((1.0,), [1, 3], [None, HYPER], together=True, per_member=True)
    assert [list(t.seeds) for t in jobs] == [[1, 3]]
    _, weights, summary, table = trained((), studies=[None, STUDIES[1]], chosen=[1, 3])
    assert summary["seeds"] == [1, 3]
    assert weights["W1"].shape[0] == 2
    assert table["seed"].tolist() == [1, 3]


class InterruptionError(Exception):
    pass


def interrupt_and_resume(monkeypatch, file, after, run):
    """Results of a run that is interrupted after some saves and resumed."""
    saves = {"left": after}
    save = Checkpoint.save

    def save_or_interrupt(self, state):
        save(self, state)
        saves["left"] -= 1
        if saves["left"] == 0:
            raise InterruptionError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_or_interrupt)
        with pytest.raises(InterruptionError):
            run(Checkpoint(file, "a", every=0))
    return run(Checkpoint(file, "a", every=0))


@pytest.mark.parametrize("after", [1, 7, 21, 24, 30])
def test_rahimi_recht_resumes_within_any_length(monkeypatch, tmp_path, after):
    whole = trained((0.25, 0.5))
    again = interrupt_and_resume(
        monkeypatch, tmp_path / "c.pt", after, lambda c: trained((0.25, 0.5), checkpoint=c)
    )
    pd.testing.assert_frame_equal(
        whole[0].drop(columns="device_seconds"), again[0].drop(columns="device_seconds")
    )
    pd.testing.assert_frame_equal(whole[3], again[3])
    assert all(torch.equal(whole[1][name], again[1][name]) for name in whole[1])


@pytest.mark.parametrize("after", [2, 8, 14])
@pytest.mark.parametrize("task", ["resnet18", "transformer"])
def test_networks_resume_within_any_length(monkeypatch, tmp_path, task, after):
    data = networks.images() if task == "resnet18" else networks.text()

    def run(checkpoint):
        lengths = Lengths((0.5, 0.3))
        history, weights, _ = run_network(
            data,
            task=task,
            arm="ssdh",
            optimizer="adaptive_opt.optim.SSDH",
            hyperparameters=STUDIES,
            task_parameters=networks.task_parameters(task),
            training=TrainingParameters(device="cpu"),
            checkpoint=checkpoint,
            lengths=lengths,
        )
        return history.drop(columns="device_seconds"), weights, lengths.table()

    whole = run(Checkpoint(None))
    again = interrupt_and_resume(monkeypatch, tmp_path / "c.pt", after, run)
    pd.testing.assert_frame_equal(whole[0], again[0])
    pd.testing.assert_frame_equal(whole[2], again[2])
    assert all(torch.equal(whole[1][name], again[1][name]) for name in whole[1])
    assert whole[2]["valid_loss"].notna().all()
    assert math.isfinite(whole[2]["train_loss"].sum())
