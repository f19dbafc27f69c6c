"""The loss around a point: on a plane through it, and on the line to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .operators import NetworkLoss

__all__ = ["along_line", "extent", "on_plane"]

Told = Callable[[int], Any]


def extent(loss: float, eigenvalue: float, rise: float = 4.0) -> float:
    """How far along a unit eigenvector the quadratic model adds ``rise`` times the loss.

    Args:
        loss: at the centre, positive.
        eigenvalue: of either sign.
        rise: times the loss.

    Example:
        >>> extent(0.5, 4.0)  # ½ · 4 · 1² = 4 · 0.5
        1.0
    """
    size = max(abs(eigenvalue), torch.finfo(torch.float32).tiny)
    return float((2 * rise * loss / size) ** 0.5)


def on_plane(
    loss: NetworkLoss,
    directions: Tensor,
    extents: tuple[float, float],
    points: int,
    told: Told = lambda _: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss at θ + a u + b w; the parameters are put back.

    Args:
        loss: at θ.
        directions: u and w, ``[n, 2]``.
        extents: a and b go from minus to plus these.
        points: of each, odd: θ is one of them.
        told: of every evaluation.

    Returns:
        The values of a and of b, ``[points]``, and the losses ``[points of b, points of a]``; NaN
        where a loss is not finite.
    """
    centre = loss.get()
    a, b = (torch.linspace(-e, e, points, dtype=torch.float64) for e in extents)
    found = torch.empty(points, points, dtype=torch.float64)
    try:
        for i, down in enumerate(b.tolist()):
            for j, right in enumerate(a.tolist()):
                loss.set(centre + right * directions[:, 0] + down * directions[:, 1])
                found[i, j] = loss.value_or_nan()
                told(1)
    finally:
        loss.set(centre)
    return a, b, found


def along_line(
    loss: NetworkLoss,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    positions: Tensor,
    told: Told = lambda _: None,
) -> Tensor:
    """The loss at (1 − s) first + s second, parameters and buffers alike; ``[positions]``.

    Args:
        loss: whose network is left at the last position.
        first, second: all parameters, then all buffers, as the network has them.
        positions: s.
        told: of every evaluation.
    """
    own = [*loss.network.parameters(), *buffers_of(loss.network)]
    found = []
    for s in positions.tolist():
        with torch.no_grad():
            for tensor, start, end in zip(own, first, second, strict=True):
                if tensor.is_floating_point():
                    tensor.copy_(torch.lerp(start.to(tensor), end.to(tensor), s))
        found.append(loss.value_or_nan())
        told(1)
    return torch.tensor(found, dtype=torch.float64)


def buffers_of(network: nn.Module) -> list[Tensor]:
    """What training keeps beside parameters: those of the state dict."""
    kept = network.state_dict()
    return [b for name, b in network.named_buffers() if name in kept]
