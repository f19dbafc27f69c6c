"""Fingerprints of data sets: a hash of all tensors and words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_hex", "as_tensor", "fingerprint"]


def fingerprint(tensors: Mapping[str, Tensor], words: Iterable[str] = ()) -> str:
    """BLAKE2b hash of names, shapes, dtypes, values and words.

    Args:
        tensors: by name, on the CPU.
        words: a vocabulary, in order.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> import torch
        >>> fingerprint({"x": torch.zeros(2, 3)}) == fingerprint({"x": torch.zeros(3, 2)})
        False
    """
    import torch

    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        hasher.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for word in words:
        hasher.update(word.encode() + b"\n")
    return hasher.hexdigest()


def as_tensor(digest: str) -> Tensor:
    """Convert a hexadecimal digest to a uint8 tensor, for a file of tensors."""
    import torch

    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)


def as_hex(digest: Any) -> str:
    """Inverse of :func:`as_tensor`; also accepts a NumPy array."""
    return bytes(digest.tolist()).hex()
