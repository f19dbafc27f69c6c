r"""Stability of step rules on a quadratic loss.

The steps θ ← θ − η u use a smoothed gradient, preconditioned by a diagonal P that changes slowly.
They are stable if the top eigenvalue λ of P^{−1/2} H P^{−1/2} is at most T / η:

| rule | u | T |
|---|---|---|
| gradient descent | g | 2 |
| heavy ball, SGDM | b ← μ b + g | 2 + 2μ |
| Adam, Sophia, SADH, SSDH, SSVP | P⁻¹m, m ← β1 m + (1 − β1) g | (2 + 2β1) / (1 − β1) |

Above this limit, oscillations along the eigenvector grow. At the *edge of stability* ηλ / T is
near 1. P is Adam's √v̂ + ε, or the denominator of a second-order method. Where such a method clips,
the step length does not depend on the gradient, so these coordinates are excluded from H and P.

Sources: Polyak, *Some methods of speeding up the convergence of iteration methods* (1964); Cohen
et al., *Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability* (2021) and
*Adaptive Gradient Methods at the Edge of Stability* (2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["preconditioner_scale", "threshold"]


def threshold(momentum: float, *, averaged: bool) -> float:
    """T, the largest stable value of η times the top (preconditioned) eigenvalue.

    Args:
        momentum: μ or β1.
        averaged: True for a gradient average (β1), False for a sum (μ).

    Example:
        >>> threshold(0.0, averaged=False), threshold(0.9, averaged=False)
        (2.0, 3.8)
        >>> round(threshold(0.9, averaged=True), 6)
        38.0
    """
    total = 2 + 2 * momentum
    return total / (1 - momentum) if averaged else total


def preconditioner_scale(
    denominator: Tensor, momentum: Tensor | None = None, radius: float | None = None
) -> Tensor:
    """Diagonal of P^{−1/2}, ``[n]``; zero where the step is clipped.

    Args:
        denominator: diagonal of P, ``[n]``, positive.
        momentum: m, ``[n]``; None (default): no clipping.
        radius: ρ; None (default): no clipping.

    Example:
        >>> p, m = torch.tensor([4.0, 0.01]), torch.tensor([1.0, 1.0])
        >>> preconditioner_scale(p, m, radius=0.5)
        tensor([0.5000, 0.0000])
    """
    scale = denominator.rsqrt()
    if momentum is None or radius is None:
        return scale
    return torch.where((momentum / denominator).abs() > radius, 0.0, scale)
