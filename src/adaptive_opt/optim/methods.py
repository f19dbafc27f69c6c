"""Sophia, SADH, SSDH and SSVP: each is a step rule, a default probe and a kind of estimate.

All take the arguments of :class:`~adaptive_opt.optim.SecondOrderOptimizer`.
"""

from __future__ import annotations

from .rules import ABSOLUTE, SIGNED, SQUARED
from .second_order import SecondOrderOptimizer

__all__ = ["SADH", "SSDH", "SSVP", "Sophia"]


class Sophia(SecondOrderOptimizer):
    """Sophia-H: clipped momentum divided by a smoothed *signed* diagonal Hessian.

    ``c = v ⊙ Hv`` with Gaussian v, ``s(c) = c``, ``denom(D) = max(D, ε)``.

    Source: Liu et al., *Sophia* (2023), Hutchinson variant.

    Example:
        >>> import torch
        >>> p = torch.tensor([1.0], requires_grad=True)
        >>> opt = Sophia([p], lr=0.1, rho=0.5, probe="rademacher")
        >>> opt.backward((p**2).sum())
        >>> opt.step()
        >>> p
        tensor([0.9500], requires_grad=True)
    """

    rule = SIGNED
    default_probe = "gaussian"


class SADH(SecondOrderOptimizer):
    """Smoothed absolute diagonal Hessian.

    ``c = v ⊙ Hv`` with Rademacher v, ``s(c) = abs c``, ``denom(D) = D + ε``.

    Example:
        >>> import torch
        >>> p = torch.tensor([1.0], requires_grad=True)
        >>> opt = SADH([p], lr=0.1, betas=(0.9, 0.5), rho=10.0)
        >>> opt.backward((p**2).sum())
        >>> opt.step()
        >>> p  # m = 0.2, D = 1
        tensor([0.9800], requires_grad=True)
    """

    rule = ABSOLUTE


class SSDH(SecondOrderOptimizer):
    """Smoothed squared diagonal Hessian.

    ``c = v ⊙ Hv`` with Rademacher v, ``s(c) = c²``, ``denom(D) = √D + ε``.

    Example:
        >>> import torch
        >>> p = torch.tensor([1.0], requires_grad=True)
        >>> opt = SSDH([p], lr=0.1, betas=(0.9, 0.75), rho=10.0)
        >>> opt.backward((p**2).sum())
        >>> opt.step()
        >>> p  # m = 0.2, D = 1
        tensor([0.9800], requires_grad=True)
    """

    rule = SQUARED


class SSVP(SecondOrderOptimizer):
    """Smoothed squared Hessian-vector product.

    ``c = Hv`` with ``v = −ρ sign(m)``, ``s(c) = c²``, ``denom(D) = √D + ε``. v approximates the
    direction of the next step; with ``probe="momentum_sign_cumulative"``, the mean direction of
    the last k steps.

    Example:
        >>> import torch
        >>> p = torch.tensor([1.0], requires_grad=True)
        >>> opt = SSVP([p], lr=0.1, betas=(0.9, 0.75), rho=0.5)
        >>> opt.backward((p**2).sum())
        >>> opt.step()
        >>> p  # m = 0.2, Hv = -1, D = 0.25: 0.2 / 0.5 is inside the clip radius
        tensor([0.9600], requires_grad=True)
    """

    rule = SQUARED
    estimates_diagonal = False
    default_probe = "momentum_sign"
