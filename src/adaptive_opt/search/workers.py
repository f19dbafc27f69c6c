"""Who a worker is, so that those on the same host know at once when it is dead."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["is_gone", "this_worker"]


def this_worker() -> dict[str, Any]:
    """This process, as others on its host can recognise it: a number alone is used again."""
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "begun": _begun(pid)}


def is_gone(worker: Mapping[str, Any]) -> bool:
    """Whether a process of this host is not there any more; of others nothing is known."""
    if worker.get("host") != _host() or os.name != "posix":
        return False
    pid = int(worker["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return worker.get("begun") != _begun(pid)


def _host() -> str:
    """Name of the host, and where processes are counted: containers may share the former."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _begun(pid: int) -> str:
    """When a process began, in ticks of its host; empty where nobody says so, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
