"""The Gauss–Newton–Bartlett estimate against Hessians of models that are linear in weights."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from adaptive_opt.optim import (
    SADH,
    SSDH,
    SSVP,
    SampledLoss,
    Sophia,
    gauss_newton,
    sampled_cross_entropy,
    sampled_squared_error,
)
from adaptive_opt.optim.gauss_newton import gauss_newton_diagonal

DRAWS = 2000


@pytest.fixture
def inputs():
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def weights():
    stream = torch.Generator().manual_seed(2)
    return torch.randn(4, 3, generator=stream, dtype=torch.float64, requires_grad=True)


def gradients(sampled, params):
    return torch.autograd.grad([sampled.output], params, [sampled.gradient])


def curvature(sampled, w):
    """N ĝ²."""
    return sampled.terms * gradients(sampled, [w])[0].square()


def mean_estimate(make):
    """Mean of N ĝ² over many draws."""
    total = torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(DRAWS):
        w = weights()
        total += curvature(make(w), w)
    return total / DRAWS


def hessian_diagonal(loss):
    w = weights().detach()
    return torch.autograd.functional.hessian(loss, w).reshape(12, 12).diagonal().reshape(4, 3)


def test_mean_estimate_for_cross_entropy_is_the_diagonal_of_the_hessian(inputs):
    """The Gauss–Newton matrix of a linear model is its Hessian, which no label affects."""
    stream = torch.Generator().manual_seed(0)
    found = mean_estimate(lambda w: sampled_cross_entropy(inputs @ w.T, generator=stream))
    labels = torch.arange(12) % 4
    exact = hessian_diagonal(lambda w: cross_entropy(inputs @ w.T, labels))
    assert (found / exact - 1).abs().max() < 0.15
    assert (found / exact - 1).mean().abs() < 0.03


def test_mean_estimate_for_squared_error_is_the_diagonal_of_the_hessian(inputs):
    stream = torch.Generator().manual_seed(0)
    found = mean_estimate(lambda w: sampled_squared_error(inputs @ w.T, generator=stream))
    exact = hessian_diagonal(lambda w: mse_loss(inputs @ w.T, torch.ones(12, 4).double()))
    assert (found / exact - 1).abs().max() < 0.15
    assert (found / exact - 1).mean().abs() < 0.03


def test_classes_can_be_in_any_dimension(inputs):
    logits = (inputs @ weights().T).detach().reshape(3, 4, 4)  # 3 texts of 4 tokens, 4 classes
    a = sampled_cross_entropy(logits, generator=torch.Generator().manual_seed(0))
    b = sampled_cross_entropy(
        logits.movedim(-1, 1), dim=1, generator=torch.Generator().manual_seed(0)
    )
    assert a.terms == b.terms == 12
    assert torch.equal(a.gradient, b.gradient.movedim(1, -1))


@pytest.mark.parametrize("sampled", [sampled_cross_entropy, sampled_squared_error])
def test_scaled_loss_has_scaled_curvature(inputs, sampled):
    def estimate(scale):
        w = weights()
        made = sampled(inputs @ w.T, scale=scale, generator=torch.Generator().manual_seed(0))
        return curvature(made, w)

    torch.testing.assert_close(estimate(1024.0), 1024 * estimate(1.0))


@pytest.mark.parametrize("sampled", [sampled_cross_entropy, sampled_squared_error])
def test_members_have_separate_gradients(inputs, sampled):
    both = torch.stack([inputs @ weights().detach().T, 3 * (inputs @ weights().detach().T)])
    made = sampled(both, members=2, generator=torch.Generator().manual_seed(0))
    assert made.gradient.shape == (2, 12, 4)
    alone = sampled(both[0], generator=torch.Generator().manual_seed(0))
    assert made.terms == alone.terms
    torch.testing.assert_close(made.gradient[0], alone.gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradient_equals_that_of_the_cross_entropy(dtype, monkeypatch):
    """The result does not depend on the chunk size."""
    stream = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 5, generator=stream).to(dtype).requires_grad_()
    made = sampled_cross_entropy(logits, dim=1, generator=torch.Generator().manual_seed(3))
    assert made.gradient.dtype == dtype
    labels = made.gradient.argmin(1)  # the only negative entry
    loss = cross_entropy(logits.float() if dtype.itemsize == 2 else logits, labels)
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(made.gradient, expected)
    monkeypatch.setattr(gauss_newton, "CHUNK_ELEMENTS", 27)
    again = sampled_cross_entropy(logits, dim=1, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.gradient, made.gradient)


def test_gradient_equals_that_of_the_squared_error():
    output = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    made = sampled_squared_error(output, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)) * 0.5**0.5
    (expected,) = torch.autograd.grad(mse_loss(output, noise.double()), output)
    torch.testing.assert_close(made.gradient, expected)


@pytest.mark.parametrize("sampled", [sampled_cross_entropy, sampled_squared_error])
def test_sampled_loss_holds_no_output_and_is_freed_after_use(inputs, sampled):
    first, second = network(), network()
    a, b = (Sophia(m.parameters(), lr=0.1, curvature="gauss_newton") for m in (first, second))
    logits = first(inputs)
    made = sampled(logits, generator=torch.Generator().manual_seed(0))
    memory = weakref.ref(logits)
    loss = logits.sum()
    del logits
    assert memory() is None
    a.backward(loss, made)
    assert made.gradient is None
    a.step()
    logits = second(inputs)
    b.backward(
        logits.sum(),
        lambda: sampled(logits, generator=torch.Generator().manual_seed(0)),
    )
    b.step()
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    with pytest.raises(RuntimeError, match="used twice; sample new labels"):
        gauss_newton_diagonal(made, list(first.parameters()), first(inputs).sum())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


@pytest.mark.parametrize("cls", [Sophia, SADH, SSDH, SSVP])
def test_step_rule_uses_the_estimate(inputs, cls):
    labels = torch.arange(12) % 4
    model, same = network(), network()
    optimizer = cls(
        model.parameters(), lr=0.1, betas=(0.9, 0.75), rho=1e3, curvature="gauss_newton"
    )
    logits = model(inputs)
    stream = torch.Generator().manual_seed(0)
    loss = cross_entropy(logits, labels)
    optimizer.backward(loss, lambda: sampled_cross_entropy(logits, generator=stream))
    optimizer.step()
    sampled = sampled_cross_entropy(same(inputs), generator=torch.Generator().manual_seed(0))
    drawn = gradients(sampled, list(same.parameters()))
    g = torch.autograd.grad(cross_entropy(same(inputs), labels), list(same.parameters()))
    for p, q, c, gradient in zip(model.parameters(), same.parameters(), drawn, g, strict=True):
        c = 12 * c.square()
        smoothed = 0.25 * (c if cls in (Sophia, SADH) else c.square())
        denominator = smoothed if cls in (Sophia, SADH) else smoothed.sqrt()
        shifted = denominator.clamp_min(1e-12) if cls is Sophia else denominator + 1e-12
        update = (0.1 * gradient / shifted).clamp(-1e3, 1e3)
        torch.testing.assert_close(p, q - 0.1 * update)
    assert optimizer.gradient_equivalents == 2


def test_labels_are_sampled_only_when_curvature_is_due(inputs):
    model, calls = network(), []
    optimizer = SSDH(model.parameters(), lr=0.01, update_period=3, curvature="gauss_newton")
    for _ in range(7):
        optimizer.zero_grad()
        logits = model(inputs)

        def draw(logits=logits):
            calls.append(1)
            return sampled_cross_entropy(logits)

        optimizer.backward(cross_entropy(logits, torch.arange(12) % 4), draw)
        optimizer.step()
    assert len(calls) == 3
    assert optimizer.gradient_equivalents == 7 + 3


class Kept:
    """A tensor that a graph has saved."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_two_functions_have_one_graph_in_memory_at_a_time(inputs):
    labels = torch.arange(12) % 4

    def train(two_functions):
        model = network()
        optimizer = SSDH(model.parameters(), lr=0.01, update_period=3, curvature="gauss_newton")
        alive, passes, stream = weakref.WeakSet(), [], torch.Generator().manual_seed(3)

        def keep(tensor):
            kept = Kept(tensor)
            alive.add(kept)
            return kept

        def output():
            assert not alive  # the graph of another forward pass is freed
            passes.append(1)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
                return model(inputs)

        def sampled(logits=None):
            return sampled_cross_entropy(output() if logits is None else logits, generator=stream)

        for _ in range(7):
            optimizer.zero_grad()
            if two_functions:
                optimizer.backward(lambda: cross_entropy(output(), labels), sampled)
            else:
                logits = output()
                assert alive
                optimizer.backward(cross_entropy(logits, labels), lambda: sampled(logits))  # noqa: B023
            optimizer.step()
        return [p.detach() for p in model.parameters()], len(passes)

    (apart, passes), (together, fewer) = train(True), train(False)
    assert (passes, fewer) == (7 + 3, 7)
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a, b)


def test_clipping_scales_the_estimate_like_the_gradient(inputs):
    def state(limit, **options):
        model = network()
        optimizer = SADH(model.parameters(), lr=0.0, curvature="gauss_newton", **options)
        logits = model(inputs)
        stream = torch.Generator().manual_seed(0)
        optimizer.backward(
            10 * cross_entropy(logits, torch.arange(12) % 4),
            lambda: sampled_cross_entropy(logits, scale=10.0, generator=stream),
        )
        norm = None
        if limit is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        return [optimizer.state[p]["curvature"] for p in model.parameters()], norm

    free, _ = state(None)
    clipped, norm = state(0.5)
    inside, _ = state(None, max_grad_norm=0.5)
    for a, b, c in zip(free, clipped, inside, strict=True):
        torch.testing.assert_close(b, a * 0.5 / norm)
        torch.testing.assert_close(c, b)


def test_maximize_equals_minimizing_the_negative(inputs):
    def trained(sign, **options):
        model = network()
        optimizer = Sophia(
            model.parameters(),
            lr=0.05,
            rho=1.0,
            update_period=2,
            curvature="gauss_newton",
            **options,
        )
        stream = torch.Generator().manual_seed(0)
        for _ in range(5):
            optimizer.zero_grad()
            logits = model(inputs)
            loss = sign * cross_entropy(logits, torch.arange(12) % 4)
            optimizer.backward(
                loss, lambda logits=logits: sampled_cross_entropy(logits, generator=stream)
            )
            optimizer.step()
        return list(model.parameters())

    for p, q in zip(trained(1), trained(-1, maximize=True), strict=True):
        torch.testing.assert_close(p, q)


def test_fused_attention_needs_no_context():
    """The estimate needs no second derivative."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    optimizer = Sophia(layer.parameters(), lr=0.01, update_period=1, curvature="gauss_newton")
    x = torch.randn(2, 4, 8)
    for _ in range(3):
        optimizer.zero_grad()
        out = layer(x)
        optimizer.backward(
            mse_loss(out, torch.zeros_like(out)), lambda out=out: sampled_squared_error(out)
        )
        optimizer.step()
    assert all(p.isfinite().all() for p in layer.parameters())


def test_compiled_model_trains(inputs):
    model = network()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = Sophia(model.parameters(), lr=0.01, update_period=1, curvature="gauss_newton")
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = cross_entropy(compiled(inputs), torch.arange(12) % 4)
        losses.append(loss.item())
        optimizer.backward(loss, lambda: sampled_cross_entropy(compiled(inputs)))
        optimizer.step()
    assert losses[-1] < losses[0]


def test_error_for_a_graph_that_can_be_used_only_once(inputs):
    """torch.compile makes such graphs to save memory."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            del ctx
            return x * 1

        @staticmethod
        def backward(ctx, g):
            del ctx, g
            raise RuntimeError("compiled with non-empty donated buffers, a donated buffer")

    model = network()
    optimizer = Sophia(model.parameters(), lr=0.01, curvature="gauss_newton")
    logits = Once.apply(model(inputs))
    with pytest.raises(RuntimeError, match="call the model again"):
        optimizer.backward(logits.sum(), lambda: sampled_cross_entropy(logits))


def test_wrong_use_raises_a_clear_error(inputs):
    model = network()
    optimizer = SSDH(model.parameters(), curvature="gauss_newton")
    labels = torch.arange(12) % 4
    optimizer.backward(cross_entropy(model(inputs), labels))
    with pytest.raises(
        RuntimeError, match=r"needs labels sampled from the model: .*sampled_cross_entropy"
    ):
        optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(TypeError, match="needs labels sampled from the model"):
        optimizer.backward(cross_entropy(model(inputs), labels), lambda: torch.zeros(()))
    other = torch.zeros(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="does not depend on any parameter"):
        optimizer.backward(
            cross_entropy(model(inputs), labels), lambda: SampledLoss(other.sum(), 1.0)
        )
    with pytest.raises(RuntimeError, match="does not depend on any parameter"):
        optimizer.backward(
            cross_entropy(model(inputs), labels), sampled_cross_entropy(model(inputs).detach())
        )
    hessian = SSDH(network().parameters())
    with pytest.raises(TypeError, match="needs curvature='gauss_newton'"):
        hessian.backward(cross_entropy(model(inputs), labels), lambda: SampledLoss(other.sum(), 1))
