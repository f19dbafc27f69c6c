"""Seeds, derived by name so that runs repeat and arms are paired."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive_seed", "random_stream"]


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from a name, independent of platform and of Python's hash.

    Initial weights and batch order come from (task, seed), so that every arm starts from
    the same point and sees the same batches; probes from (task, arm, seed).

    Example:
        >>> derive_seed("rr_cond29", 0, "weights") == derive_seed("rr_cond29", 0, "weights")
        True
        >>> derive_seed("rr_cond29", 0, "weights") == derive_seed("rr_cond29", 1, "weights")
        False
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def random_stream(device: torch.device, *parts: str | int) -> Iterator[None]:
    """Global random numbers of torch seeded by name, and put back afterwards.

    Dropout draws from them, alike for every arm, and optimizers from elsewhere may.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(*parts, "noise"))
        yield
