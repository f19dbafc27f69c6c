"""Tests that need a GPU: results equal the CPU's, no host waits, CUDA graphs, checkpoints.

They are skipped without a GPU; ``make gpu`` runs them first. tests/test_second_device.py has the
device tests that need no GPU.
"""

import copy
import io
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from adaptive_opt.curvature.arithmetic import matrix_units
from adaptive_opt.optim import SADH, SGDM, SSDH, SSVP, Sophia, curvature_state
from adaptive_opt.optim import sampled_cross_entropy as sampled
from adaptive_opt.optim.double_backward import FastDoubleBackward
from adaptive_opt.tasks.models import TransformerLanguageModel
from tests.engine import networks as network_runs
from tests.engine import test_run as rahimi_recht
from tests.optim.problems import CASES, parameters, run

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SECOND = (Sophia, SADH, SSDH, SSVP)
MODELS = ("convolution", "attention")
each_method = pytest.mark.parametrize("cls", SECOND, ids=lambda c: c.__name__)
each_model = pytest.mark.parametrize("kind", MODELS)


@pytest.fixture(autouse=True)
def _full_precision():
    """Switch TF32 off, so that results are comparable with the CPU's."""
    with matrix_units("ieee"):
        yield


@pytest.fixture
def same_probes(monkeypatch):
    """Draw probes with the CPU's generator on both devices; CUDA's gives other numbers."""
    draw = curvature_state.draw

    def on_cpu(name, generator, params):
        probe = draw(name, generator, [p.detach().cpu() for p in params])
        return [v.to(p.device) for v, p in zip(probe, params, strict=True)]

    monkeypatch.setattr(curvature_state, "draw", on_cpu)


@contextmanager
def no_waits():
    """Context manager that raises an error if the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def model_and_batch(kind, device=GPU):
    """Return a deterministic network, inputs and targets."""
    torch.manual_seed(0)
    if kind == "attention":
        model = TransformerLanguageModel(
            11, width=16, heads=2, feedforward=16, layers=1, dropout=0.0, window=6
        )
        tokens = torch.randint(11, (8, 7))
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    else:
        layers = [
            layer
            for channels in (3, 8)  # under autocast, the second layer's input has half precision
            for layer in (nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU())
        ]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 64, 5))
        x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    return model.to(device), x.to(device), y.to(device)


def loss_of(model, x, y):
    logits = model(x)
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


def train(model, optimizer, x, y, steps=8, autocast=None, scaler=None):
    """Train some steps; return their losses."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with optimizer.forward_context(), autocast or nullcontext():
            loss = loss_of(model, x, y)
        optimizer.backward(loss if scaler is None else scaler.scale(loss))
        losses.append(loss.detach().clone())
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return torch.stack(losses).float().cpu()


# Same results as on the CPU.


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_optimizer_steps_equal_the_cpu(case, same_probes):
    ends = []
    for device in (CPU, GPU):
        params = [p.detach().to(device).requires_grad_() for p in parameters()]
        run(case.make(params, **case.hyperparameters), params, 12)
        ends.append([p.detach().cpu() for p in params])
    for expected, found in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@each_method
@each_model
@pytest.mark.parametrize("foreach", [True, False])
def test_network_training_equals_the_cpu(cls, kind, foreach, same_probes):
    curves = []
    for device in (CPU, GPU):
        model, x, y = model_and_batch(kind, device)
        optimizer = cls(model.parameters(), lr=0.05, update_period=3, foreach=foreach)
        curves.append(train(model, optimizer, x, y))
    assert curves[0][-1] < curves[0][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("task", ["resnet18", "transformer"])
@pytest.mark.parametrize("arm", ["adam", "ssvp"])
def test_engine_equals_the_cpu(task, arm):
    """These arms draw no random probes."""
    sizes = {"epochs": 1} | ({"dropout": 0.0} if task == "transformer" else {})
    losses = []
    for device in ("cpu", "cuda"):
        history, _, summary = network_runs.train(task, arm, device=device, sizes=sizes)
        assert summary["device"].startswith(device)
        losses.append(torch.tensor(history["train_loss"].dropna().to_numpy()))
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("arm", ["sgdm", "adam", "ssvp", "ssdh_exact"])
def test_rahimi_recht_ensembles_equal_the_cpu(arm):
    """These arms draw no random probes."""
    ends = []
    for device in ("cpu", "cuda"):
        history, weights, _ = rahimi_recht.train(arm, seeds=range(8), device=device, epochs=5)
        norms = history["hessian_spectral_norm"].dropna()
        ends.append([torch.tensor(c.to_numpy()) for c in (history["train_loss"], norms)])
        assert {w.device.type for w in weights.values()} == {"cpu"}
    for expected, found in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


# Second derivatives.


def hessian_vector_product(function, inputs, fast):
    with FastDoubleBackward() if fast else nullcontext():
        value = function(*inputs)
    grads = torch.autograd.grad(value, inputs, create_graph=True)
    stream = torch.Generator().manual_seed(1)
    v = [torch.randn(g.shape, generator=stream, dtype=g.dtype).to(g.device) for g in grads]
    return [*grads, *torch.autograd.grad(grads, inputs, v)]


def compare_products(function, inputs, rtol=1e-8):
    plain, fast = (hessian_vector_product(function, inputs, f) for f in (False, True))
    for expected, found in zip(plain, fast, strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=rtol * (scale + 1e-12))


def on_gpu(*shape, dtype=torch.float64, **options):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return made.to(GPU, **options).requires_grad_()


ORDERS = pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])


@ORDERS
@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"dilation": 2}]
)
def test_double_backward_of_convolutions(order, geometry):
    x = on_gpu(2, 4, 9, 8, memory_format=order)
    w = on_gpu(6, 4 // geometry.get("groups", 1), 3, 2, memory_format=order)
    compare_products(lambda x, w: nn.functional.conv2d(x, w, **geometry).pow(3).sum(), (x, w))


@ORDERS
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_double_backward_of_batch_norm(order, dtype, rtol):
    x = on_gpu(8, 4, 6, 6, memory_format=order, dtype=dtype)
    weight, bias = on_gpu(4, dtype=dtype), on_gpu(4, dtype=dtype)

    def function(x, weight, bias):
        return nn.functional.batch_norm(x, None, None, weight, bias, training=True).pow(3).mean()

    compare_products(function, (x, weight, bias), rtol)


def test_double_backward_of_cross_entropy():
    logits, labels = on_gpu(12, 7), torch.arange(12, device=GPU) % 7
    labels[3] = -100
    compare_products(lambda z: cross_entropy(z, labels), (logits,))


# Ways to train.


@each_method
@pytest.mark.parametrize(
    "options", [{"curvature": "gauss_newton"}, {"hvp": "finite_difference"}], ids=str
)
def test_curvature_without_second_derivatives(cls, options):
    model, x, y = model_and_batch("convolution")
    optimizer = cls(model.parameters(), lr=0.05, update_period=2, **options)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    losses = []
    for _ in range(10):
        if "hvp" in options:
            losses.append(optimizer.step(closure).detach().clone())
            continue
        optimizer.zero_grad()
        logits = model(x)
        loss = cross_entropy(logits, y)
        losses.append(loss.detach().clone())
        optimizer.backward(loss, lambda z=logits: sampled(z))
        optimizer.step()
    assert torch.isfinite(torch.stack(losses)).all()
    assert losses[-1] < losses[0]


@each_model
@pytest.mark.parametrize("cls", [SSDH, SSVP], ids=lambda c: c.__name__)
def test_compiled_model_equals_the_eager_one(cls, kind, same_probes):
    curves = []
    for compiled in (False, True):
        model, x, y = model_and_batch(kind)
        optimizer = cls(model.parameters(), lr=0.05, update_period=3, hvp="finite_difference")
        forward = torch.compile(model) if compiled else model

        def closure(forward=forward, optimizer=optimizer, x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(forward, x, y)
            loss.backward()
            return loss

        curves.append(torch.stack([optimizer.step(closure).detach().clone() for _ in range(8)]))
    assert curves[0][-1] < curves[0][0]
    torch.testing.assert_close(curves[1], curves[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("arm", ["adam", "ssdh"])
def test_engine_trains_compiled(arm):
    history, _, _ = network_runs.train("resnet18", arm, device="cuda", compile=True)
    losses = history.groupby("seed")["train_loss"]
    assert (losses.last() < losses.first()).all()


@each_method
@each_model
def test_half_precision_with_a_gradient_scaler(cls, kind):
    model, x, y = model_and_batch(kind)
    optimizer = cls(model.parameters(), lr=0.05, update_period=3)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    autocast = torch.autocast("cuda", torch.float16)
    losses = train(model, optimizer, x, y, 12, autocast, scaler)
    assert torch.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_gradient_scaler_skips_overflowing_steps():
    model, x, y = model_and_batch("convolution")
    optimizer = SSDH(model.parameters(), lr=0.05, update_period=2)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    train(model, optimizer, x, y, 2, scaler=scaler)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    with optimizer.forward_context():
        loss = loss_of(model, x, y) * float("inf")
    optimizer.backward(scaler.scale(loss))
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() < 2.0**10
    assert torch.isfinite(train(model, optimizer, x, y, 4, scaler=scaler)).all()


@each_method
@each_model
def test_bfloat16_autocast(cls, kind):
    model, x, y = model_and_batch(kind)
    optimizer = cls(model.parameters(), lr=0.05, update_period=3)
    losses = train(model, optimizer, x, y, 12, torch.autocast("cuda", torch.bfloat16))
    assert torch.isfinite(losses).all()
    assert losses[-1] < losses[0]


# Waits and graphs.


@each_method
@each_model
@pytest.mark.parametrize("curvature", ["estimate", "permuted", "per_tensor", "gauss_newton"])
def test_backward_and_step_do_not_wait(cls, kind, curvature):
    """The first step does not wait either; every second step updates the curvature."""
    model, x, y = model_and_batch(kind)
    optimizer = cls(model.parameters(), lr=0.05, update_period=2, curvature=curvature)
    loss_of(model, x, y).backward()  # cuDNN and cuBLAS create their handles
    torch.cuda.synchronize()
    for _ in range(4):
        optimizer.zero_grad()
        with no_waits():
            with optimizer.forward_context():
                logits = model(x)
                loss = cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))
            draw = (lambda z=logits: sampled(z)) if curvature == "gauss_newton" else None
            optimizer.backward(loss, draw)
            optimizer.step()
            optimizer.statistics()


def test_no_waits_detects_a_wait():
    with pytest.raises(RuntimeError, match="synchroniz"), no_waits():
        torch.ones(3, device=GPU).sum().item()


@pytest.mark.parametrize("cls", [*SECOND, SGDM], ids=lambda c: c.__name__)
def test_ordinary_step_can_be_captured_in_a_cuda_graph(cls):
    """A step between two curvature updates depends on no counter, so its graph can be replayed."""
    model, x, y = model_and_batch("convolution")
    twin = copy.deepcopy(model)
    period = {} if cls is SGDM else {"update_period": 100}
    optimizers = [cls(m.parameters(), lr=0.05, **period) for m in (model, twin)]
    for m, optimizer in zip((model, twin), optimizers, strict=True):
        train(m, optimizer, x, y, 2)
        loss_of(m, x, y).backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    before = [p.detach().clone() for p in model.parameters()]
    with torch.cuda.graph(graph):
        optimizers[0].step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    for _ in range(3):
        graph.replay()
        optimizers[1].step()
    assert not torch.equal(next(model.parameters()), before[0])
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


# Checkpoints.


def state_on_cpu(optimizer):
    """Save an optimizer's state on the GPU and load it on the CPU."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("probe", ["momentum_sign", "rademacher"])
def test_gpu_state_can_be_loaded_on_the_cpu(probe):
    model, x, y = model_and_batch("convolution")
    optimizer = SSDH(model.parameters(), lr=0.05, update_period=3, probe=probe)
    train(model, optimizer, x, y, 3)
    other, x_cpu, y_cpu = model_and_batch("convolution", CPU)
    other.load_state_dict({k: v.cpu() for k, v in model.state_dict().items()})
    on_cpu = SSDH(other.parameters(), lr=0.05, update_period=3, probe=probe)
    on_cpu.load_state_dict(state_on_cpu(optimizer))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for name, value in optimizer.state[p].items():
            assert torch.equal(on_cpu.state[q][name], value.cpu())
    if probe == "rademacher":  # random streams differ between devices
        with pytest.raises(ValueError, match="another kind of device"):
            train(other, on_cpu, x_cpu, y_cpu, 1)
        return
    expected, found = train(model, optimizer, x, y, 4), train(other, on_cpu, x_cpu, y_cpu, 4)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
