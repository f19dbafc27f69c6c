"""Snapshots: they equal the run's weights, and taking them does not change the run."""

import pandas as pd
import pytest
import torch

from adaptive_opt.engine.checkpoint import Checkpoint
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.engine.snapshots import Snapshots, read_snapshots
from adaptive_opt.optim import SGDM, SSDH, Adam, Memberwise
from adaptive_opt.parameters import TaskParameters, TrainingParameters, resolve_arm
from tests.engine.networks import train
from tests.engine.test_checkpoint import Interrupted, InterruptingCheckpoint
from tests.engine.test_run import CONFIGURATIONS, FUNCTION


def train_with_snapshots(task, arm, kept=(0,), checkpoint=None, **options):
    snapshots = Snapshots([0, 1, 3, 9], kept)
    history, weights, _ = train(task, arm, snapshots=snapshots, checkpoint=checkpoint, **options)
    return history, weights, snapshots.tensors


@pytest.mark.parametrize("arm", ["sgdm", "adam", "sophia", "ssvp", "adamw"])
@pytest.mark.parametrize("ensemble", ["together", "apart"])
def test_snapshots_equal_the_weights_of_the_run(arm, ensemble):
    history, weights, tensors = train_with_snapshots("resnet18", arm, kept=(1,), ensemble=ensemble)
    plain, *_ = train("resnet18", arm, ensemble=ensemble)
    timeless = [c for c in history if c != "device_seconds"]
    pd.testing.assert_frame_equal(history[timeless], plain[timeless], check_exact=True)
    found = read_snapshots(tensors)
    assert [(s.seed, s.epoch) for s in found] == [(1, 0), (1, 1), (1, 3)]
    assert found[0].denominators == found[0].momentum == {}
    last = found[-1]
    for name, tensor in {**last.parameters, **last.buffers}.items():
        assert torch.equal(tensor, weights[name][1])
    assert {**last.parameters, **last.buffers}.keys() == weights.keys()
    assert set(last.denominators) == ({*last.parameters} if arm != "sgdm" else set())
    assert set(last.momentum) == ({*last.parameters} if arm in ("sophia", "ssvp") else set())
    assert all((d > 0).all() for d in last.denominators.values())
    assert last.lr < found[0].lr


def test_snapshots_are_the_same_after_an_interruption(tmp_path):
    options = {"ensemble": "apart", "arm": "ssdh", "task": "transformer"}
    _, _, whole = train_with_snapshots(**options)
    checkpoint = InterruptingCheckpoint(tmp_path / "c.pt", after=15)
    with pytest.raises(Interrupted):
        train_with_snapshots(**options, checkpoint=checkpoint)
    _, _, resumed = train_with_snapshots(**options, checkpoint=Checkpoint(checkpoint.path))
    assert whole.keys() == resumed.keys()
    assert len({n.split(".")[1] for n in whole}) == 3
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_snapshots_of_rahimi_recht():
    settings = TrainingParameters(device="cpu", hessian_every=0)
    snapshots = Snapshots([0, 4])
    _, weights, _ = run_rahimi_recht(
        FUNCTION,
        task="rr_cond29",
        arm="ssdh",
        **resolve_arm("ssdh", CONFIGURATIONS, settings),
        task_parameters=TaskParameters(epochs=4, seeds=2, target=0.1, batch_size=32),
        training=settings,
        snapshots=snapshots,
    )
    start, end = read_snapshots(snapshots.tensors)
    assert not torch.equal(start.parameters["W1"], end.parameters["W1"])
    assert all(torch.equal(end.parameters[n], w[0]) for n, w in weights.items())


@pytest.mark.parametrize("kind", ["adam", "torch", "amsgrad", "ssdh"])
def test_steps_divide_by_the_denominators(kind):
    """θ changes by lr · m̂ / denominator, in an ensemble as in a single run."""
    p = torch.tensor([[1.0, -2.0], [0.5, 4.0]], requires_grad=True)
    options = {"lr": 0.1, "betas": (0.0, 0.9)}
    if kind == "ssdh":
        optimizer = SSDH([p], members=2, seed=[0, 1], rho=1e9, update_period=1, **options)
    elif kind == "adam":
        optimizer = Adam([p], members=2, **options)
    else:
        amsgrad = {"amsgrad": True} if kind == "amsgrad" else {}
        optimizer = Memberwise(torch.optim.Adam, [p], members=2, **options, **amsgrad)
    for _ in range(3):
        before = p.detach().clone()
        optimizer.zero_grad()
        optimizer.backward((p**4).sum(1))
        gradient = 4 * before**3
        optimizer.step()
    expected = before - 0.1 * gradient / optimizer.denominators()[p]
    torch.testing.assert_close(p.detach(), expected)


def test_gradient_descent_has_no_denominators():
    p = torch.ones(1, 2, requires_grad=True)
    optimizer = SGDM([p], members=1)
    optimizer.backward((p**2).sum(1))
    optimizer.step()
    assert optimizer.denominators() == {}
    assert Memberwise(torch.optim.SGD, [p], members=1).denominators() == {}
