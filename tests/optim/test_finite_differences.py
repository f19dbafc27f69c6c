"""Finite differences have no side effects on gradients, buffers and random state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from adaptive_opt.optim import SADH, SSDH, SSVP

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 2)
    ).double()


def closure_of(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss.detach()

    return closure


@pytest.mark.parametrize("cls", [SSDH, SSVP])
def test_running_statistics_are_updated_once(cls):
    model, twice = network(), network()
    expected = copy.deepcopy(model)
    torch.manual_seed(1)
    expected(X)
    optimizer = cls(model.parameters(), lr=0.0, hvp="finite_difference", buffers=model.buffers)
    torch.manual_seed(1)
    optimizer.step(closure_of(model, optimizer))
    assert optimizer.hvp_count == 1
    assert all(map(torch.equal, model.buffers(), expected.buffers()))
    optimizer = cls(twice.parameters(), lr=0.0, hvp="finite_difference")
    optimizer.step(closure_of(twice, optimizer))
    assert not any(map(torch.equal, twice.buffers(), expected.buffers()))


def test_running_statistics_are_restored_after_an_error():
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = SSDH(model.parameters(), hvp="finite_difference", buffers=model.buffers)

    def closure():
        model(X)
        raise KeyError

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_buffers_without_finite_differences_raise_an_error():
    model = network()
    with pytest.raises(ValueError, match="only used with hvp='finite_difference'"):
        SSDH(model.parameters(), buffers=model.buffers)


@pytest.mark.parametrize("cls", [SSDH, SSVP])
def test_gradient_is_that_at_the_unshifted_parameters(cls):
    """Also for parameters whose curvature is not due. The shifted evaluation leaves no trace."""
    model, expected = network(), network()
    groups = [
        {"params": model[0].parameters()},
        {"params": [*model[1].parameters(), *model[4].parameters()], "update_period": 2},
    ]
    optimizer = cls(groups, lr=0.0, update_period=1, hvp="finite_difference")
    closure = closure_of(model, optimizer)
    for _ in range(2):
        torch.manual_seed(1)
        optimizer.step(closure)
    torch.manual_seed(1)
    expected(X).square().mean().backward()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p.grad, q.grad)


def test_closures_that_clear_gradients_keep_the_probe():
    """The probe is drawn twice, for the shift and for the product; both must be equal."""
    p = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    optimizer = SADH([p], lr=0.0, betas=(0.0, 0.0), hvp="finite_difference")
    optimizer.backward(lambda: (p**2).sum())

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum() * 1.5
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    torch.testing.assert_close(optimizer.state[p]["curvature"], torch.full_like(p, 3.0))


def test_momentum_probe_uses_the_gradient_clipped_over_all_groups():
    """Clipping over the due groups alone would change the sign of one element."""

    def curvature(hvp):
        p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        q = nn.Parameter(torch.tensor([3.0, 40.0], dtype=torch.float64))
        groups = [{"params": [p], "update_period": 1}, {"params": [q], "update_period": 4}]
        optimizer = SSVP(groups, lr=0.0, rho=1.0, betas=(0.9, 0.0), max_grad_norm=1.0, hvp=hvp)
        for slope in ((10.0, 10.0), (10.0, 10.0), (-10.0, 10.0)):
            w = torch.tensor(slope, dtype=torch.float64)
            optimizer.zero_grad()
            optimizer.backward(lambda w=w: (w * p).sum() + p.sum() ** 2 / 2 + (q**2).sum())
            optimizer.step()
        return optimizer.state[p]["curvature"]

    exact = curvature("autograd")
    assert (exact > 0).all()
    torch.testing.assert_close(curvature("finite_difference"), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("hvp", ["autograd", "finite_difference"])
def test_the_only_due_group_may_be_unused_by_the_loss(hvp):
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [p], "update_period": 2}, {"params": [q], "update_period": 1}]
    optimizer = SSDH(groups, lr=0.01, hvp=hvp)
    for unused in (False, True):
        optimizer.zero_grad()
        optimizer.backward(lambda unused=unused: (p**2).sum() + (0 if unused else (q**2).sum()))
        before = q.detach().clone()
        optimizer.step()
    assert torch.equal(before, q)
    assert optimizer.param_groups[0]["step"] == 2


def test_batch_is_still_checked_after_an_overflow():
    p = nn.Parameter(torch.ones(3))
    optimizer = SSDH([p], update_period=1, hvp="finite_difference")
    optimizer.backward(lambda: (p**2).sum() * math.inf)
    optimizer.zero_grad()
    factors = iter((1.0, 2.0))
    with pytest.raises(RuntimeError, match="must evaluate the same batch each time"):
        optimizer.backward(lambda: (p**2).sum() * next(factors))


def test_sparse_gradients_raise_an_error():
    model = nn.Embedding(20, 4, sparse=True)
    optimizer = SSDH(model.parameters(), lr=0.01, hvp="finite_difference")
    with pytest.raises(TypeError, match="sparse gradients are not supported; use dense ones"):
        optimizer.backward(lambda: model(torch.tensor([1, 2])).pow(2).mean())


def test_closure_may_write_into_the_same_gradient_memory():
    """As with reducers whose memory the gradients are views of."""
    first, second = (nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64)) for _ in "ab")
    memory = torch.zeros(2, dtype=torch.float64)

    def closure(p, view):
        optimizer = a if p is first else b
        optimizer.zero_grad()
        loss = (p**4).sum()
        loss.backward()
        if view:
            p.grad = memory.copy_(p.grad)
        return loss.detach()

    a, b = (SSDH([p], lr=0.01, hvp="finite_difference") for p in (first, second))
    a.step(lambda: closure(first, False))
    b.step(lambda: closure(second, True))
    assert a.state[first]["curvature"].gt(0).all()
    assert torch.equal(a.state[first]["curvature"], b.state[second]["curvature"])
