"""Learning rate schedules, as factors of the base learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "make_schedule"]

SCHEDULES = ("cosine", "cosine_by_epoch", "constant")


def make_schedule(
    kind: str, *, epochs: float, batches_per_epoch: int, floor: float
) -> Callable[[int], float]:
    """Return a function from iteration to learning rate factor.

    Args:
        kind: ``"cosine"``: from 1 at the first iteration to ``floor`` at the last;
            ``"cosine_by_epoch"``: the published schedule, constant within an epoch and with
            T_max = epochs + 1, so that it never reaches ``floor``; ``"constant"``.
        epochs, batches_per_epoch: length of the run; ``epochs`` may be fractional.
        floor: lower end of the cosine.

    Example:
        >>> factor = make_schedule("cosine", epochs=2, batches_per_epoch=2, floor=0.1)
        >>> [round(factor(t), 3) for t in range(4)]
        [1.0, 0.775, 0.325, 0.1]
    """
    last = max(1, round(epochs * batches_per_epoch) - 1)

    def cosine(fraction: float) -> float:
        return floor + (1 - floor) * (1 + math.cos(math.pi * fraction)) / 2

    if kind == "cosine":
        return lambda t: cosine(t / last)
    if kind == "cosine_by_epoch":
        return lambda t: cosine((t // batches_per_epoch) / (epochs + 1))
    return lambda _: 1.0
