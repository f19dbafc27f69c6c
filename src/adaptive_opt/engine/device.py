"""Devices, and a clock for training time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaptive_opt.errors import StudyError

__all__ = ["DeviceClock", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Device for ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.

    Raises:
        StudyError: ``name`` is ``cuda``, but torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError(
            "training.device is 'cuda', but torch sees no GPU here; set it to 'auto' or 'cpu'"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class DeviceClock:
    """Seconds of training; every reading waits for the device.

    Time while the clock is stopped (evaluation, logging) does not count.
    """

    def __init__(self, device: torch.device, total: float = 0.0) -> None:
        self._device = device
        self._total = total
        self._since: float | None = None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def start(self) -> None:
        """Start the clock."""
        self._since = self._now()

    def stop(self) -> float:
        """Stop the clock and return its total."""
        if self._since is not None:
            self._total += self._now() - self._since
            self._since = None
        return self._total

    @contextmanager
    def paused(self) -> Iterator[float]:
        """Stop a running clock within the context; yields its total."""
        running = self._since is not None
        yield self.stop()
        if running:
            self.start()
