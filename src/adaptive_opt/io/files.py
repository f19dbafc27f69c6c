"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["write_whole"]


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place.

    What processes of this host that were killed left half-written of the same file is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{path.stem}.{socket.gethostname()}-"
    partial = path.with_name(f"{mark}{os.getpid()}{path.suffix}")
    for left in path.parent.glob(f"{mark}*{path.suffix}"):
        if not _is_alive(left.name.removeprefix(mark).removesuffix(path.suffix)):
            left.unlink(missing_ok=True)
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    if os.name != "posix":  # there the signal below would end it
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError, OverflowError):  # no number, or somebody else's
        return True
    return True
