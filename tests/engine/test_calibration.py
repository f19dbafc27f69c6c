"""Seconds per step: arms alternate, and a slow arm is measured as slow."""

from __future__ import annotations

import time

import pytest
import torch

from adaptive_opt.engine import calibration
from adaptive_opt.engine.calibration import COLUMNS, calibrate
from adaptive_opt.evidence.prices import PRICE_COLUMNS, price_of, price_ratios
from adaptive_opt.optim import Adam
from adaptive_opt.parameters import CalibrationParameters, TaskParameters, TrainingParameters
from adaptive_opt.tasks.rr_functions import synthesise

from . import networks

PAUSE = 0.004
FIRST = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
SECOND = {**FIRST, "rho": 0.1, "eps": 1e-12, "update_period": 5}


class Slow(Adam):
    """Adam with a pause at every step."""

    def step(self, closure=None):
        time.sleep(PAUSE)
        return super().step(closure)


ARMS = {
    "adam": {"optimizer": "adaptive_opt.optim.Adam", "hyperparameters": FIRST},
    "adamw": {"optimizer": f"{__name__}.Slow", "hyperparameters": FIRST},
    "ssdh": {"optimizer": "adaptive_opt.optim.SSDH", "hyperparameters": SECOND},
    "nadam": {"optimizer": "torch.optim.NAdam", "hyperparameters": {"lr": 0.01}},
}
SETTINGS = CalibrationParameters(rounds=3, update_periods=2)


def function():
    return synthesise(
        "singular_values", condition=10.0, x_dim=4, hidden_dim=5, y_dim=6, layers=2, samples=64,
        seed=0,
    )  # fmt: skip


def prices(task="rr_cond29", data=None, settings=None, arms=ARMS):
    return calibrate(
        data or function(),
        task=task,
        arms=arms,
        task_parameters=settings or TaskParameters(batch_size=16, epochs=20, seeds=4, target=1e-3),
        training=TrainingParameters(device="cpu"),
        settings=SETTINGS,
    )


def test_engine_writes_the_columns_that_the_evidence_reads():
    assert COLUMNS == PRICE_COLUMNS
    assert list(prices().columns) == list(COLUMNS)


def test_slow_arms_and_curvature_cost_more():
    table = prices()
    assert table.groupby("arm")["round"].apply(sorted).to_dict() == {a: [0, 1, 2] for a in ARMS}
    ratios = price_ratios(table, "adam")
    assert ratios["adamw"].log > 1  # several times a step of a fifth of a millisecond
    assert price_of(table, "adamw")["plain"] >= PAUSE
    ssdh = price_of(table, "ssdh")
    assert ssdh["refresh"] > ssdh["plain"]  # a Hessian-vector product on so small a function
    rows = table[table["arm"] == "ssdh"]
    assert rows["step"].to_numpy() == pytest.approx(
        (rows["plain"] + rows["refresh"] / 5).to_numpy()
    )
    assert (table[table["arm"] == "adam"]["refresh"] == 0).all()


def test_arms_alternate(monkeypatch):
    order = []
    measure = calibration._ArmTimer.measure

    def recorded(self, periods):
        order.append((type(self.optimizer).__name__, periods))
        return measure(self, periods)

    monkeypatch.setattr(calibration._ArmTimer, "measure", recorded)
    prices(arms={name: ARMS[name] for name in ("adam", "ssdh")})
    names = [name for name, _ in order]
    assert [p for _, p in order] == [1, 1, 2, 2, 2, 2, 2, 2]  # warm-up first
    assert names == ["Adam", "SSDH", "Adam", "SSDH", "SSDH", "Adam", "Adam", "SSDH"]


@pytest.mark.parametrize("task", ["resnet18", "transformer"])
def test_networks_are_measured(task):
    data = networks.images() if task == "resnet18" else networks.text()
    threads = torch.get_num_threads()
    table = prices(task, data, networks.task_parameters(task))
    assert (table[["plain", "step"]] > 0).all().all()
    assert price_of(table, "ssdh")["refresh"] > 0
    assert torch.get_num_threads() == threads
