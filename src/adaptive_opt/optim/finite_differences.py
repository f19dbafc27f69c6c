"""Hessian-vector products by a difference of two gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .derivatives import NOT_REACHED

__all__ = ["Difference", "Point", "check_same_batch", "difference", "step_length"]

FRACTION = 0.05
"""c of :func:`step_length`."""


@dataclass(frozen=True)
class Point:
    """What a second evaluation has to start from: gradients and the random state.

    Attributes:
        gradients: by parameter, None where there is none.
        random: the states of the generators.
    """

    gradients: dict[Tensor, Tensor | None]
    random: list[Tensor]
    devices: tuple[torch.device, ...]

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> Point:
        """As it is now."""
        devices = tuple({p.device for p in params if p.device.type == "cuda"})
        gradients = {p: None if p.grad is None else p.grad.clone() for p in params}
        return cls(gradients, random_state(devices), devices)

    def restore(self) -> None:
        """Gradients are copies; a closure that adds to them does not change this."""
        for p, g in self.gradients.items():
            p.grad = None if g is None else g.clone()
        set_random_state(self.devices, self.random)


@dataclass(frozen=True)
class Difference:
    """A Hessian-vector product; a tensor for each of ``params``.

    Attributes:
        loss: at θ.
        params: that the product is of.
        probe: v.
        product: Hv.
    """

    loss: Any
    params: list[Tensor]
    probe: list[Tensor]
    product: list[Tensor]


def difference(
    gradient: Callable[[], Any],
    own: Sequence[Tensor],
    due: Callable[[], Sequence[Tensor]],
    make_probe: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    step_size: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    *,
    check: bool,
) -> Difference | None:
    """Hv = (g(θ + εv) − g(θ)) / ε; leaves θ, g(θ) and the random state as after one gradient.

    Args:
        gradient: puts the gradient at the current parameters into ``.grad``, or adds it there,
            and returns the loss; called twice.
        own: the parameters that it has gradients of.
        due: those that the product is wanted of.
        make_probe: v from the parameters and their gradients.
        step_size: ε from the parameters and v.
        check: whether both calls evaluate the same batch.

    Returns:
        None if the closure returns no loss: it evaluates nothing, so it is called once.

    Raises:
        RuntimeError: no gradient, or two batches.
    """
    start = Point.of(own)
    loss = gradient()
    if loss is None:
        return None
    loss = loss.detach() if isinstance(loss, Tensor) else loss
    end = Point.of(own)
    params = [p for p in due() if p.grad is not None]
    if not params:
        raise RuntimeError(NOT_REACHED)
    first = [p.grad for p in params if p.grad is not None]
    with torch.no_grad():
        probe = make_probe(params, first)
        size = step_size(params, probe)
        saved = [p.clone() for p in params]
        for p, v, e in zip(params, probe, size, strict=True):
            p.add_(v * e)
    try:
        start.restore()
        shifted = gradient()
        second = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    finally:
        with torch.no_grad():
            for p, value in zip(params, saved, strict=True):
                p.copy_(value)
        end.restore()
    if check:
        check_same_batch(loss, shifted, first, probe, size)
    product = [(b - a) / e for a, b, e in zip(first, second, size, strict=True)]
    return Difference(loss, params, probe, product)


def step_length(params: Tensor, probe: Tensor, dtype: torch.dtype) -> Tensor:
    r"""ε = c √u (1 + ‖θ‖) / ‖v‖ with c = 0.05 and u the distance of 1 to the next number.

    The classical rule, c = 1, balances rounding and curvature of a smooth function. A network
    with ReLUs has kinks: a step across one changes the gradient by a jump, divided by ε. With
    fewer of them in reach, c = 0.05, the products are nearer to those of second derivatives
    (``benchmarks/finite_differences.py``).

    Args:
        params, probe: the norms ‖θ‖ and ‖v‖; 0-dim, or one for each member.
        dtype: of the parameters.

    Source: Nocedal & Wright, *Numerical Optimization* (2006), section 8.1, for c = 1.

    Example:
        >>> norm = torch.tensor(1.0)
        >>> round(step_length(norm, norm, torch.float32).item(), 7)
        3.45e-05
    """
    unit = FRACTION * math.sqrt(torch.finfo(dtype).eps)
    return unit * (1 + params) / probe.clamp_min(1e-30)


def random_state(devices: Sequence[torch.device]) -> list[Tensor]:
    """Of the CPU, then of each device."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]


def set_random_state(devices: Sequence[torch.device], states: Sequence[Tensor]) -> None:
    """Inverse of :func:`random_state`."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def check_same_batch(
    loss: Any, shifted: Any, gradient: Sequence[Tensor], probe: Sequence[Tensor], size: Any
) -> None:
    """That a closure evaluates the same function each time.

    To first order the loss moves by ε gᵀv; another batch moves it by far more.

    Raises:
        RuntimeError: it moved by more than a hundred times that and a thousandth of itself.
    """
    before, after = (torch.as_tensor(x).detach().double().sum().item() for x in (loss, shifted))
    parts = zip(gradient, probe, size, strict=True)
    expected = sum(float((g * v * e).double().sum()) for g, v, e in parts)
    moved = abs(after - before)
    if moved > 100 * abs(expected) + 1e-3 * abs(before) + 1e-12:
        raise RuntimeError(
            f"the closure gave a loss of {before:.6g} and then {after:.6g}, where a change of "
            f"{expected:.2g} was expected: it must evaluate the same batch each time "
            "(the random state is put back for it)"
        )
