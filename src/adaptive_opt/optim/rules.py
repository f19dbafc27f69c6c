"""Step rules: how a second-order method uses a curvature estimate c.

A rule consists of a transformation ``s`` and a denominator. Every method of the family is

    D ← β2 D + (1 − β2) s(c),    u = clip(m / denom(D), −ρ, ρ).

| rule     | s(c)  | denom(D)  | used by    |
|----------|-------|-----------|------------|
| SIGNED   | c     | max(D, ε) | Sophia     |
| ABSOLUTE | abs c | D + ε     | SADH       |
| SQUARED  | c²    | √D + ε    | SSDH, SSVP |

Sources: Liu et al., *Sophia: A Scalable Stochastic Second-order Optimizer for Language
Model Pre-training* (2023) for SIGNED; the smoothed absolute and smoothed squared diagonal
Hessian methods for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._lists import Factor, ListOps, Tensors

__all__ = ["ABSOLUTE", "SIGNED", "SQUARED", "StepRule"]


@dataclass(frozen=True)
class StepRule:
    """Transformation of the curvature estimate, and denominator made from its average D.

    Attributes:
        name: name of the rule.
        smooth: the function ``s``, elementwise.
        denominator: the function ``denom``; maps the list operations, a list of D and ε to a new
            list.

    Example:
        >>> import torch
        >>> from adaptive_opt.optim._lists import Loop
        >>> SQUARED.smooth(torch.tensor([-3.0]))
        tensor([9.])
        >>> SQUARED.denominator(Loop(), [torch.tensor([9.0])], 0.5)
        [tensor([3.5000])]
    """

    name: str
    smooth: Callable[[Tensor], Tensor]
    denominator: Callable[[ListOps, Tensors, Factor], Tensors]


def _floor(ops: ListOps, curvature: Tensors, eps: Factor) -> Tensors:
    return ops.maximum(curvature, eps)


def _shift(ops: ListOps, curvature: Tensors, eps: Factor) -> Tensors:
    return ops.add(curvature, eps)


def _root(ops: ListOps, curvature: Tensors, eps: Factor) -> Tensors:
    root = ops.sqrt(curvature)
    ops.add_(root, eps)
    return root


def _identity(c: Tensor) -> Tensor:
    return c


SIGNED = StepRule("signed", _identity, _floor)
ABSOLUTE = StepRule("absolute", torch.abs, _shift)
SQUARED = StepRule("squared", torch.square, _root)
