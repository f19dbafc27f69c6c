"""Options of torch's optimizers: maximize, and unsupported ones."""

import numpy as np
import pytest
import torch

from adaptive_opt.optim import SADH, SGDM, SSDH, SSVP, Adam, Sophia

from .problems import CASES, flat, loss, parameters

SECOND = (Sophia, SADH, SSDH, SSVP)
EVERY = (*SECOND, Adam, SGDM)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("limit", [None, 0.5])
def test_maximize_equals_minimizing_the_negative(case, limit):
    up, down = parameters(), parameters()
    options = {**case.hyperparameters, "max_grad_norm": limit, "weight_decay": 0.01}
    a = case.make(up, maximize=True, **options)
    b = case.make(down, **options)
    for _ in range(10):
        for optimizer, params, sign in ((a, up, 1), (b, down, -1)):
            optimizer.zero_grad()
            optimizer.backward(sign * loss(params))
            optimizer.step()
    np.testing.assert_allclose(flat(up), flat(down), rtol=1e-12)
    assert all(np.isfinite(flat(up)))


@pytest.mark.parametrize("cls", SECOND)
def test_maximize_with_finite_differences(cls):
    up, down = parameters(), parameters()
    a = cls(up, lr=0.01, update_period=3, hvp="finite_difference", maximize=True)
    b = cls(down, lr=0.01, update_period=3, hvp="finite_difference")
    for _ in range(10):
        for optimizer, params, sign in ((a, up, 1), (b, down, -1)):
            optimizer.zero_grad()
            optimizer.backward(lambda params=params, sign=sign: sign * loss(params))
            optimizer.step()
    np.testing.assert_allclose(flat(up), flat(down), rtol=1e-9)


@pytest.mark.parametrize("cls", SECOND)
def test_groups_can_maximize_and_minimize(cls):
    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    q = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = cls([{"params": [p], "maximize": True}, {"params": [q]}], lr=0.1, rho=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        optimizer.backward((q.square() - p.square()).sum())
        optimizer.step()
    torch.testing.assert_close(p, q, rtol=0, atol=0)
    assert float(p.detach().abs().max()) < 1


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("name", ["capturable", "differentiable", "fused"])
def test_unsupported_option_raises_a_clear_error(cls, name):
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=f"^{name}=True is not supported: "):
        cls([p], **{name: True})
    with pytest.raises(ValueError, match=f"^{name}=True is not supported: "):
        cls([{"params": [p], name: True}])
    assert not cls([p], **{name: False}).param_groups[0][name]


@pytest.mark.parametrize("cls", EVERY)
def test_state_without_the_options_is_loaded(cls):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = cls([p], lr=0.1)
    optimizer.backward(p.square().sum())
    optimizer.step()
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for name in ("maximize", "capturable", "differentiable", "fused"):
            del group[name]
    optimizer.load_state_dict(state)
    optimizer.zero_grad()
    optimizer.backward(p.square().sum())
    optimizer.step()
    assert not optimizer.param_groups[0]["maximize"]
