"""An ``OptimizerInfo`` for each optimizer, the description that torch's tests use."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
)

from adaptive_opt.optim import SADH, SGDM, SSDH, SSVP, Adam, Sophia

CPU = torch.device("cpu")


def described(**options):
    return [OptimizerInput(params=None, kwargs=kwargs, desc=d) for d, kwargs in options.items()]


def general(lr, **more):
    """Configurations for every optimizer; torch calls such flags global-friendly.

    Args:
        lr: learning rate.
        more: options that let the gradient outweigh weight decay when maximizing.
    """
    return described(
        default={},
        lr={"lr": lr},
        tensor_lr={"lr": torch.tensor(lr)},
        tensor_lr_of_one_element={"lr": torch.tensor([lr])},
        weight_decay={"lr": lr, "weight_decay": 0.1},
        maximize={"lr": lr, "maximize": True},
        maximize_weight_decay={"lr": lr, "maximize": True, "weight_decay": 0.1, **more},
        max_grad_norm={"lr": lr, "max_grad_norm": 0.5},
    )


def sgdm_inputs(device, dtype=None):
    return general(0.01) + described(
        no_momentum={"lr": 0.01, "momentum": 0.0},
        tensor_momentum={"lr": 0.01, "momentum": torch.tensor(0.5)},
    )


def adam_inputs(device, dtype=None):
    return general(0.01) + described(
        betas={"betas": (0.8, 0.88)},
        tensor_betas={"betas": (torch.tensor(0.9), torch.tensor(0.99))},
        eps={"eps": 1e-6},
    )


def second_order_inputs(device, dtype=None):
    each = {"lr": 0.01, "rho": 0.5}
    return general(0.01, rho=0.5) + described(
        betas={**each, "betas": (0.5, 0.9)},
        tensor_betas={**each, "betas": (torch.tensor(0.9), torch.tensor(0.9))},
        rho={"lr": 0.01, "rho": 1.0},
        eps={**each, "eps": 1e-6},
        every_step={**each, "update_period": 1},
        every_third_step={**each, "update_period": 3},
        gaussian={**each, "probe": "gaussian"},
        momentum={**each, "probe": "momentum_sign", "update_period": 2},
        cumulative={**each, "probe": "momentum_sign_cumulative", "update_period": 2},
        per_tensor={**each, "curvature": "per_tensor"},
        squared_gradient={**each, "curvature": "squared_gradient"},
    )


def wrong(message, **kwargs):
    sample = torch.nn.Parameter(torch.randn(1))
    return ErrorOptimizerInput(
        OptimizerInput(params=[sample], kwargs=kwargs, desc=message),
        error_type=ValueError,
        error_regex=message,
    )


def errors(device, dtype):
    # Inputs without parameters expect an error for tensor learning rates, which are supported.
    common = get_error_inputs_for_all_optims(device, dtype)
    return [e for e in common if e.optimizer_error_input.params is not None] + [
        wrong(r"lr has shape \[2\]; it must have one element", lr=torch.tensor([0.1, 0.1])),
        wrong("lr must be at least 0", lr=-0.5),
        wrong("weight_decay must be at least 0", weight_decay=-0.5),
        wrong("max_grad_norm must be above 0", max_grad_norm=0.0),
        wrong("capturable=True is not supported", capturable=True),
        wrong("differentiable=True is not supported", differentiable=True),
        wrong("fused=True is not supported", fused=True),
    ]


def errors_with_betas(device, dtype):
    return [
        *errors(device, dtype),
        wrong("beta1 must be at least 0 and below 1", betas=(1.0, 0.0)),
        wrong("beta2 must be at least 0 and below 1", betas=(0.0, 1.0)),
        wrong("eps must be at least 0", eps=-1.0),
    ]


def info(cls, inputs, error_inputs):
    return OptimizerInfo(
        cls,
        optim_inputs_func=inputs,
        optim_error_inputs_func=error_inputs,
        supported_impls=("foreach",),
        not_og_supported_flags=("maximize", "capturable", "differentiable", "fused"),
        has_capturable_arg=True,
        supports_complex=False,
    )


DB = [
    info(SGDM, sgdm_inputs, errors),
    info(Adam, adam_inputs, errors_with_betas),
    *(info(cls, second_order_inputs, errors_with_betas) for cls in (Sophia, SADH, SSDH, SSVP)),
]


def inputs(info):
    """All configurations with ``foreach`` on and off; torch's function has it off on CPUs."""
    given = _get_optim_inputs_including_global_cliquey_kwargs(CPU, torch.float32, info)
    return [
        OptimizerInput(None, {**copy.deepcopy(i.kwargs), "foreach": foreach}, i.desc)
        for i in given
        for foreach in (False, True)
    ]


class Problem:
    """A weight and a bias with a squared error, as in torch's tests."""

    def __init__(self, *, contiguous=True, dtype=torch.float32):
        torch.manual_seed(0)
        if contiguous:
            self.weight = nn.Parameter(torch.randn(10, 5, dtype=dtype))
            self.bias = nn.Parameter(torch.randn(10, dtype=dtype))
        else:
            self.weight = nn.Parameter(torch.randn(10, 5, 2, dtype=dtype)[..., 0])
            self.bias = nn.Parameter(torch.randn(10, 2, dtype=dtype)[..., 0])
        self.input = torch.randn(5, dtype=dtype)
        self.params = [self.weight, self.bias]

    def loss(self):
        return (self.weight.mv(self.input) + self.bias).pow(2).sum()

    def closure(self, optimizer):
        def evaluate():
            optimizer.zero_grad()
            loss = self.loss()
            optimizer.backward(loss)
            return loss.detach()

        return evaluate

    def train(self, optimizer, steps, *schedulers):
        for _ in range(steps):
            loss = optimizer.step(self.closure(optimizer))
            for scheduler in schedulers:
                plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                scheduler.step(loss) if plateau else scheduler.step()

    def check_direction(self, before, kwargs):
        after = float(self.loss().detach())
        assert after > before if kwargs.get("maximize", False) else after < before, kwargs


def check_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            check_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            check_equal(x, y)
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    else:
        assert a == b
