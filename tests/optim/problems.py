"""Small problems with known derivatives, and the optimizers under test."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adaptive_opt.optim import SecondOrderOptimizer
from adaptive_opt.study import ARMS, UPWARDS

SHAPES = [(3, 2), (4,), ()]
SIZES = [6, 4, 1]


@dataclass(frozen=True)
class Case:
    """An arm of the study with an optimizer of this package; new arms inherit every test.

    Excluded are arms that need samples or labels, which these problems lack, and arms with several
    probes or a whole matrix; they have tests of their own. Arms that differ from another one only
    in their period are excluded too.
    """

    name: str
    cls: type
    options: dict[str, Any]

    def make(self, params, **kwargs):
        return self.cls(params, **{**self.options, **kwargs})

    @property
    def second_order(self) -> bool:
        return issubclass(self.cls, SecondOrderOptimizer)

    @property
    def needs_hvp(self) -> bool:
        source = self.options.get("curvature", "estimate")
        return self.second_order and source not in ("squared_gradient", "constant")

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Values for which every part of the rule has an effect; some elements are clipped."""
        if self.second_order:
            return {"lr": 0.05, "betas": (0.9, 0.8), "rho": 0.4, "update_period": 3}
        special = {
            "Adam": {"lr": 0.05, "betas": (0.9, 0.99)},
            "SGDM": {"lr": 0.01, "momentum": 0.9},
        }
        return special.get(self.cls.__name__, {"lr": 0.01})


def _cases() -> list[Case]:
    cases = []
    for arm in ARMS:
        other = arm in UPWARDS or arm.options.get("curvature") == "gauss_newton"
        if arm.optimizer and arm.optimizer.startswith("adaptive_opt.optim.") and not other:
            module, _, name = arm.optimizer.rpartition(".")
            cls = getattr(importlib.import_module(module), name)
            cases.append(Case(arm.name, cls, dict(arm.options)))
    return cases


CASES = _cases()
SECOND_ORDER = [c for c in CASES if c.second_order]
WITH_HVP = [c for c in CASES if c.needs_hvp]


def matrix(n: int = sum(SIZES), seed: int = 0) -> np.ndarray:
    """A symmetric, positive definite matrix that couples all parameters."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n))
    return a @ a.T / n + 0.1 * np.eye(n)


def flat_start(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=sum(SIZES))


def split(flat):
    parts = np.split(flat, np.cumsum(SIZES)[:-1])
    return [p.reshape(s) for p, s in zip(parts, SHAPES, strict=True)]


def parameters(flat=None, dtype=torch.float64) -> list[torch.Tensor]:
    flat = flat_start() if flat is None else flat
    return [torch.tensor(p, dtype=dtype, requires_grad=True) for p in split(flat)]


def ensemble_parameters(members: int, dtype=torch.float64) -> list[torch.Tensor]:
    """Parameters ``[members, ...]``; a 0-dim parameter becomes ``[members]``."""
    starts = [split(flat_start(seed=s)) for s in range(members)]
    stacked = [np.stack(parts) for parts in zip(*starts, strict=True)]
    return [torch.tensor(p, dtype=dtype, requires_grad=True) for p in stacked]


def loss(params, members: int | None = None) -> torch.Tensor:
    """½ θᵀBθ + ¼ Σ θ⁴, which couples all tensors; one loss for each member."""
    b = torch.tensor(matrix(), dtype=params[0].dtype, device=params[0].device)
    rows = members or 1
    theta = torch.cat([p.reshape(rows, -1) for p in params], dim=1)
    value = 0.5 * ((theta @ b) * theta).sum(1) + 0.25 * (theta**4).sum(1)
    return value if members else value[0]


def gradient_np(theta):
    return matrix() @ theta + theta**3


def hessian_np(theta):
    return matrix() + np.diag(3 * theta**2)


def run(optimizer, params, steps, members=None):
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.backward(loss(params, members))
        optimizer.step()


def flat(params) -> np.ndarray:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in params])
