"""Recorded trajectories equal those of the study's runs."""

import numpy as np
import pytest
import torch

from adaptive_opt.curvature.fidelity import METHODS
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.engine.trace import measure_fidelity, trace_rahimi_recht
from adaptive_opt.parameters import (
    FidelityParameters,
    TaskParameters,
    TrainingParameters,
    resolve_arm,
)
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
TASK = TaskParameters(epochs=10, seeds=3, target=0.1, batch_size=32)  # 40 iterations
VALUES = {"lr": 0.1, "beta2": 0.9, "rho": 0.1}


def arguments(arm="ssdh", seeds=(0, 1), values=VALUES, **training):
    settings = TrainingParameters(
        **{"device": "cpu", "log_every": 2, "statistics_every": 4, "hessian_every": 10, **training}
    )
    return {
        "task": "rr_cond29",
        "arm": arm,
        **resolve_arm(arm, {arm: values}, settings),
        "task_parameters": TASK,
        "training": settings,
        "seeds": seeds,
    }


def flat(weights):
    return torch.cat([weights[f"W{i}"].flatten(1) for i in (1, 2)], dim=1)


@pytest.mark.parametrize("arm", ["ssdh", "ssvp", "ssdh_exact"])
def test_a_trajectory_ends_at_the_weights_of_the_run(arm):
    given = arguments(arm, seeds=(0, 2))
    _, weights, _ = run_rahimi_recht(FUNCTION, **given)
    trace = trace_rahimi_recht(FUNCTION, **given)
    assert torch.equal(flat(weights), flat(trace))
    assert trace["seeds"].tolist() == [0, 2]


def test_points_and_momentum_explain_the_next_step():
    """With k = 1, each step is the learning rate times the clipped update."""
    lr = 0.1
    given = arguments(schedule="constant", values={**VALUES, "lr": lr, "update_period": 1})
    trace = trace_rahimi_recht(FUNCTION, **given)
    assert trace["iterations"].tolist() == list(range(40))
    points = torch.cat([trace["points"], flat(trace)[None]]).double()
    steps = (points[:-1] - points[1:]) / lr
    m = trace["momentum"].double()
    assert steps.abs().max() <= 0.1 * (1 + 1e-3)
    moved = steps.abs() > 1e-3
    assert moved.double().mean() > 0.5
    assert torch.equal(steps[moved].sign(), m[moved].sign())


def test_every_refresh_is_recorded():
    trace = trace_rahimi_recht(FUNCTION, **arguments())
    assert trace["iterations"].tolist() == [0, 10, 20, 30]
    assert trace["points"].shape == trace["momentum"].shape == (4, 2, 32)
    assert not torch.equal(trace["momentum"][0], trace["momentum"][1])


def test_points_of_a_diverged_seed_are_nan(caplog):
    given = arguments(values={**VALUES, "lr": 1e6, "rho": 1e3}, diverged_above=1e3)
    trace = trace_rahimi_recht(FUNCTION, **given)
    assert trace["points"][0].isfinite().all()
    assert trace["points"][1:].isnan().all()
    assert "seed 1 diverged at" in caplog.text


def test_first_order_arms_have_no_trajectory():
    with pytest.raises(TypeError, match=r"arm sgdm: .* no curvature"):
        trace_rahimi_recht(FUNCTION, **arguments("sgdm", values={"lr": 0.01}))


def test_fidelity_is_measured_at_the_last_refresh_up_to_each_iteration():
    given = arguments()
    trace = trace_rahimi_recht(FUNCTION, **given)
    frame = measure_fidelity(
        FUNCTION,
        trace,
        task="rr_cond29",
        hyperparameters=given["hyperparameters"],
        task_parameters=TASK,
        settings=FidelityParameters(iterations=[0, 9, 25, 1000], draws=16, paths=2),
    )
    assert sorted(frame["iteration"].unique()) == [0, 20, 30]
    assert set(frame["seed"]) == {0, 1}
    assert len(frame) == 3 * 2 * (4 + 2 * len(METHODS))
    values = frame.select_dtypes(float)
    assert np.isfinite(values.to_numpy()).all()
    # The exact diagonal, smoothed once from zero: √(1 − β2) of itself.
    first = frame[(frame["iteration"] == 0) & (frame["probe"] == "exact")]
    smoothed = first[first["stage"] == "smoothed"]["relative_error"]
    assert smoothed.to_numpy() == pytest.approx(1 - 0.1**0.5)
    assert (first[first["stage"] == "clipped"]["relative_error"] == 0).all()


def test_each_seed_uses_the_values_of_its_search():
    """A seed whose search found nothing was not trained and is refused."""
    given = arguments(seeds=(0, 1, 2))
    own = [{**given["hyperparameters"], "lr": lr, "beta2": b} for lr, b in ((0.1, 0.9), (0.2, 0.8))]
    given["hyperparameters"] = own
    _, weights, _ = run_rahimi_recht(FUNCTION, **given)
    trace = trace_rahimi_recht(FUNCTION, **given)
    assert torch.equal(flat(weights), flat(trace))
    frame = measure_fidelity(
        FUNCTION,
        trace,
        task="rr_cond29",
        hyperparameters=own,
        task_parameters=TASK,
        settings=FidelityParameters(iterations=[0], draws=16, paths=2),
    )
    exact = frame[(frame["probe"] == "exact") & (frame["stage"] == "smoothed")]
    error = exact.groupby("seed")["relative_error"].first()
    assert error.to_dict() == pytest.approx({0: 1 - 0.1**0.5, 1: 1 - 0.2**0.5, 2: 1 - 0.1**0.5})
    with pytest.raises(ValueError, match="seed 1 was not trained"):
        trace_rahimi_recht(FUNCTION, **{**given, "hyperparameters": [own[0], None]})
