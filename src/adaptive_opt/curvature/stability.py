r"""When a step rule is stable on a quadratic loss, beside the curvature it lives on.

With steps θ ← θ − η u of a smoothed gradient, preconditioned by a diagonal P that changes slowly,
the top eigenvalue λ of P^{−1/2} H P^{−1/2} may not exceed T / η:

| rule | u | T |
|---|---|---|
| gradient descent | g | 2 |
| heavy ball, SGDM | b ← μ b + g | 2 + 2μ |
| Adam, Sophia, SADH, SSDH, SSVP | P⁻¹m, m ← β1 m + (1 − β1) g | (2 + 2β1) / (1 − β1) |

Above it the direction of that eigenvector oscillates and grows. ηλ / T near 1 is the *edge of
stability*. P is Adam's √v̂ + ε, or the curvature in the denominator of a second-order method. Where
such a method clips, its step has the same length whatever the gradient, so those coordinates do
not respond to curvature: they are left out of H and P.

Sources: Polyak, *Some methods of speeding up the convergence of iteration methods* (1964); Cohen
et al., *Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability* (2021) and
*Adaptive Gradient Methods at the Edge of Stability* (2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["preconditioner_scale", "threshold"]


def threshold(momentum: float, *, averaged: bool) -> float:
    """T: what η times the top (preconditioned) eigenvalue may not exceed.

    Args:
        momentum: μ or β1.
        averaged: whether the gradient is averaged (β1), or summed up (μ).

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
    """Diagonal of P^{−1/2}; zero where the step is clipped.

    Args:
        denominator: diagonal of P, ``[n]``, positive.
        momentum: m, ``[n]``.
        radius: ρ; None: nothing is clipped.

    Example:
        >>> p, m = torch.tensor([4.0, 0.01]), torch.tensor([1.0, 1.0])
        >>> preconditioner_scale(p, m, radius=0.5)
        tensor([0.5000, 0.0000])
    """
    scale = denominator.rsqrt()
    if momentum is None or radius is None:
        return scale
    return torch.where((momentum / denominator).abs() > radius, 0.0, scale)
