"""Curvature at saved weights, compared with exact dense Hessians."""

import numpy as np
import pandas as pd
import pytest
import torch

from adaptive_opt.curvature.stability import threshold
from adaptive_opt.engine.curvature import (
    CurvatureOfNetwork,
    measure_network,
)
from adaptive_opt.engine.exact_spectra import rahimi_recht_spectra
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.engine.sharpness import measure_sharpness
from adaptive_opt.engine.snapshots import Snapshots, read_snapshots
from adaptive_opt.engine.surroundings import network_line, network_surface
from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import (
    AnalysisParameters,
    CurvatureParameters,
    SharpnessParameters,
    TaskParameters,
    TrainingParameters,
    resolve_arm,
)
from tests.engine.networks import ARMS, images, task_parameters, text, train, training_parameters
from tests.engine.test_run import CONFIGURATIONS, FUNCTION

SETTINGS = CurvatureParameters(
    batches=1, micro_batch=64, precision="fp64", eigenpairs=2, tolerance=1e-4, trace_draws=16,
    density_steps=8, density_draws=2, diagonal_draws=240, estimate_draws=8, surface_points=3,
    line_points=5,
)  # fmt: skip

FEW = SETTINGS.model_copy(update={"trace_draws": 2, "density_steps": 2})


def kept(task, arm, epochs=(0, 3)):
    snapshots = Snapshots(epochs)
    history, *_ = train(task, arm, snapshots=snapshots)
    return history, snapshots.tensors


def measured(task, arm, tensors, settings=SETTINGS):
    return measure_network(
        images() if task == "resnet18" else text(),
        tensors,
        task=task,
        arm=arm,
        **resolve_arm(arm, ARMS, training_parameters()),
        task_parameters=task_parameters(task),
        training=training_parameters(),
        settings=settings,
    )


def place(task, **changes):
    data = images() if task == "resnet18" else text()
    return CurvatureOfNetwork(
        data, task, task_parameters(task, **changes), training_parameters(), SETTINGS, 0
    )


def dense(operator):
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("task", ["resnet18", "transformer"])
def test_measurements_equal_those_of_the_dense_hessian(task):
    _, tensors = kept(task, "ssdh", epochs=(3,))
    measures, densities, estimates = measured(task, "ssdh", tensors)
    assert set(densities["epoch"]) == {3}
    assert set(estimates["epoch"]) == {3}
    last = read_snapshots(tensors)[-1]
    loss = place(task).at(last)
    matrix = dense(loss.operator("hessian"))
    rows = measures[measures["epoch"] == 3].set_index(["matrix", "quantity", "index"])
    assert rows["good"].all()
    assert rows.loc[("hessian", "loss", 0), "value"] == pytest.approx(loss.value())
    top = [rows.loc[("hessian", "eigenvalue", i), "value"] for i in (1, 2)]
    np.testing.assert_allclose(top, torch.linalg.eigvalsh(matrix).flip(0)[:2], rtol=1e-6)
    for quantity, exact in (
        ("trace", matrix.trace()),
        ("frobenius_norm", torch.linalg.matrix_norm(matrix)),
    ):
        found = rows.loc[("hessian", quantity, 0)]
        assert abs(found["value"] - float(exact)) < 5 * found["error"]

    # η λ of the preconditioned Hessian over coordinates that are not clipped, divided by its limit.
    flat = {k: flatten(loss, getattr(last, k)) for k in ("denominators", "momentum")}
    free = (flat["momentum"] / flat["denominators"]).abs() <= ARMS["ssdh"]["rho"]
    quotient = (matrix / flat["denominators"][:, None])[free][:, free]
    highest = torch.linalg.eigvals(quotient).real.max()
    found = rows.loc[("preconditioned", "stability", 0), "value"]
    assert found == pytest.approx(float(last.lr * highest / (3.8 / 0.1)), rel=1e-5)
    share = rows.loc[("preconditioned", "fixed_share", 0), "value"]
    assert share == pytest.approx(1 - float(free.double().mean()))

    # Relative error of one Rademacher draw: √(Σ_{i≠j} H_ij²) / ‖d‖.
    diagonal = matrix.diagonal()
    known = (matrix.square().sum() - diagonal.square().sum()).sqrt() / diagonal.norm()
    chosen = estimates[(estimates["probe"] == "rademacher")]
    found = chosen.set_index("metric").loc["relative_error"]
    assert abs(found["value"] - float(known)) < 5 * found["error"] + 0.05 * float(known)
    held = estimates[estimates["stage"] == "denominator"].set_index("metric").loc["cosine"]
    exact = torch.nn.functional.cosine_similarity(flat["denominators"], diagonal, dim=0)
    assert abs(held["value"] - float(exact)) < 5 * held["error"] + 0.02


def flatten(loss, named):
    names = [n for n, _ in loss.network.named_parameters()]
    return torch.cat([named[n].reshape(-1) for n in names]).double()


def test_stability_of_gradient_descent_with_momentum():
    _, tensors = kept("resnet18", "sgdm")
    measures, _, estimates = measured("resnet18", "sgdm", tensors, FEW)
    assert estimates.empty
    rows = measures.set_index(["epoch", "matrix", "quantity", "index"])["value"]
    for snapshot in read_snapshots(tensors):
        top = rows[snapshot.epoch, "hessian", "eigenvalue", 1]
        found = rows[snapshot.epoch, "preconditioned", "stability", 0]
        assert found == pytest.approx(snapshot.lr * top / 3.8)


def test_a_quadratic_loss_diverges_beyond_the_threshold():
    """Each rule on ½ λ θ², just below and just above its threshold."""
    for averaged, beta in ((False, 0.0), (False, 0.9), (True, 0.9), (True, 0.5)):
        for factor, grows in ((0.98, False), (1.02, True)):
            lr = factor * threshold(beta, averaged=averaged) / 2.0
            theta, m = 1.0, 0.0
            for _ in range(4000):
                m = beta * m + ((1 - beta) if averaged else 1) * 2.0 * theta
                theta -= lr * m
                if abs(theta) > 1e6:
                    break
            assert (abs(theta) > 1) == grows


def sharpness(task, kept_by_arm, **changes):
    settings = {"batches": 1, "precision": "fp64", "tolerance": 1e-7, "products": 80, **changes}
    return measure_sharpness(
        images() if task == "resnet18" else text(),
        kept_by_arm,
        {arm: resolve_arm(arm, ARMS, training_parameters()) for arm in kept_by_arm},
        task=task,
        task_parameters=task_parameters(task),
        training=training_parameters(),
        settings=SharpnessParameters(**settings),
    )


@pytest.mark.parametrize("task", ["resnet18", "transformer"])
def test_sharpness_equals_the_full_measurement(task):
    arms = ("sgdm", "ssdh")
    tensors = {arm: kept(task, arm)[1] for arm in arms}
    found = sharpness(task, tensors)
    assert found["good"].all()
    keys = ["arm", "epoch", "matrix", "quantity", "index"]
    for arm in arms:
        whole = measured(task, arm, tensors[arm], FEW)[0].set_index(keys)["value"]
        mine = found[found["arm"] == arm].set_index(keys)["value"]
        assert {k[3] for k in mine.index} >= {"loss", "eigenvalue", "threshold", "stability"}
        pd.testing.assert_series_equal(mine, whole[mine.index], rtol=1e-5)


def test_sharpness_is_marked_if_the_products_do_not_suffice():
    tensors = {"ssdh": kept("resnet18", "ssdh", epochs=(3,))[1]}
    found = sharpness("resnet18", tensors, products=2)
    assert not found[found["quantity"] == "eigenvalue"]["good"].any()


def test_diverged_snapshots_have_no_sharpness(caplog):
    tensors = {"sgdm": kept("resnet18", "sgdm", epochs=(0, 3))[1]}
    tensors["sgdm"]["seed0.epoch3.parameters.conv1.weight"].fill_(torch.nan)
    found = sharpness("resnet18", tensors)
    assert set(found[found["epoch"] == 3]["quantity"]) == {"loss"}
    assert "eigenvalue" in set(found[found["epoch"] == 0]["quantity"])
    assert "sgdm, epoch 3: the loss is nan, so there is no sharpness" in caplog.text


def test_surface_and_line_contain_the_solutions():
    _, tensors = kept("resnet18", "adam")
    first, second = read_snapshots(tensors)
    here = place("resnet18")
    surface = network_surface(here, second, SETTINGS, "surface")
    assert surface.shape == (9, 5)
    centre = surface[(surface["a"] == 0) & (surface["b"] == 0)]["loss"]
    assert centre.tolist() == pytest.approx([here.at(second).value()])
    line = network_line(here, first, second, SETTINGS, "line").set_index("position")["loss"]
    assert line[0.0] == pytest.approx(here.at(first).value())
    assert line[1.0] == pytest.approx(here.at(second).value())


def test_bad_snapshots_are_refused():
    _, tensors = kept("resnet18", "sgdm", epochs=(3,))
    (snapshot,) = read_snapshots(tensors)
    with pytest.raises(StudyError, match="the checkpoint is of another architecture"):
        place("resnet18", widths=[4, 8]).at(snapshot)
    tensors["seed0.epoch3.parameters.conv1.weight"].fill_(torch.inf)
    with pytest.raises(StudyError, match="so there is no curvature to measure"):
        measured("resnet18", "sgdm", tensors)


def test_full_spectra_of_rahimi_recht():
    settings = TrainingParameters(device="cpu", hessian_every=8)
    parameters = TaskParameters(epochs=4, seeds=1, target=0.1, batch_size=32)
    snapshots = Snapshots([0, 4])
    history, weights, _ = run_rahimi_recht(
        FUNCTION,
        task="rr_cond29",
        arm="ssdh",
        **resolve_arm("ssdh", CONFIGURATIONS, settings),
        task_parameters=parameters,
        training=settings,
        snapshots=snapshots,
    )
    spectra = rahimi_recht_spectra(
        FUNCTION, {"ssdh": snapshots.tensors}, task="rr_cond29", task_parameters=parameters
    )
    assert set(spectra["epoch"]) == {0, 4}
    assert (
        spectra.groupby("epoch").size().tolist()
        == [sum(w[0].numel() for w in weights.values())] * 2
    )
    norms = history[history["hessian_eigenvalue_norm"].notna()]
    for epoch, iteration in ((0, norms["iteration"].min()), (4, norms["iteration"].max())):
        found = np.linalg.norm(spectra[spectra["epoch"] == epoch]["eigenvalue"])
        row = norms[norms["iteration"] == iteration].iloc[0]
        if row["epoch"] == epoch:
            assert found == pytest.approx(row["hessian_eigenvalue_norm"], rel=1e-5)


@pytest.mark.parametrize("part", ["sharpness", "curvature"])
def test_zero_batches_are_refused_by_name(part):
    parameters = {"fidelity": {"iterations": [0]}, part: {"batches": 0}}
    with pytest.raises(ValueError, match=rf"{part}\.batches\n.*greater than or equal to 1"):
        AnalysisParameters(**parameters)
