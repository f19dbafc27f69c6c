"""Elementwise arithmetic on lists of tensors, in two interchangeable backends.

Optimizers are written once against :class:`ListOps`. :class:`Foreach` calls torch's
multi-tensor kernels once for the whole list. :class:`Loop` calls the ordinary operation on
each tensor; tests compare both bit for bit.

A *factor* is a number shared by all tensors, or a list with one tensor for each of them, to
which it is broadcast. A hyperparameter of shape ``[members]`` thus applies to parameters of
shape ``[members, ...]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_torch: Any = torch  # torch's type stubs lack some overloads of the foreach functions

Tensors = list[Tensor]
Factor = float | Sequence[Tensor]


class ListOps(Protocol):
    """Operations that optimizers use; names ending in ``_`` work in place."""

    def lerp_(self, x: Tensors, y: Tensors, weight: Factor) -> None:
        """``x ← x + weight (y − x)``."""

    def add(self, x: Tensors, y: Factor) -> Tensors:
        """``x + y``."""

    def add_(self, x: Tensors, y: Factor) -> None:
        """``x ← x + y``."""

    def mul_(self, x: Tensors, y: Factor) -> None:
        """``x ← x y``."""

    def addcmul_(self, x: Tensors, y: Tensors, z: Tensors, value: float) -> None:
        """``x ← x + value y z``."""

    def div_into(self, x: Tensors, y: Tensors) -> Tensors:
        """``x / y``; may overwrite ``y``."""

    def sqrt(self, x: Tensors) -> Tensors:
        """``√x``."""

    def maximum(self, x: Tensors, y: Factor) -> Tensors:
        """``max(x, y)``."""

    def clip_(self, x: Tensors, radius: Factor) -> None:
        """``x ← min(max(x, −radius), radius)``."""

    def sub_scaled_(self, x: Tensors, y: Tensors, scale: Factor) -> None:
        """``x ← x − scale y``."""


class Foreach:
    """Backend that calls one multi-tensor kernel for the whole list."""

    def lerp_(self, x: Tensors, y: Tensors, weight: Factor) -> None:
        _torch._foreach_lerp_(x, y, weight)

    def add(self, x: Tensors, y: Factor) -> Tensors:
        return list(_torch._foreach_add(x, y))

    def add_(self, x: Tensors, y: Factor) -> None:
        _torch._foreach_add_(x, y)

    def mul_(self, x: Tensors, y: Factor) -> None:
        _torch._foreach_mul_(x, y)

    def addcmul_(self, x: Tensors, y: Tensors, z: Tensors, value: float) -> None:
        _torch._foreach_addcmul_(x, y, z, value)

    def div_into(self, x: Tensors, y: Tensors) -> Tensors:
        if y[0].is_cpu:  # foreach has no CPU kernel; it would only allocate memory
            return [torch.div(xi, yi, out=yi) for xi, yi in zip(x, y, strict=True)]
        return list(_torch._foreach_div(x, y))

    def sqrt(self, x: Tensors) -> Tensors:
        return list(_torch._foreach_sqrt(x))

    def maximum(self, x: Tensors, y: Factor) -> Tensors:
        return list(_torch._foreach_clamp_min(x, y))

    def clip_(self, x: Tensors, radius: Factor) -> None:
        if x[0].is_cpu:  # one pass over memory instead of two
            for xi, r in zip(x, _each(radius, len(x)), strict=True):
                torch.clamp_(xi, -r, r)  # type: ignore[arg-type]
            return
        _torch._foreach_clamp_max_(x, radius)
        _torch._foreach_clamp_min_(x, _negative(radius))

    def sub_scaled_(self, x: Tensors, y: Tensors, scale: Factor) -> None:
        if isinstance(scale, float | int):
            _torch._foreach_add_(x, y, alpha=-scale)
        else:
            _torch._foreach_sub_(x, _torch._foreach_mul(y, scale))


class Loop:
    """Backend that calls the ordinary operation on each tensor."""

    def lerp_(self, x: Tensors, y: Tensors, weight: Factor) -> None:
        for xi, yi, w in zip(x, y, _each(weight, len(x)), strict=True):
            xi.lerp_(yi, w)

    def add(self, x: Tensors, y: Factor) -> Tensors:
        return [xi + yi for xi, yi in zip(x, _each(y, len(x)), strict=True)]

    def add_(self, x: Tensors, y: Factor) -> None:
        for xi, yi in zip(x, _each(y, len(x)), strict=True):
            xi.add_(yi)

    def mul_(self, x: Tensors, y: Factor) -> None:
        for xi, yi in zip(x, _each(y, len(x)), strict=True):
            xi.mul_(yi)

    def addcmul_(self, x: Tensors, y: Tensors, z: Tensors, value: float) -> None:
        for xi, yi, zi in zip(x, y, z, strict=True):
            xi.addcmul_(yi, zi, value=value)

    def div_into(self, x: Tensors, y: Tensors) -> Tensors:
        return [xi / yi for xi, yi in zip(x, y, strict=True)]

    def sqrt(self, x: Tensors) -> Tensors:
        return [xi.sqrt() for xi in x]

    def maximum(self, x: Tensors, y: Factor) -> Tensors:
        return [xi.clamp_min(yi) for xi, yi in zip(x, _each(y, len(x)), strict=True)]

    def clip_(self, x: Tensors, radius: Factor) -> None:
        for xi, r in zip(x, _each(radius, len(x)), strict=True):
            xi.clamp_max_(r).clamp_min_(-r)

    def sub_scaled_(self, x: Tensors, y: Tensors, scale: Factor) -> None:
        for xi, yi, s in zip(x, y, _each(scale, len(x)), strict=True):
            if isinstance(s, float | int):
                xi.add_(yi, alpha=-s)
            else:
                xi.sub_(yi * s)


def _each(factor: Factor, n: int) -> Sequence[float | Tensor]:
    return [factor] * n if isinstance(factor, float | int) else factor


def _negative(factor: Factor) -> Factor:
    return -factor if isinstance(factor, float | int) else [-f for f in factor]
