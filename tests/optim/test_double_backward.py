"""The fast second derivatives equal those of torch."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import batch_norm, conv1d, conv2d, conv3d, cross_entropy
from torchvision.models import resnet18

from adaptive_opt.optim import SSDH
from adaptive_opt.optim.double_backward import FastDoubleBackward

GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": 2},
    {"groups": 2, "padding": 1},
]


def randn(*shape, **kwargs):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True, **kwargs)


def products(module, x, fast, seed=0):
    """Gradient, Hessian-vector product and buffers of a module."""
    params = list(module.parameters())
    with FastDoubleBackward() if fast else nullcontext():
        loss = module(x).square().mean()
    grads = torch.autograd.grad(loss, params, create_graph=True)
    stream = torch.Generator().manual_seed(seed)
    v = [torch.randn(p.shape, generator=stream, dtype=p.dtype) for p in params]
    hv = torch.autograd.grad(grads, params, v)
    return [*grads, *hv, *[b.clone() for b in module.buffers()]]


def assert_same(a, b, rel=1e-10):
    for x, y in zip(a, b, strict=True):
        scale = x.detach().abs().max().item() if x.numel() else 0
        torch.testing.assert_close(y, x, rtol=0, atol=rel * (scale + 1e-12))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("bias", [False, True])
def test_convolution(geometry, bias):
    x, w = randn(2, 2, 6, 5), randn(4, 2 // geometry.get("groups", 1), 3, 2)
    b = randn(4) if bias else None
    called = []

    def f(x, w, *b):
        with FastDoubleBackward():
            y = conv2d(x, w, *b, **geometry)
        called.append(y.grad_fn)
        return y

    inputs = (x, w) if b is None else (x, w, b)
    torch.testing.assert_close(f(*inputs), conv2d(*inputs, **geometry))
    if b is None:
        assert type(called[0]).__name__ == "_ConvolutionBackward"
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


@pytest.mark.parametrize("conv", [conv1d, conv3d])
def test_convolution_in_other_dimensions(conv):
    n = 1 if conv is conv1d else 3
    x, w = randn(2, 2, *[4] * n), randn(3, 2, *[2] * n)

    def f(x, w):
        with FastDoubleBackward():
            return conv(x, w, padding=1)

    torch.testing.assert_close(f(x, w), conv(x, w, padding=1))
    assert gradgradcheck(f, (x, w))


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (3, 2, 4, 3)])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm(shape, affine):
    channels = shape[1]
    x = randn(*shape)
    inputs = (x, randn(channels), randn(channels)) if affine else (x,)

    def f(x, weight=None, bias=None):
        with FastDoubleBackward():
            return batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)

    plain = batch_norm(x, None, None, *inputs[1:], training=True, eps=1e-3)
    torch.testing.assert_close(f(*inputs), plain)
    assert "_BatchNorm" in type(f(*inputs).grad_fn).__name__
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_resnet_has_the_same_products_and_running_statistics(memory_format):
    results = []
    for fast in (False, True):
        torch.manual_seed(0)
        net = resnet18(num_classes=3).double().to(memory_format=memory_format)
        x = torch.randn(4, 3, 32, 32, dtype=torch.float64).to(memory_format=memory_format)
        results.append(products(net, x, fast))
    assert_same(*results)
    buffers = dict(net.named_buffers())
    assert buffers["bn1.running_mean"].abs().sum() > 0  # the network was in training mode


def test_frozen_evaluation_and_same_padding_layers_use_torch():
    conv = nn.Conv2d(2, 2, 3, padding="same").double()
    frozen = nn.Conv2d(2, 2, 3).double().requires_grad_(False)
    still = nn.BatchNorm2d(2).double().eval()
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    net = nn.Sequential(conv, frozen, still, nn.Flatten(), nn.Linear(32, 2).double())
    params = [p for p in net.parameters() if p.requires_grad]
    results = []
    for fast in (False, True):
        with FastDoubleBackward() if fast else nullcontext():
            loss = net(x).square().mean()
        grads = torch.autograd.grad(loss, params, create_graph=True)
        results.append([*grads, *torch.autograd.grad(grads, params, grads)])
    assert_same(*results)


def test_one_value_per_channel_raises_the_error_of_torch():
    with FastDoubleBackward(), pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(randn(1, 3), None, None, training=True)


@pytest.mark.parametrize("ignored", [False, True])
def test_cross_entropy(ignored):
    z, y = randn(5, 4), torch.tensor([0, 3, 3, 1, 2])
    options = {"ignore_index": 3} if ignored else {}

    def f(z):
        with FastDoubleBackward():
            return cross_entropy(z, y, **options)

    torch.testing.assert_close(f(z), cross_entropy(z, y, **options))
    assert type(f(z).grad_fn).__name__ == "_CrossEntropyBackward"
    assert gradcheck(f, (z,))
    assert gradgradcheck(f, (z,))


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum"},
        {"label_smoothing": 0.1},
        {"weight": torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)},
        {"size_average": False},
    ],
)
@pytest.mark.filterwarnings("ignore:size_average")
def test_other_options_of_cross_entropy_use_torch(options):
    z, y = randn(5, 4), torch.tensor([0, 3, 3, 1, 2])
    with FastDoubleBackward():
        fast = cross_entropy(z, y, **options)
        shares = cross_entropy(z, torch.softmax(z.detach(), 1))
    torch.testing.assert_close(fast, cross_entropy(z, y, **options))
    torch.testing.assert_close(shares, cross_entropy(z, torch.softmax(z.detach(), 1)))


def test_vmap_uses_torch():
    w = randn(3, 2, 1, 2, 2)
    x = torch.randn(4, 1, 5, 5, dtype=torch.float64)
    with FastDoubleBackward():
        y = torch.func.vmap(lambda w: conv2d(x, w))(w)
    torch.testing.assert_close(y, torch.stack([conv2d(x, wi) for wi in w]))


def test_forward_context_is_active_only_when_a_second_derivative_is_due():
    net = nn.Conv2d(1, 1, 2, bias=False)
    optimizer = SSDH(net.parameters(), update_period=2)
    names = []
    for _ in range(3):
        optimizer.zero_grad()
        with optimizer.forward_context():
            y = net(torch.ones(1, 1, 3, 3))
        names.append(type(y.grad_fn).__name__)
        optimizer.backward(y.square().sum())
        optimizer.step()
    assert names == ["_ConvolutionBackward", "ConvolutionBackward0", "_ConvolutionBackward"]
    # Outside the context the operation is torch's again.
    assert type(net(torch.ones(1, 1, 3, 3)).grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize("probe", ["rademacher", "momentum_sign"])
def test_curvature_of_a_part_of_the_batch(probe):
    """The gradient is that of the batch, the curvature that of a part, and its cost is counted."""
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    losses = [0.5 * (x @ w).square().mean(), 0.5 * (x[:2] @ w).square().mean()]
    gradient = x.T @ (x @ w.detach()) / 4
    optimizer = SSDH([w], lr=0.1, betas=(0.0, 0.0), rho=0.5, probe=probe, max_grad_norm=100.0)
    optimizer.backward(losses[0], curvature_loss=losses[1], curvature_share=0.5)
    torch.testing.assert_close(w.grad, gradient)
    optimizer.step()
    v = torch.ones(2, dtype=torch.float64)
    if probe == "momentum_sign":
        v = -0.5 * gradient.sign()
    diagonal = torch.diag(x[:2].T @ x[:2] / 2) * v**2  # this part's Hessian is diagonal
    torch.testing.assert_close(optimizer.state[w]["curvature"], diagonal**2)
    assert optimizer.gradient_equivalents == 1 + 0.5 + 2 * 0.5
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert optimizer.gradient_equivalents == 2.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolutions_use_the_precision_of_autocast(dtype):
    """As torch's convolution does; the kernels of the derivatives need inputs of one precision."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 5, 3, bias=False)
    )
    x, params = torch.randn(4, 3, 8, 8), list(module.parameters())
    found = []
    for fast in (False, True):
        with torch.autocast("cpu", dtype), FastDoubleBackward() if fast else nullcontext():
            y = module(x)
        assert y.dtype == dtype
        if fast:  # GPU kernels accept only one precision
            assert {t.dtype for t in y.grad_fn.saved_tensors} == {dtype}
        grads = torch.autograd.grad(y.float().square().mean(), params, create_graph=True)
        v = [torch.ones_like(p) for p in params]
        found.append([*grads, *torch.autograd.grad(grads, params, v)])
        assert {g.dtype for g in found[-1]} == {torch.float32}
    scale = max(float(t.detach().abs().max()) for t in found[0])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=0.02 * scale)
