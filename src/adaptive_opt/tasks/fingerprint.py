"""What identifies a data set: a hash of everything in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_hex", "as_tensor", "fingerprint"]


def fingerprint(tensors: Mapping[str, Tensor], words: Iterable[str] = ()) -> str:
    """BLAKE2b of names, shapes, types, values and words, 16 bytes as hexadecimal.

    Example:
        >>> import torch
        >>> fingerprint({"x": torch.zeros(2, 3)}) == fingerprint({"x": torch.zeros(3, 2)})
        False
    """
    import torch

    made = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        made.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        made.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for word in words:
        made.update(word.encode() + b"\n")
    return made.hexdigest()


def as_tensor(digest: str) -> Tensor:
    """A hexadecimal digest as uint8, for a file of tensors."""
    import torch

    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)


def as_hex(digest: Any) -> str:
    """Inverse of :func:`as_tensor`, for a NumPy array too."""
    return bytes(digest.tolist()).hex()
