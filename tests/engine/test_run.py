"""The training loop: comparison with plain training, reproducibility, ensembles, divergence."""

import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from adaptive_opt.curvature import deep_linear
from adaptive_opt.curvature.statistics import COLUMNS
from adaptive_opt.engine.contract import Plan
from adaptive_opt.engine.device import resolve_device
from adaptive_opt.engine.optimizers import build_optimizer
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.engine.schedule import make_schedule
from adaptive_opt.engine.seeds import derive_seed
from adaptive_opt.engine.train import train_ensemble
from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import TaskParameters, TrainingParameters, resolve_arm
from adaptive_opt.study import ARMS, arm_names
from adaptive_opt.tasks.rahimi_recht import RahimiRecht
from adaptive_opt.tasks.rr_functions import synthesise

FUNCTION = synthesise(
    "singular_values",
    condition=10.0,
    x_dim=3,
    hidden_dim=4,
    y_dim=5,
    layers=2,
    samples=100,
    seed=0,
)
CONFIGURATIONS = {
    "sgdm": {"lr": 0.02},
    "adam": {"lr": 0.02, "beta2": 0.99},
    "sgd": {"lr": 0.1},
    "custom": {"optimizer": "torch.optim.Adamax", "lr": 0.02},
    **{a: {"lr": 0.1, "beta2": 0.99, "rho": 0.1} for a in ("sophia", "sadh", "ssdh", "ssvp")},
    **{a: {"lr": 0.02} for a in ("adamw", "amsgrad", "nadam")},
}


def train(arm, seeds=(0, 1), epochs=5, task=None, **training):
    settings = TrainingParameters(
        **{"device": "cpu", "log_every": 2, "statistics_every": 4, "hessian_every": 10, **training}
    )
    parameters = TaskParameters(
        **{"epochs": epochs, "seeds": 2, "target": 0.1, "batch_size": 32, **(task or {})}
    )
    return run_rahimi_recht(
        FUNCTION,
        task="rr_cond29",
        arm=arm,
        **resolve_arm(arm, CONFIGURATIONS, settings),
        task_parameters=parameters,
        training=settings,
        seeds=seeds,
    )


def final(weights):
    return torch.cat([w.flatten(1) for w in weights.values()], dim=1).numpy()


@pytest.mark.parametrize("arm", arm_names())
def test_every_arm_learns_and_repeats_exactly(arm):
    history, weights, summary = train(arm, epochs=40)
    again, weights_again, _ = train(arm, epochs=40)
    losses = history.pivot(index="iteration", columns="seed", values="train_loss")
    assert (losses.iloc[-1] < 0.7 * losses.iloc[0]).all()
    np.testing.assert_array_equal(final(weights), final(weights_again))
    timeless = [c for c in history if c != "device_seconds"]
    assert history[timeless].equals(again[timeless])
    assert summary["diverged_at"] == [None, None]


@pytest.mark.parametrize("arm", arm_names())
def test_a_run_does_not_depend_on_other_members(arm):
    _, together, _ = train(arm, seeds=(0, 1, 2), hessian_every=0)
    _, alone, _ = train(arm, seeds=(1,), hessian_every=0)
    np.testing.assert_allclose(final(together)[1], final(alone)[0], rtol=2e-5, atol=2e-6)


def test_plain_training_gives_the_same_weights():
    """Plain training: a module, a sampler, torch's SGD and scheduler, one run."""
    _, weights, _ = train("sgdm", seeds=(1,), schedule="cosine_by_epoch", hessian_every=0)
    seed = derive_seed("rr_cond29", 1, "weights")
    generator = torch.Generator().manual_seed(seed)
    shapes = [w.shape[1:] for w in weights.values()]
    start = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 5, bias=False)
    ).double()
    for layer, w in zip(model, start, strict=True):
        layer.weight.data = w
    x = FUNCTION.inputs
    y = x @ FUNCTION.target.T
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    scheduler = CosineAnnealingLR(optimizer, T_max=6, eta_min=0.002)
    order = torch.Generator().manual_seed(derive_seed("rr_cond29", 1, "order"))
    for _ in range(5):
        for rows in torch.randperm(100, generator=order).split(32):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x[rows]), y[rows]).sqrt().backward()
            optimizer.step()
        scheduler.step()
    for w, layer in zip(weights.values(), model, strict=True):
        np.testing.assert_allclose(w[0], layer.weight.detach(), rtol=1e-3, atol=1e-5)


def test_arms_are_paired():
    first, second = train("sgdm")[0], train("ssdh")[0]
    start = [h[h["iteration"] == 0].set_index("seed")["train_loss"] for h in (first, second)]
    assert start[0].equals(start[1])
    assert start[0][0] != start[0][1]
    batches = [h[h["iteration"] == 0].set_index("seed")["batch_loss"] for h in (first, second)]
    assert batches[0].equals(batches[1])


def test_history_has_the_planned_rows_and_columns():
    history, _, summary = train("ssdh")
    assert sorted(history["iteration"].unique()) == list(range(0, 21, 2))
    assert set(history["seed"]) == {0, 1}
    assert {"task", "arm", "epoch", "lr", "device_seconds", "gradient_equivalents"} <= set(history)
    assert {"estimate_norm", "curvature_norm", "denominator_norm"} <= set(history)
    assert history.loc[history["iteration"] == 20, "epoch"].eq(5).all()
    seen = history[history["clipped_fraction"].notna()]["iteration"].unique()
    assert sorted(seen) == [0, 4, 8, 12, 16]
    clock = history[history["seed"] == 0].sort_values("iteration")["device_seconds"]
    assert clock.is_monotonic_increasing
    assert 0 <= clock.iloc[0] < clock.iloc[-1] <= summary["device_seconds"]
    cost = history[history["iteration"] == 20]["gradient_equivalents"].unique()
    assert cost.tolist() == [20 + 2 * 2] == [summary["gradient_equivalents"]]


def test_hessian_columns_match_the_weights():
    history, weights, _ = train("sadh")
    rows = history[history["iteration"] == 20]
    for i in range(2):
        w = [x[i].double() for x in weights.values()]
        hessian = deep_linear.hessian(w, FUNCTION.target, FUNCTION.gram, "rmse")
        values = torch.linalg.eigvalsh(hessian)
        row = rows[rows["seed"] == i].iloc[0]
        assert row["hessian_spectral_norm"] == pytest.approx(float(values.abs().max()), rel=1e-9)
        assert row["hessian_eigenvalue_norm"] == pytest.approx(float(values.norm()), rel=1e-9)
        assert row["train_loss"] == pytest.approx(
            float(deep_linear.loss(w, FUNCTION.target, FUNCTION.gram, "rmse")), rel=1e-4
        )
    measured = history[history["hessian_spectral_norm"].notna()]["iteration"].unique()
    assert sorted(measured) == [0, 10, 20]


def test_a_diverged_member_is_frozen_and_the_others_continue():
    settings = TrainingParameters(device="cpu", log_every=1, hessian_every=40)
    parameters = TaskParameters(epochs=100, seeds=3, target=0.1, batch_size=100, loss="mse")

    def attempt(lr, seeds):
        return run_rahimi_recht(
            FUNCTION,
            task="rr_cond29",
            arm="sgdm",
            optimizer="adaptive_opt.optim.SGDM",
            hyperparameters={"lr": torch.tensor(lr)},
            task_parameters=parameters,
            training=settings,
            seeds=seeds,
        )

    history, weights, summary = attempt([0.001, 5.0, 0.001], (0, 1, 2))
    assert summary["diverged_at"][0] is summary["diverged_at"][2] is None
    start = summary["diverged_at"][1]
    assert 0 < start < 100
    assert all(bool(w.isfinite().all()) for w in weights.values())
    diverged = history[history["seed"] == 1]
    frozen = diverged["iteration"] >= start
    assert diverged.loc[frozen, ["train_loss", *COLUMNS]].isna().all(axis=None)
    assert diverged.loc[~frozen, "train_loss"].notna().all()
    assert summary["final_train_loss"][1] is None
    _, alone, _ = attempt([0.001, 0.001], (0, 2))
    np.testing.assert_allclose(final(weights)[[0, 2]], final(alone), rtol=1e-6)


def test_a_run_whose_members_all_diverge_ends_early():
    settings = TrainingParameters(device="cpu", log_every=1, hessian_every=0)
    _, weights, summary = run_rahimi_recht(
        FUNCTION,
        task="rr_cond29",
        arm="sgdm",
        optimizer="adaptive_opt.optim.SGDM",
        hyperparameters={"lr": 100.0},
        task_parameters=TaskParameters(epochs=500, seeds=2, target=0.1, loss="mse"),
        training=settings,
    )
    assert None not in summary["diverged_at"]
    assert all(bool(w.isfinite().all()) for w in weights.values())


@pytest.mark.parametrize(
    ("path", "kwargs"),
    [
        ("adaptive_opt.optim.SGDM", {"momentum": 0.9, "weight_decay": 0.5}),
        ("adaptive_opt.optim.Adam", {"weight_decay": 0.5}),
        ("torch.optim.SGD", {"momentum": 0.9, "weight_decay": 0.5}),
    ],
)
def test_a_frozen_member_stays_where_it_was(path, kwargs):
    """Neither momentum nor weight decay changes its weights."""
    ends = []
    for epochs in (40, 80):
        problem = RahimiRecht(
            FUNCTION,
            loss="mse",
            batch_size=100,
            weight_seeds=[0, 1],
            order_seeds=[0, 1],
            device=torch.device("cpu"),
        )
        params = problem.initial_parameters()
        optimizer = build_optimizer(path, {"lr": 1e-6, **kwargs}, params, probe_seeds=[0, 1])
        plan = Plan(epochs, schedule="constant", log_every=1, diverged_above=10)

        def poison(batch, params=params, calls=[]):  # noqa: B006
            calls.append(1)
            if len(calls) == 30:
                params[0].data[1] = 1e6

        result = train_ensemble(problem, params, optimizer, plan, on_batch=poison)
        assert result.diverged_at == [None, 29]
        ends.append([w[1] for w in result.weights])
    for a, b in zip(*ends, strict=True):
        assert bool(a.isfinite().all())
        assert torch.equal(a, b)


def test_logging_intervals_need_not_divide_each_other():
    history, _, _ = train("ssdh", log_every=3, statistics_every=4, hessian_every=5)
    at = lambda column: history[history[column].notna()]["iteration"].unique().tolist()  # noqa: E731
    assert at("hessian_spectral_norm") == [0, 5, 10, 15, 20]
    assert at("gradient_norm") == [0, 4, 8, 12, 16]
    assert set(range(0, 20, 3)) <= set(at("train_loss"))


@pytest.mark.parametrize("initialisation", ["per_seed", "shared"])
def test_initialisation_per_seed_or_shared(initialisation):
    history, _, _ = train("sgdm", task={"initialisation": initialisation})
    start = history[history["iteration"] == 0]["train_loss"]
    assert (start.nunique() == 1) == (initialisation == "shared")
    end = history[history["iteration"] == 20]["train_loss"]
    assert end.nunique() == 2


@pytest.mark.parametrize("loss", ["rmse", "mse"])
def test_both_losses(loss):
    history, _, _ = train("adam", task={"loss": loss})
    other, _, _ = train("adam", task={"loss": "mse"})
    start = [h[h["iteration"] == 0]["train_loss"].to_numpy() for h in (history, other)]
    expected = start[1] if loss == "mse" else np.sqrt(start[1])
    np.testing.assert_allclose(start[0], expected, rtol=1e-5)


def test_schedules():
    cosine = make_schedule("cosine", epochs=3, batches_per_epoch=4, floor=0.1)
    assert cosine(0) == 1.0
    assert cosine(11) == pytest.approx(0.1)
    by_epoch = make_schedule("cosine_by_epoch", epochs=3, batches_per_epoch=4, floor=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    reference = CosineAnnealingLR(optimizer, T_max=4, eta_min=0.2)
    for epoch in range(3):
        for batch in range(4):
            rate = optimizer.param_groups[0]["lr"]
            assert 2.0 * by_epoch(4 * epoch + batch) == pytest.approx(rate)
        optimizer.step()
        reference.step()
    assert by_epoch(11) > 0.1 + 0.1
    constant = make_schedule("constant", epochs=1, batches_per_epoch=1, floor=0.1)
    assert constant(0) == constant(99) == 1.0
    assert math.isfinite(make_schedule("cosine", epochs=1, batches_per_epoch=1, floor=0.1)(0))


def test_seeds_are_pinned():
    """Other seeds would change every published number."""
    assert derive_seed("rr_cond29", 0, "weights") == 6997068838916024216
    assert len({derive_seed("t", a, s) for a in ("x", "y") for s in range(100)}) == 200


def test_optimizers_of_all_arms_can_be_built():
    for arm in ARMS:
        if arm.kind == "zoo":  # tests/optim/test_needs.py
            continue
        hyper = resolve_arm(arm.name, CONFIGURATIONS, TrainingParameters())
        p = torch.zeros(1, 2, 2, requires_grad=True)
        assert build_optimizer(
            **{"path": hyper["optimizer"]},
            hyperparameters=hyper["hyperparameters"],
            params=[p],
            probe_seeds=[0],
            matrix_fn=lambda kind: torch.zeros(1, 4, 4),
        )


@pytest.mark.parametrize(
    ("path", "kwargs", "message"),
    [
        ("torch.optim.Nothing", {}, "cannot be imported"),
        ("nothing.at.All", {}, "cannot be imported"),
        ("nodots", {}, "cannot be imported"),
        ("torch.nn.Linear", {}, "is not a torch.optim.Optimizer"),
        ("torch.optim.AdamW", {"learning_rate": 1.0}, "learning_rate"),
        ("torch.optim.AdamW", {"lr": -1.0}, "Invalid learning rate"),
        ("adaptive_opt.optim.SSDH", {"lr": -1.0}, "lr must be at least 0"),
    ],
)
def test_bad_optimizers_are_refused(path, kwargs, message):
    p = torch.zeros(1, 2, 2, requires_grad=True)
    with pytest.raises(StudyError, match=message):
        build_optimizer(path, kwargs, [p], probe_seeds=[0])


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(StudyError, match="torch sees no GPU"):
        resolve_device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("arm", ["sgdm", "adam", "sophia", "ssdh", "ssvp"])
def test_the_same_code_runs_on_a_gpu(arm):
    history, _, _ = train(arm, device="cuda", epochs=40)
    losses = history.pivot(index="iteration", columns="seed", values="train_loss")
    assert (losses.iloc[-1] < 0.7 * losses.iloc[0]).all()
