"""Hessian-vector products by a difference of two gradients.

Peak memory is that of one gradient plus one copy of the parameters: the shifted gradient is
taken first, its parameters are put back before the other one, and the probe is drawn a second
time instead of being kept. A probe that depends on the gradient takes one more copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import check_dense
from .derivatives import NOT_REACHED

__all__ = ["Difference", "Point", "check_same_batch", "difference", "step_length"]

FRACTION = 0.05
"""c of :func:`step_length`."""

Probe = Callable[[list[Tensor]], list[Tensor]]


@dataclass
class Point:
    """What an evaluation starts from: gradients and the random state.

    Attributes:
        gradients: by parameter, None where there is none.
        random: the states of the generators.
        devices: whose generators they are, after the CPU's.
    """

    gradients: dict[Tensor, Tensor | None]
    random: list[Tensor]
    devices: tuple[torch.device, ...]

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> Point:
        """The present one. Gradients are copied: a closure may write into ``.grad``."""
        devices = tuple({p.device for p in params if p.device.type == "cuda"})
        gradients = {p: None if p.grad is None else p.grad.clone() for p in params}
        return cls(gradients, random_state(devices), devices)

    def forget_gradients(self) -> None:
        """Free the copies, where the closure calls ``zero_grad`` anyway."""
        self.gradients = dict.fromkeys(self.gradients)

    def restore(self) -> None:
        """Put gradients and random state back; once, as the copies are handed over."""
        for p in self.gradients:
            p.grad = self.gradients[p]
        self.forget_gradients()
        set_random_state(self.devices, self.random)


@dataclass(frozen=True)
class Difference:
    """A Hessian-vector product; a tensor for each of ``params``.

    Attributes:
        loss: at θ.
        params: that the product is of.
        probe: v.
        product: Hv.
        checked: whether the losses showed that both evaluations had one batch.
    """

    loss: Any
    params: list[Tensor]
    probe: list[Tensor]
    product: list[Tensor]
    checked: bool


def difference(
    gradient: Callable[[], Any],
    start: Point,
    due: Sequence[Tensor],
    make_probe: Probe,
    step_size: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    *,
    gradient_first: bool,
    buffers: Iterable[Tensor] = (),
    check: bool,
) -> Difference | None:
    """Hv = (g(θ + εv) − g(θ)) / ε; leaves θ, g(θ) and the random state as after one gradient.

    Args:
        gradient: puts the gradient at the current parameters into ``.grad``, or adds it there,
            and returns the loss; called twice.
        start: the present point, with all parameters that ``gradient`` has gradients of.
        due: those that the product is wanted of.
        make_probe: v for these parameters; called twice, and gives the same twice.
        step_size: ε from the parameters and v.
        gradient_first: whether v depends on g(θ).
        buffers: tensors that an evaluation changes; they change once.
        check: whether both calls evaluate the same batch.

    Returns:
        None if the closure returns no loss: it evaluates nothing, so it is called once.

    Raises:
        RuntimeError: no gradient, or two batches.
    """
    loss = None
    end = start
    params = list(due)
    if gradient_first:
        loss = _value(gradient())
        if loss is None:
            return None
        end = Point.of(list(start.gradients))
        params = [p for p in due if p.grad is not None]
        _check_reached(start)
    if not params:
        return Difference(loss if gradient_first else _value(gradient()), [], [], [], False)
    second: list[Tensor | None] = []
    with _kept(list(buffers)), _moved(params, make_probe, step_size) as size:
        if gradient_first:
            start.restore()
        other = _value(gradient())
        if other is None:
            set_random_state(start.devices, start.random)
            return None
        for p in params:
            # A copy: a reducer writes into the same memory at the next backward pass.
            second.append(None if p.grad is None else p.grad.detach().clone())
            p.grad = None
    check_dense(g for g in second if g is not None)
    end.restore()
    if not gradient_first:
        loss = _value(gradient())
        _check_reached(start)
    probe = make_probe(params)
    checked = check and check_same_batch(loss, other, params, probe, size)
    found = Difference(loss, [], [], [], checked)
    with torch.no_grad():
        for p, v, e in zip(params, probe, size, strict=True):
            shifted = second.pop(0)
            if p.grad is not None:
                shifted = torch.zeros_like(p) if shifted is None else shifted
                found.params.append(p)
                found.probe.append(v)
                found.product.append(shifted.sub_(p.grad).div_(e))
    return found


def _check_reached(start: Point) -> None:
    if all(p.grad is None for p in start.gradients):
        raise RuntimeError(NOT_REACHED)


def _value(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, Tensor) else loss


@contextmanager
def _kept(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Tensors have the same values afterwards."""
    saved = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for t, value in zip(tensors, saved, strict=True):
                t.copy_(value)


@contextmanager
def _moved(
    params: list[Tensor],
    make_probe: Probe,
    step_size: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
) -> Iterator[list[Tensor]]:
    """Inside, parameters are at θ + εv; yields ε."""
    with _kept(params):
        with torch.no_grad():
            probe = make_probe(params)
            size = step_size(params, probe)
            for p, v, e in zip(params, probe, size, strict=True):
                p.add_(v * e)
            del probe, v
        yield size


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
    loss: Any, shifted: Any, params: Sequence[Tensor], probe: Sequence[Tensor], size: Any
) -> bool:
    """Check that a closure evaluates the same function each time.

    To first order the loss moves by ε gᵀv; another batch moves it by far more.

    Args:
        loss: at θ.
        shifted: the loss at θ + εv.
        params: with their gradients at θ.
        probe: v.
        size: ε.

    Returns:
        False if the losses or the gradients overflowed, so that they say nothing.

    Raises:
        RuntimeError: it moved by more than a hundred times that and a thousandth of itself.
    """
    before, after = (torch.as_tensor(x).detach().double().sum().item() for x in (loss, shifted))
    parts = [(p.grad, v * e) for p, v, e in zip(params, probe, size, strict=True)]
    expected = sum(float((g * step).double().sum()) for g, step in parts if g is not None)
    if not all(map(math.isfinite, (before, after, expected))):
        return False
    if abs(after - before) > 100 * abs(expected) + 1e-3 * abs(before) + 1e-12:
        raise RuntimeError(
            f"the closure gave a loss of {before:.6g} and then {after:.6g}, where a change of "
            f"{expected:.2g} was expected: it must evaluate the same batch each time "
            "(the random state is put back for it)"
        )
    return True
