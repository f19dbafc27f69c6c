"""Which process this is, and which are dead: those on the same host know it at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["is_gone", "is_running", "this_worker"]


def this_worker() -> dict[str, Any]:
    """This process, as others on its host can recognise it: a number alone is used again."""
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "begun": _state(pid)[1]}


def is_gone(worker: Mapping[str, Any]) -> bool:
    """Whether a process of this host is not there any more; of others nothing is known."""
    if worker.get("host") != _host() or os.name != "posix":
        return False
    pid = int(worker["pid"])
    return not is_running(pid) or worker.get("begun") != _state(pid)[1]


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this host; one that was killed may be a zombie.

    Where nobody can say, it is.
    """
    if os.name != "posix":  # there the signal below would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no such number
        return True
    return _state(pid)[0] not in ("Z", "X")


def _host() -> str:
    """Name of the host, and where processes are counted: containers may share the former."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _state(pid: int) -> tuple[str, str]:
    """Letter of a process's state, and when it began in ticks of its host; empty if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
