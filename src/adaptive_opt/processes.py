"""Processes of this host: who they are, which are dead, and how they keep memory."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["is_gone", "is_running", "keep_freed_memory", "one_thread", "this_worker"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""

LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""In bytes; mallopt refuses more."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, instead of returning it to the system.

    A training step allocates and frees the same tensors as the one before. Above 128 KiB glibc
    returns such memory at once, and the system clears each page again at the next step.
    Linux with glibc only.

    Returns:
        Whether the process now keeps its memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no such library, or another C library
        return False
    return bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread in the block, so that this process can be forked afterwards.

    GNU OpenMP does not support a fork after it has started threads: the child takes its parent's
    threads for its own and waits for them without end.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


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
