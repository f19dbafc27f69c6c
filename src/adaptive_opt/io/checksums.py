"""Checksums inside of files: damage that a format does not notice is noticed all the same.

They stand in the file itself and not beside it, for two files are never written as one. They find
accidents, such as a bit that flips on a disk; who can write a file can write its checksum too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KEY", "check_parquet", "seal_parquet", "sealed", "tensors_checksum", "unsealed"]

KEY = "checksum"
"""Under which a record and a file of tensors have theirs."""

MISMATCH = "its content is not what its checksum says"

_SIZE = 32


def _digest(*parts: bytes) -> bytes:
    made = hashlib.blake2b(digest_size=_SIZE)
    for part in parts:
        made.update(part)
    return made.digest()


def _footer(content: bytes) -> int:
    """Where the footer of a Parquet file begins; it ends with its length and four letters."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def seal_parquet(path: Path) -> None:
    """Put a checksum of all else between a Parquet file's data and its footer.

    Readers find the data by their distance from the start and the footer by its from the end.
    """
    content = path.read_bytes()
    start = _footer(content)
    made = _digest(content[:start], content[start:])
    path.write_bytes(content[:start] + made + content[start:])


def check_parquet(content: bytes) -> None:
    """Compare a Parquet file with its checksum.

    Raises:
        ValueError: they do not agree, or there is none.
    """
    start = _footer(content)
    begin = start - _SIZE
    if begin < 0 or content[begin:start] != _digest(content[:begin], content[start:]):
        raise ValueError(MISMATCH)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its checksum."""
    return {**record, KEY: _of_record(record)}


def unsealed(record: Any) -> dict[str, Any]:
    """Inverse of :func:`sealed`.

    Raises:
        ValueError: it is no record, has no checksum or another's.
    """
    if not isinstance(record, dict):
        raise ValueError("it is no record")
    found = {key: value for key, value in record.items() if key != KEY}
    if record.get(KEY) != _of_record(found):
        raise ValueError(MISMATCH)
    return found


def _of_record(record: Mapping[str, Any]) -> str:
    """Whatever its layout and the order of its keys."""
    as_read = json.loads(json.dumps(record))
    return _digest(json.dumps(as_read, sort_keys=True).encode()).hex()


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes, types and values, whatever their order."""
    from adaptive_opt.tasks.fingerprint import fingerprint

    return fingerprint(dict(sorted(tensors.items())))
