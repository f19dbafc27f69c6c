"""Ways of training: ranks, gradient scalers, hooks, schedulers, closures, compiled models.

Where a way cannot work, the error must name an alternative in one sentence.
"""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional

from adaptive_opt.optim import SADH, SGDM, SSDH, SSVP, Adam, Sophia

from . import ranks

SECOND = (Sophia, SADH, SSDH, SSVP)
EVERY = (*SECOND, Adam, SGDM)


def spawn(function, tmp_path, *args, world=2):
    mp.spawn(function, args=(world, str(tmp_path), *args), nprocs=world)


# Ranks.


def test_two_ranks_step_like_one_process_on_the_joined_batch(tmp_path):
    """50 steps of every method, with one and with two backward passes per step."""
    spawn(ranks.train_data_parallel, tmp_path)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert set(first) == {f"{n} {k}{e}" for n, k in ranks.CASES for e in ("", " D")}
    assert all(torch.equal(first[key], second[key]) for key in first)
    for name, accumulate in ranks.CASES:
        model = ranks.network(frozen=name == "SADH")
        alone, _ = ranks.train(model, name, slice(None), accumulate)
        assert (first[f"{name} {accumulate}"] - alone).abs().max() < 1e-6


def test_two_ranks_with_finite_differences_step_like_one_process(tmp_path):
    """With accumulation, the first gradients and differences are not reduced over ranks."""
    spawn(ranks.train_by_differences, tmp_path)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    for name, accumulate, view in ranks.DIFFERENCES:
        alone, _ = ranks.train(ranks.network(), name, slice(None), accumulate)
        found = first[f"{name} {accumulate} {view}"]
        assert torch.equal(found, second[f"{name} {accumulate} {view}"])
        assert (found - alone).abs().max() < 1e-4


def test_separate_probes_on_two_ranks_halve_the_variance(tmp_path):
    spawn(ranks.average_estimates, tmp_path)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(first[own], second[own]) for own in first)  # averaged
    shared, own = first["False"], first["True"]
    ratio = float(own.var(0).mean() / shared.var(0).mean())
    assert 0.4 < ratio < 0.62  # one half, up to the noise of 300 draws
    error = (shared.var(0) / 300 + own.var(0) / 300).sqrt()
    assert ((shared.mean(0) - own.mean(0)).abs() <= 5 * error + 1e-12).all()


def test_mismatched_ranks_raise_a_clear_error(tmp_path):
    spawn(ranks.mismatched_ranks, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1))
    assert first == second
    for case in ("reaches_fewer_parameters", "reaches_other_parameters"):
        assert "ranks have gradients of different parameters" in first[case]
        assert "find_unused_parameters=True" in first[case]
    assert "no estimate was made: call optimizer.backward(loss)" in first["plain_backward"]
    assert "some ranks made no estimate" in first["one_rank_without_estimate"]


def test_curvature_of_parameters_of_two_types_is_averaged(tmp_path):
    spawn(ranks.average_two_types, tmp_path)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert [c.dtype for c in found] == [torch.float32, torch.bfloat16]
        assert all((c == 3).all() for c in found)  # mean of 2 and 4


def test_sharded_parameters_step_like_one_process(tmp_path):
    """50 steps with 13 refreshes, with every probe."""
    spawn(ranks.train_sharded, tmp_path)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    for name, probe in ranks.SHARDED_CASES:
        found = first[f"{name} {probe}"]
        assert torch.equal(found, second[f"{name} {probe}"])
        model = ranks.network()
        optimizer = ranks.sharded_optimizer(name, probe, model)
        for x, y in ranks.batches(ranks.STEPS):
            optimizer.step(closure_of(model, optimizer, x, y))
        alone = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert (found - alone).abs().max() < 1e-6, (name, probe)
    assert "rank_probes=True needs unsharded parameters" in (tmp_path / "0.txt").read_text()


# Scalers.


def small(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 3)).to(dtype)


DATA = torch.randn(8, 10, generator=torch.Generator().manual_seed(5)), torch.ones(8, 3)


@pytest.mark.parametrize("cls", SECOND)
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_gradient_scaler_changes_nothing(cls, unscaled):
    plain, scaled = small(), small()
    a, b = cls(plain.parameters(), lr=0.01), cls(scaled.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = DATA
    for _ in range(12):
        a.zero_grad()
        a.backward(((plain(x) - y) ** 2).mean())
        if unscaled:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        a.step()
        b.zero_grad()
        b.backward(scaler.scale(((scaled(x) - y) ** 2).mean()))
        if unscaled:
            scaler.unscale_(b)
            nn.utils.clip_grad_norm_(scaled.parameters(), 0.05)
        scaler.step(b)
        scaler.update()
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


@pytest.mark.parametrize("cls", [Sophia, SADH, SSDH])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_scaler_changes_nothing_with_finite_differences(cls, accumulate):
    plain, scaled = small(torch.float64), small(torch.float64)
    options = {"lr": 0.01, "update_period": 3, "hvp": "finite_difference"}
    a, b = cls(plain.parameters(), **options), cls(scaled.parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    parts = list(zip(*(t.double().chunk(accumulate) for t in DATA), strict=True))
    for _ in range(7):
        a.zero_grad()
        b.zero_grad()
        for x, y in parts:
            a.backward(lambda x=x, y=y: ((plain(x) - y) ** 2).mean() / accumulate)
            b.backward(lambda x=x, y=y: scaler.scale(((scaled(x) - y) ** 2).mean() / accumulate))
        nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        a.step()
        scaler.unscale_(b)
        nn.utils.clip_grad_norm_(scaled.parameters(), 0.05)
        scaler.step(b)
        scaler.update()
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-8)
        assert torch.allclose(a.state[p]["curvature"], b.state[q]["curvature"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("overflow", ["both", "shifted"])
@pytest.mark.parametrize("cls", [SSDH, SSVP])
def test_finite_differences_survive_an_overflow(cls, overflow):
    """If both gradients overflow, the step is skipped; if only the shifted one does, D is kept."""
    model = small()
    optimizer = cls(model.parameters(), lr=0.01, update_period=2, hvp="finite_difference")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = DATA
    weights, curvature, calls = [], [], []
    for i in range(6):
        optimizer.zero_grad()
        calls.clear()

        def closure(i=i):
            calls.append(1)
            shifted = len(calls) == (1 if cls is SSDH else 2)
            lost = i == 2 and (overflow == "both" or shifted)
            return scaler.scale(((model(x) - y) ** 2).mean() * (math.inf if lost else 1))

        optimizer.backward(closure)
        scaler.step(optimizer)
        scaler.update()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        states = [optimizer.state[p]["curvature"].flatten() for p in model.parameters()]
        curvature.append(torch.cat(states))
    assert torch.equal(weights[1], weights[2]) == (overflow == "both")
    assert torch.equal(curvature[1], curvature[2])
    assert not torch.equal(curvature[2], curvature[4])
    assert torch.isfinite(weights[-1]).all()
    assert torch.isfinite(curvature[-1]).all()


def test_skipped_step_after_overflow_leaves_no_state():
    model = small()
    optimizer = SSDH(model.parameters(), lr=0.01, update_period=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = DATA
    weights = []
    for i in range(6):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean() * (math.inf if i == 2 else 1)
        optimizer.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert torch.isfinite(weights[-1]).all()


def test_overflowing_curvature_is_not_used():
    p = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = SSDH([p], lr=0.1, betas=(0.0, 0.5), update_period=1)
    optimizer.backward((p**2).sum())
    optimizer.step()
    before = optimizer.state[p]["curvature"].clone()
    optimizer.zero_grad()
    optimizer.backward((p**2).sum())
    optimizer._pending_estimates[p] = torch.tensor([math.inf, 2.0])
    optimizer.step()
    after = optimizer.state[p]["curvature"]
    assert after[0] == before[0]
    assert torch.isfinite(after).all()


# Hooks, groups, schedulers.


@pytest.mark.parametrize("cls", SECOND)
def test_hooks_are_called_once_per_step(cls):
    model, calls = nn.Linear(4, 2), {"accumulated": 0, "tensor": 0}

    def count(kind):
        calls[kind] += 1

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda _: count("accumulated"))
        p.register_hook(lambda _: count("tensor"))
    optimizer = cls(model.parameters(), lr=0.01, update_period=2)
    for _ in range(4):
        optimizer.zero_grad()
        optimizer.backward(model(torch.ones(3, 4)).pow(2).mean())
        optimizer.step()
    assert calls == {"accumulated": 8, "tensor": 8}


def test_hook_changes_the_gradient_once():
    p = nn.Parameter(torch.ones(3))
    p.register_hook(lambda g: 2 * g)
    optimizer = SSDH([p], lr=0.01, update_period=2)
    for _ in range(2):  # one step with curvature, one without
        optimizer.zero_grad()
        optimizer.backward((p**2).sum())
        assert torch.allclose(p.grad, 4 * p.detach())
        optimizer.step()
    # The curvature is the derivative of the changed gradient, 4, in an average that starts at 0.
    beta2 = optimizer.param_groups[0]["betas"][1]
    smoothed = optimizer.rule.smooth(torch.full((3,), 4.0))
    assert torch.allclose(optimizer.state[p]["curvature"], (1 - beta2) * smoothed)


@pytest.mark.parametrize("cls", [*SECOND, Adam])
def test_groups_use_their_own_betas(cls):
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    groups = [{"params": [p], "betas": (0.0, 0.6)}, {"params": [q]}]
    optimizer = cls(groups, lr=0.1, betas=(0.9, 0.99))
    assert [g["betas"] for g in optimizer.param_groups] == [(0.0, 0.6), (0.9, 0.99)]
    optimizer.backward((p**2).sum() + (q**2).sum())
    optimizer.step()
    assert torch.allclose(optimizer.state[p]["momentum"], torch.full((3,), 2.0))
    assert torch.allclose(optimizer.state[q]["momentum"], torch.full((3,), 0.2))
    with pytest.raises(ValueError, match="beta2 must be at least 0 and below 1"):
        cls([p], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="betas must be a pair"):
        cls([p], betas=(0.9,))


@pytest.mark.parametrize("cls", EVERY)
@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_schedulers_cycle_the_first_beta(cls, name):
    model = nn.Linear(4, 2)
    optimizer = cls(model.parameters(), lr=0.01)
    arguments = {"max_lr": 0.1, "total_steps": 20}
    if name == "CyclicLR":
        arguments = {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5}
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
    seen = []
    for _ in range(8):
        optimizer.zero_grad()
        optimizer.backward(model(torch.ones(3, 4)).pow(2).mean())
        optimizer.step()
        group = optimizer.param_groups[0]
        seen.append(group["momentum"] if cls is SGDM else group["betas"][0])
        scheduler.step()
    assert len({round(b, 6) for b in seen}) > 4


def test_state_with_beta1_and_beta2_is_loaded():
    p = nn.Parameter(torch.ones(3))
    optimizer = SSDH([p], betas=(0.5, 0.7))
    state = optimizer.state_dict()
    (group,) = state["param_groups"]
    old = {k: v for k, v in group.items() if k != "betas"} | {"beta1": 0.1, "beta2": 0.2}
    optimizer.load_state_dict({**state, "param_groups": [old]})
    assert optimizer.param_groups[0]["betas"] == (0.1, 0.2)


# Errors.


def compiled_model():
    return torch.compile(nn.Linear(4, 2), backend="aot_eager")


def attention():
    q = nn.Parameter(torch.randn(2, 2, 5, 8))
    return [
        q
    ], lambda: functional.scaled_dot_product_attention(q, q, q, is_causal=True).pow(2).mean()


@pytest.mark.parametrize("kind", ["attention", "compiled"])
def test_error_without_second_derivative_names_alternatives(kind):
    if kind == "attention":
        params, loss = attention()
    else:
        model = compiled_model()
        params, loss = list(model.parameters()), lambda: model(torch.ones(3, 4)).pow(2).mean()
    optimizer = SSDH(params, lr=0.01)
    with pytest.raises(RuntimeError) as raised:
        optimizer.backward(loss())
    message = str(raised.value)
    for words in ("no second derivative", "forward_context()", "hvp='finite_difference'"):
        assert words in message


@pytest.mark.parametrize("cls", [SSDH, Adam])
def test_sparse_and_complex_gradients_raise_a_clear_error(cls):
    model = nn.Embedding(20, 4, sparse=True)
    optimizer = cls(model.parameters(), lr=0.01)

    def train():
        optimizer.backward(model(torch.tensor([1, 2])).pow(2).mean())
        optimizer.step()

    with pytest.raises(TypeError, match="sparse gradients are not supported; use dense ones"):
        train()
    with pytest.raises(TypeError, match="complex parameters are not supported"):
        cls([nn.Parameter(torch.randn(4, dtype=torch.cfloat))], lr=0.01)


def test_error_after_plain_backward_names_the_call_needed():
    model = small()
    optimizer = SSDH(model.parameters(), lr=0.01)
    model(DATA[0]).mean().backward()
    with pytest.raises(RuntimeError, match=r"call optimizer\.backward\(loss\)"):
        optimizer.step()
    other = SSDH(model.parameters(), lr=0.01, hvp="finite_difference")
    other.backward(model(DATA[0]).mean())
    with pytest.raises(RuntimeError, match=r"needs a closure: optimizer\.step\(closure\)"):
        other.step()


def test_incompatible_options_raise_an_error():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="unknown hvp 'forward'"):
        SSDH([p], hvp="forward")
    with pytest.raises(ValueError, match="rank_probes=True needs hvp='autograd'"):
        SSDH([p], hvp="finite_difference", rank_probes=True)
    with pytest.raises(ValueError, match="curvature='exact' needs hvp='autograd'"):
        SSDH([p], hvp="finite_difference", curvature="exact")


# Finite differences.


def closure_of(model, optimizer, x, y, count=None):
    def closure():
        if count is not None:
            count.append(1)
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        return loss.detach()

    return closure


@pytest.mark.parametrize("cls", SECOND)
def test_finite_differences_step_like_second_derivatives(cls):
    first, second = small(torch.float64), small(torch.float64)
    a = cls(first.parameters(), lr=0.02, rho=0.1, update_period=3, seed=1)
    b = cls(second.parameters(), lr=0.02, rho=0.1, update_period=3, seed=1, hvp="finite_difference")
    x, y = (t.double() for t in DATA)
    calls = []
    for _ in range(12):
        a.zero_grad()
        a.backward(((first(x) - y) ** 2).mean())
        a.step()
        b.step(closure_of(second, b, x, y, calls))
    assert len(calls) == 12 + 4  # a second call when curvature is due
    assert b.gradient_equivalents == 12 + 4
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-5)


def test_closure_without_backward():
    first, second = small(torch.float64), small(torch.float64)
    a = SSDH(first.parameters(), lr=0.02, update_period=3, hvp="finite_difference")
    b = SSDH(second.parameters(), lr=0.02, update_period=3, hvp="finite_difference")
    x, y = (t.double() for t in DATA)
    for _ in range(7):
        a.step(closure_of(first, a, x, y))
        b.zero_grad()
        loss = b.backward(lambda: ((second(x) - y) ** 2).mean())
        b.step()
        assert loss.ndim == 0
        assert not loss.requires_grad
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)


def test_empty_closure_changes_nothing():
    """Wrappers in other packages pass one if the user gave no closure."""
    first, second = small(torch.float64), small(torch.float64)
    a = SSDH(first.parameters(), lr=0.02, update_period=3, hvp="finite_difference")
    b = SSDH(second.parameters(), lr=0.02, update_period=3, hvp="finite_difference")
    x, y = (t.double() for t in DATA)
    for _ in range(7):
        for model, optimizer in ((first, a), (second, b)):
            optimizer.zero_grad()
            optimizer.backward(lambda model=model: ((model(x) - y) ** 2).mean())
        a.step()
        b.step(lambda: None)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert a.gradient_equivalents == b.gradient_equivalents == 7 + 3


def test_error_for_a_closure_that_returns_no_loss():
    model = small()
    optimizer = SSDH(model.parameters(), lr=0.02, hvp="finite_difference")

    def closure():
        model(DATA[0]).mean().backward()

    with pytest.raises(RuntimeError, match=r"closure\(\) calls backward and returns the loss"):
        optimizer.step(closure)


def test_second_evaluation_is_counted_once():
    """Also if the caller of the closure calls zero_grad."""
    model = small()
    optimizer = SSDH(model.parameters(), lr=0.02, update_period=3, hvp="finite_difference")

    def closure():
        loss = model(DATA[0]).square().mean()
        optimizer.backward(loss)
        return loss

    for _ in range(7):
        optimizer.zero_grad()
        optimizer.step(closure)
    assert optimizer.gradient_equivalents == 7 + 3


def test_gradients_accumulate_over_closures():
    model = small(torch.float64)
    optimizer = SSDH(model.parameters(), lr=0.02, hvp="finite_difference")
    x, y = (t.double() for t in DATA)
    expected = torch.autograd.grad(((model(x) - y) ** 2).mean(), list(model.parameters()))
    for part in (slice(0, 4), slice(4, 8)):
        optimizer.backward(lambda part=part: ((model(x[part]) - y[part]) ** 2).mean() / 2)
    for p, g in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-12)


@pytest.mark.parametrize("earlier", [False, True])
def test_closure_need_not_call_zero_grad(earlier):
    """Gradients are cleared outside the closure, or earlier gradients remain and accumulate."""
    first, second = small(torch.float64), small(torch.float64)
    x, y = (t.double() for t in DATA)
    a = SSDH(first.parameters(), lr=0.02, update_period=2, hvp="finite_difference")
    b = SSDH(second.parameters(), lr=0.02, update_period=2, hvp="finite_difference")

    def accumulating():
        loss = ((first(x) - y) ** 2).mean()
        loss.backward()
        return loss.detach()

    def with_constant_gradient():
        b.zero_grad()
        loss = ((second(x) - y) ** 2).mean()
        loss.backward()
        if earlier:  # a constant gradient, without curvature
            for p, g in zip(second.parameters(), constant, strict=True):
                p.grad.add_(g)
        return loss.detach()

    for _ in range(4):
        a.zero_grad()
        if earlier:
            first(x).square().sum().backward()
            constant = [p.grad.clone() for p in first.parameters()]
        a.step(accumulating)
        b.step(with_constant_gradient)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)
        assert torch.allclose(a.state[p]["curvature"], b.state[q]["curvature"], rtol=1e-6)


def test_curvature_accumulates_over_closures():
    """All closures use the same probe, as several losses do."""
    model = small(torch.float64)
    x, y = (t.double() for t in DATA)
    options = {"lr": 0.0, "seed": 3}
    a = SSDH(model.parameters(), hvp="finite_difference", **options)
    b = SSDH(model.parameters(), **options)
    parts = (slice(0, 4), slice(4, 8))

    def loss(part):
        return ((model(x[part]) - y[part]) ** 2).mean() / 2

    for part in parts:
        a.backward(lambda part=part: loss(part))
    a.step()
    model.zero_grad()
    for part in parts:
        b.backward(loss(part))
    b.step()
    for p in model.parameters():
        assert torch.allclose(a.state[p]["curvature"], b.state[p]["curvature"], atol=1e-6)


def test_parameters_and_random_state_are_restored():
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(10, 16), nn.Dropout(0.5), nn.Linear(16, 3))
    optimizer = SSDH(model.parameters(), lr=0.0, hvp="finite_difference")
    before = copy.deepcopy(model.state_dict())
    masks = []
    model[1].register_forward_hook(lambda _m, _i, out: masks.append(out.detach() == 0))
    state = torch.get_rng_state()
    optimizer.step(closure_of(model, optimizer, *DATA))
    assert torch.equal(masks[0], masks[1])  # the same dropout in both evaluations
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    model(DATA[0])
    assert torch.equal(torch.get_rng_state(), after)  # the state after one evaluation


@pytest.mark.parametrize("kind", ["attention", "compiled", "ctc", "hardsigmoid", "reentrant"])
def test_models_without_second_derivatives_train_with_finite_differences(kind):
    torch.manual_seed(0)
    if kind == "attention":
        params, loss_fn = attention()
    elif kind == "compiled":
        model = compiled_model()
        params, loss_fn = list(model.parameters()), lambda: model(torch.ones(3, 4)).pow(2).mean()
    elif kind == "ctc":
        model = nn.Linear(6, 5)
        x, labels = torch.randn(12, 2, 6), torch.randint(1, 5, (2, 4))
        params = list(model.parameters())

        def loss_fn():
            return functional.ctc_loss(model(x).log_softmax(-1), labels, (12, 12), (4, 4))
    elif kind == "hardsigmoid":
        model = nn.Sequential(nn.Linear(4, 6), nn.Hardsigmoid(), nn.Linear(6, 2))
        params, loss_fn = list(model.parameters()), lambda: model(torch.ones(3, 4)).pow(2).mean()
    else:
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        x = torch.ones(3, 4, requires_grad=True)
        params = list(model.parameters())

        def loss_fn():
            checkpoint = torch.utils.checkpoint.checkpoint
            return checkpoint(model, x, use_reentrant=True).pow(2).mean()

    optimizer = SSDH(params, lr=0.02, rho=0.1, update_period=2, hvp="finite_difference")
    losses = []
    for _ in range(6):

        def closure():
            optimizer.zero_grad()
            loss = loss_fn()
            loss.backward()
            return loss.detach()

        losses.append(float(optimizer.step(closure)))
    assert losses[-1] < losses[0]
    assert optimizer.hvp_count == 3


def test_closure_with_changing_batches_raises_an_error():
    model = small()
    optimizer = SSDH(model.parameters(), lr=0.01, hvp="finite_difference")
    stream = torch.Generator().manual_seed(0)

    def closure():
        optimizer.zero_grad()
        loss = (model(torch.randn(8, 10, generator=stream)) ** 2).mean()
        loss.backward()
        return loss.detach()

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="must evaluate the same batch each time"):
        optimizer.step(closure)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_optimizer_with_finite_differences_is_copied():
    model = small()
    optimizer = SSDH(model.parameters(), lr=0.01, hvp="finite_difference")
    again = copy.deepcopy(optimizer)
    assert again.hvp == "finite_difference"


def test_finite_differences_do_not_cross_a_nearby_kink():
    """The kink is at a relative distance of 1e-4; a step with c = 1 would cross it."""
    p = torch.ones(1, requires_grad=True)
    optimizer = SADH([p], lr=0.0, betas=(0.9, 0.0), hvp="finite_difference")

    def closure():
        optimizer.zero_grad()
        loss = (p**2 / 2 + 100 * torch.relu((p - 1).abs() - 1e-4)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.state[p]["curvature"].item() == pytest.approx(1.0, abs=0.01)
