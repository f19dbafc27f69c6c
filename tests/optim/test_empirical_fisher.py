"""The empirical Fisher diagonal: values, scale, use by the optimizers, errors."""

import pytest
import torch
from torch import nn

from adaptive_opt.optim import SADH, SSDH, Sophia, squared_sample_gradients


def problem(n=6, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 2


def by_samples(model, x, y, loss_fn=nn.functional.cross_entropy):
    """The definition: the mean of the squared gradients, one sample after the other."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for one_x, one_y in zip(x, y, strict=True):
        value = loss_fn(model(one_x[None]), one_y[None])
        for t, g in zip(total, torch.autograd.grad(value, model.parameters()), strict=True):
            t += g**2 / len(x)
    return total


def test_equals_the_mean_over_samples():
    model, x, y = problem()
    found = squared_sample_gradients(model, nn.functional.cross_entropy, x, y)
    for p, expected in zip(model.parameters(), by_samples(model, x, y), strict=True):
        torch.testing.assert_close(found[p], expected)


def test_scale_is_that_of_the_mean_loss():
    """A batch that has every sample twice has the same curvature."""
    model, x, y = problem()
    once = squared_sample_gradients(model, nn.functional.cross_entropy, x, y)
    x2, y2 = torch.cat([x, x]), torch.cat([y, y])
    twice = squared_sample_gradients(model, nn.functional.cross_entropy, x2, y2)
    for p in model.parameters():
        torch.testing.assert_close(once[p], twice[p])


def test_frozen_parameters_are_left_out():
    model, x, y = problem()
    model[0].weight.requires_grad_(False)
    found = squared_sample_gradients(model, nn.functional.cross_entropy, x, y)
    assert len(found) == 3
    assert model[0].weight not in found


def test_batch_normalisation_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="batch normalisation"):
        squared_sample_gradients(model, lambda o, y: o.sum(), torch.zeros(2, 3), torch.zeros(2))
    model.eval()
    squared_sample_gradients(model, lambda o, y: o.sum(), torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize(
    ("cls", "smoothed"), [(SADH, lambda c: c), (SSDH, torch.square), (Sophia, lambda c: c)]
)
@pytest.mark.parametrize("maximize", [False, True])
def test_optimizers_smooth_it_and_count_one_gradient(cls, smoothed, maximize):
    model, x, y = problem()
    params = list(model.parameters())
    expected = by_samples(model, x, y)
    optimizer = cls(params, curvature="empirical_fisher", betas=(0.9, 0.0), maximize=maximize)
    assert optimizer.samples_due
    assert not optimizer.graph_due
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.backward(
        loss, lambda: squared_sample_gradients(model, nn.functional.cross_entropy, x, y)
    )
    gradients = [p.grad.clone() for p in params]
    torch.testing.assert_close(gradients, list(torch.autograd.grad(
        nn.functional.cross_entropy(model(x), y), params
    )))  # fmt: skip
    optimizer.step()
    for p, c in zip(params, expected, strict=True):
        torch.testing.assert_close(optimizer.state[p]["curvature"], smoothed(c))
    assert optimizer.gradient_equivalents == 2
    assert optimizer.hvp_count == 0
    assert not optimizer.samples_due


def test_the_function_is_called_only_when_due():
    model, x, y = problem()
    calls = []

    def make():
        calls.append(1)
        return squared_sample_gradients(model, nn.functional.cross_entropy, x, y)

    optimizer = SSDH(model.parameters(), curvature="empirical_fisher", update_period=3)
    for _ in range(7):
        optimizer.zero_grad()
        optimizer.backward(nn.functional.cross_entropy(model(x), y), make)
        optimizer.step()
    assert len(calls) == 3


def test_missing_and_wrong_sample_gradients_are_errors():
    model, x, y = problem()

    def fresh():
        return nn.functional.cross_entropy(model(x), y)

    optimizer = SSDH(model.parameters(), curvature="empirical_fisher")
    optimizer.backward(fresh())
    with pytest.raises(RuntimeError, match="squared_sample_gradients"):
        optimizer.step()
    with pytest.raises(TypeError, match="squared_sample_gradients"):
        optimizer.backward(fresh(), fresh)
    weight = model[0].weight
    with pytest.raises(ValueError, match=r"shape \[2\], their parameter \[4, 3\]"):
        optimizer.backward(fresh(), lambda: {weight: torch.zeros(2)})
