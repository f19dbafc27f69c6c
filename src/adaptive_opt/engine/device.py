"""Devices and the clock that runs on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaptive_opt.errors import StudyError

__all__ = ["DeviceClock", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        StudyError: ``cuda`` was asked for and torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError(
            "training.device is 'cuda', but torch sees no GPU here; set it to 'auto' or 'cpu'"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class DeviceClock:
    """Seconds of training, with the device's queue drained whenever it is read.

    What happens while it is stopped (evaluation, logging) does not count.
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
        """Let it run."""
        self._since = self._now()

    def stop(self) -> float:
        """Stop it, and read it."""
        if self._since is not None:
            self._total += self._now() - self._since
            self._since = None
        return self._total

    @contextmanager
    def paused(self) -> Iterator[float]:
        """Stop it for a while, if it runs; gives the reading."""
        running = self._since is not None
        yield self.stop()
        if running:
            self.start()
