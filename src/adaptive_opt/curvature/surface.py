"""Loss surfaces: losses on a plane through a point, and on the line between two points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .operators import NetworkLoss

__all__ = ["along_line", "extent", "on_plane"]

ProgressFn = Callable[[int], Any]


def extent(loss: float, eigenvalue: float, rise: float = 4.0) -> float:
    """Distance along a unit eigenvector at which the quadratic model adds ``rise`` times the loss.

    Args:
        loss: loss at the centre, positive.
        eigenvalue: its eigenvalue, of either sign.
        rise: relative increase of the loss.

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
    told: ProgressFn = lambda _: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Evaluate the loss at θ + a u + b w on a grid, and restore the parameters.

    Args:
        loss: loss of a network with parameters θ.
        directions: u and w, ``[n, 2]``.
        extents: largest values of a and b; the smallest are their negatives.
        points: number of values of each; odd, so that θ is a grid point.
        told: called with 1 after each evaluation.

    Returns:
        Values of a and b, ``[points]``, and losses, indexed ``[b, a]``; NaN if not finite.
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
    told: ProgressFn = lambda _: None,
) -> Tensor:
    """Evaluate the loss at (1 − s) first + s second; NaN where it is not finite.

    Args:
        loss: loss of a network, which keeps the values of the last position.
        first, second: all parameters, then all buffers, in the order of the network.
        positions: values of s, ``[positions]``, as is the result.
        told: called with 1 after each evaluation.
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
    """Buffers of a network that are part of its state dict."""
    kept = network.state_dict()
    return [b for name, b in network.named_buffers() if name in kept]
