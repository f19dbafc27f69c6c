"""Training continues bit for bit from a state saved with ``torch.distributed.checkpoint``."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from adaptive_opt.optim import SADH, SGDM, SSDH, SSVP, Adam, Sophia

from . import ranks

EVERY = (Sophia, SADH, SSDH, SSVP, Adam, SGDM)
WAYS = {
    "plain": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


def make(cls, model, **options):
    if issubclass(cls, (Sophia, SADH, SSDH, SSVP)):
        options = {"rho": 0.1, "update_period": 4, "seed": 3, **options}
    first, *rest = model.children()
    groups = [{"params": first.parameters()}, {"params": rest[-1].parameters(), "lr": 0.03}]
    return cls(groups, lr=0.05, **options)


def train(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        optimizer.backward(((model(x) - y) ** 2).mean())
        optimizer.step()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def options_of(cls):
    return {"probe": "momentum_sign_cumulative"} if cls is SSVP else {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("steps", [4, 6])
def test_training_continues_bit_for_bit(cls, way, steps):
    data = ranks.batches(14)
    model, again = ranks.network(), ranks.network()
    optimizer = make(cls, model, **options_of(cls))
    train(model, optimizer, data[:steps])
    saved = get_optimizer_state_dict(model, optimizer, options=WAYS[way])
    again.load_state_dict(model.state_dict())
    other = make(cls, again, **options_of(cls))
    set_optimizer_state_dict(again, other, copy.deepcopy(saved), options=WAYS[way])
    assert other.gradient_equivalents == optimizer.gradient_equivalents
    found, expected = other.statistics(), optimizer.statistics()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in found)
    train(model, optimizer, data[steps:])
    train(again, other, data[steps:])
    assert torch.equal(weights(model), weights(again))
    assert other.gradient_equivalents == optimizer.gradient_equivalents


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("cls", EVERY)
def test_training_continues_from_a_checkpoint_on_disk(cls, flat, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    data = ranks.batches(14)
    model, again = ranks.network(), ranks.network()
    optimizer = make(cls, model, **options_of(cls))
    train(model, optimizer, data[:6])
    weight, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weight, "optimizer": state}, checkpoint_id=tmp_path, no_dist=True)
    other = make(cls, again, **options_of(cls))
    weight, state = get_state_dict(again, other, options=options)
    dcp.load({"model": weight, "optimizer": state}, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(again, other, model_state_dict=weight, optim_state_dict=state, options=options)
    assert other.statistics().keys() == optimizer.statistics().keys()
    train(model, optimizer, data[6:])
    train(again, other, data[6:])
    assert torch.equal(weights(model), weights(again))


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("rate", [0.05, torch.tensor(0.05)])
def test_reading_the_state_before_training_changes_nothing(cls, rate):
    data = ranks.batches(8)
    model, again = ranks.network(), ranks.network()
    optimizer, other = cls(model.parameters(), lr=rate), cls(again.parameters(), lr=rate)
    get_optimizer_state_dict(model, optimizer)
    assert optimizer.gradient_equivalents == 0
    assert set(optimizer.state) == set(model.parameters())
    train(model, optimizer, data)
    train(again, other, data)
    assert torch.equal(weights(model), weights(again))


@pytest.mark.parametrize("cls", [SSDH, Adam])
def test_first_step_at_learning_rate_zero_is_a_step(cls):
    """A warm-up may begin at 0. Only a step with zero gradients too merely creates the state."""
    model = ranks.network()
    optimizer = cls(model.parameters(), lr=0.0)
    x, y = ranks.batches(1)[0]
    ((model(x) - y) ** 2).mean().backward()
    if cls is SSDH:
        with pytest.raises(RuntimeError, match="curvature is due"):
            optimizer.step()
        return
    optimizer.step()
    assert optimizer.param_groups[0]["step"] == 1
    assert all(s["momentum"].abs().sum() > 0 for s in optimizer.state.values())


def test_state_of_an_earlier_version_is_loaded():
    """There, counters, generators and the last estimate were entries beside the groups."""
    data = ranks.batches(14)
    model, again = ranks.network(), ranks.network()
    optimizer = make(SSDH, model)
    train(model, optimizer, data[:6])
    state = optimizer.state_dict()
    former_entries = (
        "gradient_count",
        "hvp_count",
        "curvature_cost",
        "probe_state",
        "last_estimate",
    )
    first = state["param_groups"][0]
    probes = json.loads(first["probe_state"])
    former = {name: first[name] for name in former_entries if name != "probe_state"}
    former["probe_generator"] = {
        "members": None,
        "seeds": probes["seeds"],
        "states": [
            torch.tensor(list(bytes.fromhex(s)), dtype=torch.uint8) for s in probes["states"]
        ],
    }
    groups = [
        {k: v for k, v in g.items() if k not in former_entries} for g in state["param_groups"]
    ]
    again.load_state_dict(model.state_dict())
    other = make(SSDH, again)
    other.load_state_dict(
        copy.deepcopy({"state": state["state"], "param_groups": groups, **former})
    )
    assert other.gradient_equivalents == optimizer.gradient_equivalents
    train(model, optimizer, data[6:])
    train(again, other, data[6:])
    assert torch.equal(weights(model), weights(again))


def test_sharded_training_continues_bit_for_bit(tmp_path):
    mp.spawn(ranks.resume_sharded, args=(2, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found
        for whole, resumed in found.values():
            assert torch.equal(whole, resumed)
