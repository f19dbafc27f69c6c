"""Example of a user's code, which ``mypy --strict`` checks against the package's types.

An unused ``type: ignore`` is an error, so mypy must find every mistake in ``mistakes``.
"""

import torch
from torch import Tensor, nn

from adaptive_opt.optim import SADH, SSDH, SecondOrderOptimizer


def train(model: nn.Module, x: Tensor, y: Tensor) -> float:
    optimizer = SSDH(model.parameters(), lr=0.05, betas=(0.9, 0.99), rho=0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    loss = torch.tensor(0.0)
    for _ in range(10):
        optimizer.zero_grad()
        with optimizer.forward_context():
            loss = nn.functional.cross_entropy(model(x), y)
        optimizer.backward(loss)
        optimizer.step()
        schedule.step()
    clipped: Tensor = optimizer.statistics()["clipped_fraction"]
    return loss.item() + clipped.item() + optimizer.gradient_equivalents


def ensemble(params: list[Tensor]) -> SecondOrderOptimizer:
    return SADH(params, members=3, seed=range(3), lr=torch.linspace(0.1, 0.3, 3))


def mistakes(model: nn.Module) -> None:
    optimizer = SSDH(model.parameters(), lr="fast")  # type: ignore[arg-type]
    optimizer.backwards(torch.tensor(0.0))  # type: ignore[attr-defined]
    optimizer.backward(0.5)  # type: ignore[arg-type]
    norm: int = optimizer.gradient_equivalents  # type: ignore[assignment]
    print(norm)
