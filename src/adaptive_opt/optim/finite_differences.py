"""Hessian-vector products by a difference of two gradients.

Peak memory is one gradient plus one copy of the parameters: the shifted gradient is computed
first, the parameters are restored before the second one, and the probe is drawn again instead
of being kept. A probe that depends on the gradient takes one more copy.
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
from .derivatives import NO_PARAMETER_REACHED

__all__ = ["Difference", "Point", "check_same_batch", "difference", "step_length"]

FRACTION = 0.05
"""The factor c of :func:`step_length`."""

Probe = Callable[[list[Tensor]], list[Tensor]]


@dataclass
class Point:
    """Gradients and random state before an evaluation.

    Attributes:
        gradients: the gradient of each parameter, or None.
        random: states of the random generators: the CPU's, then one for each of ``devices``.
        devices: CUDA devices of the parameters.
    """

    gradients: dict[Tensor, Tensor | None]
    random: list[Tensor]
    devices: tuple[torch.device, ...]

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> Point:
        """Record the present state; gradients are copied, as a closure may change ``.grad``."""
        devices = tuple({p.device for p in params if p.device.type == "cuda"})
        gradients = {p: None if p.grad is None else p.grad.clone() for p in params}
        return cls(gradients, random_state(devices), devices)

    def forget_gradients(self) -> None:
        """Free the copies; ``restore`` then sets all gradients to None."""
        self.gradients = dict.fromkeys(self.gradients)

    def restore(self) -> None:
        """Restore gradients and random state; call it once, as it gives the copies away."""
        for p in self.gradients:
            p.grad = self.gradients[p]
        self.forget_gradients()
        set_random_state(self.devices, self.random)


@dataclass(frozen=True)
class Difference:
    """A Hessian-vector product.

    Attributes:
        loss: the loss at θ.
        params: the parameters with a product.
        probe: v, one tensor for each of ``params``.
        product: Hv, one tensor for each of ``params``.
        checked: whether :func:`check_same_batch` has verified the batch.
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
    """Compute Hv = (g(θ + εv) − g(θ)) / ε; all else is left as after one evaluation at θ.

    Args:
        gradient: sets ``.grad`` to the gradient at the current parameters, or adds it, and
            returns the loss; called twice.
        start: the present state of all parameters to which ``gradient`` gives gradients.
        due: parameters to compute the product for.
        make_probe: returns v for these parameters; called twice, with equal results.
        step_size: returns ε for the parameters and v.
        gradient_first: whether v depends on g(θ).
        buffers: tensors that an evaluation changes; they change once.
        check: verify that both calls evaluate the same batch.

    Returns:
        The product; None if ``gradient`` returns None (an empty closure, called only once).

    Raises:
        RuntimeError: no parameter has a gradient, or the batches differ.
        TypeError: a gradient is sparse or complex.
    """
    loss = None
    end = start
    params = list(due)
    if gradient_first:
        loss = _detached(gradient())
        if loss is None:
            return None
        end = Point.of(list(start.gradients))
        params = [p for p in due if p.grad is not None]
        _check_reached(start)
    if not params:
        return Difference(loss if gradient_first else _detached(gradient()), [], [], [], False)
    second: list[Tensor | None] = []
    with _restored(list(buffers)), _shifted(params, make_probe, step_size) as size:
        if gradient_first:
            start.restore()
        other = _detached(gradient())
        if other is None:
            set_random_state(start.devices, start.random)
            return None
        for p in params:
            # Copy, because a reducer overwrites this memory at the next backward pass.
            second.append(None if p.grad is None else p.grad.detach().clone())
            p.grad = None
    check_dense(g for g in second if g is not None)
    end.restore()
    if not gradient_first:
        loss = _detached(gradient())
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
        raise RuntimeError(NO_PARAMETER_REACHED)


def _detached(loss: Any) -> Any:
    return loss.detach() if isinstance(loss, Tensor) else loss


@contextmanager
def _restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Context that restores the values of tensors at its end."""
    saved = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for t, value in zip(tensors, saved, strict=True):
                t.copy_(value)


@contextmanager
def _shifted(
    params: list[Tensor],
    make_probe: Probe,
    step_size: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
) -> Iterator[list[Tensor]]:
    """Context in which the parameters are θ + εv; yields ε."""
    with _restored(params):
        with torch.no_grad():
            probe = make_probe(params)
            size = step_size(params, probe)
            for p, v, e in zip(params, probe, size, strict=True):
                p.add_(v * e)
            del probe, v
        yield size


def step_length(params: Tensor, probe: Tensor, dtype: torch.dtype) -> Tensor:
    r"""ε = c √u (1 + ‖θ‖) / ‖v‖ with c = 0.05 and u the machine epsilon.

    The classical rule, c = 1, balances rounding and truncation errors of smooth functions. In a
    network with ReLUs the gradient jumps at kinks, and the jump is divided by ε. With c = 0.05
    the step crosses fewer kinks, and products are closer to those of second derivatives
    (``benchmarks/finite_differences.py``).

    Args:
        params, probe: the norms ‖θ‖ and ‖v‖; 0-dim, or ``[members]``, as is the result.
        dtype: type of the parameters.

    Source: Nocedal & Wright, *Numerical Optimization* (2006), section 8.1, for c = 1.

    Example:
        >>> norm = torch.tensor(1.0)
        >>> round(step_length(norm, norm, torch.float32).item(), 7)
        3.45e-05
    """
    unit = FRACTION * math.sqrt(torch.finfo(dtype).eps)
    return unit * (1 + params) / probe.clamp_min(1e-30)


def random_state(devices: Sequence[torch.device]) -> list[Tensor]:
    """States of the random generators of the CPU and of each CUDA device."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices)]


def set_random_state(devices: Sequence[torch.device], states: Sequence[Tensor]) -> None:
    """Restore states that :func:`random_state` returned."""
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def check_same_batch(
    loss: Any, shifted: Any, params: Sequence[Tensor], probe: Sequence[Tensor], size: Any
) -> bool:
    """Check that a closure evaluates the same batch at θ and at θ + εv.

    To first order the loss changes by ε gᵀv. Another batch changes it far more.

    Args:
        loss: the loss at θ.
        shifted: the loss at θ + εv.
        params: the parameters, with their gradients at θ in ``.grad``.
        probe: v.
        size: ε.

    Returns:
        False if a loss or gradient is not finite, so that nothing can be checked.

    Raises:
        RuntimeError: the change exceeds 100 abs(ε gᵀv) + 0.001 abs(loss).
    """
    before, after = (torch.as_tensor(x).detach().double().sum().item() for x in (loss, shifted))
    parts = [(p.grad, v * e) for p, v, e in zip(params, probe, size, strict=True)]
    expected = sum(float((g * step).double().sum()) for g, step in parts if g is not None)
    if not all(map(math.isfinite, (before, after, expected))):
        return False
    if abs(after - before) > 100 * abs(expected) + 1e-3 * abs(before) + 1e-12:
        raise RuntimeError(
            f"the closure returned a loss of {before:.6g} and then {after:.6g}, but a change of "
            f"{expected:.2g} was expected; it must evaluate the same batch each time "
            "(its random state is restored)"
        )
    return True
