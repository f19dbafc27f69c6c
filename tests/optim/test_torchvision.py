"""Train a small network of each family of torchvision's classifiers for three steps.

Networks that train with ``AdamW`` must train inside ``forward_context()``. Networks with an
operation without second derivative must raise a clear error, and train with finite differences.

AlexNet and VGG, whose linear layers have 10⁸ entries, and Inception also train, but are too large
for this test.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torchvision import models
from torchvision.models import convnext, swin_transformer

from adaptive_opt.optim import SSDH

BY_NAME = (
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
)

NO_SECOND_DERIVATIVE = ("mobilenet_v3_small",)
"""Networks with hardsigmoid, which has no second derivative."""


def vit():
    return models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)


def swin(**options):
    return models.SwinTransformer([2, 2], 24, [1, 2], [2, 4], [4, 4], num_classes=10, **options)


def swin_v2():
    return swin(
        block=swin_transformer.SwinTransformerBlockV2,
        downsample_layer=swin_transformer.PatchMergingV2,
    )


def maxvit():
    return models.MaxVit((32, 32), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=10)


def convnext_small():
    blocks = [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)]
    return models.ConvNeXt(blocks, num_classes=10)


CONSTRUCTORS = (vit, swin, swin_v2, maxvit, convnext_small)


def network(kind):
    torch.manual_seed(0)
    if callable(kind):
        return kind()
    extra = {"init_weights": False, "aux_logits": False} if kind == "googlenet" else {}
    return models.get_model(kind, weights=None, num_classes=10, **extra)


def batch():
    stream = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 32, 32, generator=stream)
    return images, torch.randint(10, (2,), generator=stream)


def train(model, optimizer, closure_of):
    """Losses of three steps, and whether the first moment of each parameter is nonzero."""
    start = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(2)
    losses = [float(closure_of(model, optimizer)) for _ in range(3)]
    params = list(model.parameters())
    assert all(bool(p.isfinite().all()) for p in params)
    assert sum(not torch.equal(p, s) for p, s in zip(params, start, strict=True)) > len(params) / 4
    moments = [optimizer.state.get(p, {}) for p in params]
    found = [m.get("momentum", m.get("exp_avg", torch.zeros(1))) for m in moments]
    assert all(bool(m.isfinite().all()) for m in found)
    return losses, [bool(m.any()) for m in found]


def adamw_step(model, optimizer):
    images, labels = batch()
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def second_derivative_step(model, optimizer):
    images, labels = batch()
    optimizer.zero_grad()
    with optimizer.forward_context():
        loss = functional.cross_entropy(model(images), labels)
    optimizer.backward(loss)
    optimizer.step()
    return loss.detach()


def finite_difference_step(model, optimizer):
    images, labels = batch()

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    return optimizer.step(closure)


def kind_name(kind):
    return kind if isinstance(kind, str) else kind.__name__


def train_with_adamw(kind):
    model = network(kind)
    decay = {"weight_decay": 0.0}
    return train(model, torch.optim.AdamW(model.parameters(), lr=0.001, **decay), adamw_step)


@pytest.mark.parametrize("kind", [*BY_NAME, *CONSTRUCTORS], ids=kind_name)
def test_networks_that_train_with_adamw_train_with_ssdh(kind):
    expected, expected_moments = train_with_adamw(kind)
    model = network(kind)
    optimizer = SSDH(model.parameters(), lr=0.01, update_period=1)
    found, found_moments = train(model, optimizer, second_derivative_step)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert optimizer.hvp_count == 3
    assert found_moments == expected_moments


@pytest.mark.parametrize("kind", NO_SECOND_DERIVATIVE)
def test_networks_without_second_derivative_train_with_finite_differences(kind):
    model = network(kind)
    optimizer = SSDH(model.parameters(), lr=0.01, update_period=1)
    with pytest.raises(RuntimeError, match=r"no second derivative.*hvp='finite_difference'"):
        second_derivative_step(model, optimizer)
    expected, expected_moments = train_with_adamw(kind)
    model = network(kind)
    optimizer = SSDH(model.parameters(), lr=0.01, update_period=1, hvp="finite_difference")
    found, found_moments = train(model, optimizer, finite_difference_step)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found_moments == expected_moments
