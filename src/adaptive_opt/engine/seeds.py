"""Seeds derived from names, so that runs are reproducible and arms are paired."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive_seed", "seeded_rng"]


def derive_seed(*parts: str | int) -> int:
    """Derive a 63-bit seed from a name, independent of the platform and of Python's ``hash``.

    Seeds of initial weights and batch order depend on (task, seed), so that all arms start from
    the same weights and see the same batches. Seeds of probes depend on (task, arm, seed).

    Example:
        >>> derive_seed("rr_cond29", 0, "weights") == derive_seed("rr_cond29", 0, "weights")
        True
        >>> derive_seed("rr_cond29", 0, "weights") == derive_seed("rr_cond29", 1, "weights")
        False
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded_rng(device: torch.device, *parts: str | int) -> Iterator[None]:
    """Seed torch's global random state by name within the context; restore it afterwards.

    Dropout uses it, with the same seed for every arm. Foreign optimizers may use it.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(*parts, "noise"))
        yield
