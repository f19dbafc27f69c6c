"""Identity, liveness, memory and signals of this host's processes."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["delay_interrupt", "is_gone", "is_running", "keep_freed_memory", "one_thread"]
__all__ += ["raise_interrupt_on_termination", "this_worker"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt(3)."""

MAX_MMAP_THRESHOLD = 32 * 2**20
"""Largest value that mallopt accepts, in bytes."""


def keep_freed_memory() -> bool:
    """Make this process reuse freed memory instead of returning it to the system.

    Every training step allocates the same tensors. glibc returns freed blocks above 128 KiB at
    once, so the system has to clear their pages again at the next step. Works with glibc only.

    Returns:
        Whether the setting was accepted.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return False
    return bool(
        mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
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
    """Return host, pid and start time of this process. A pid alone can be reused."""
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "begun": _state(pid)[1]}


def is_gone(worker: Mapping[str, Any]) -> bool:
    """Return whether a process of this host has ended; False for other hosts (not known).

    Args:
        worker: see :func:`this_worker`.
    """
    if worker.get("host") != _host() or os.name != "posix":
        return False
    pid = int(worker["pid"])
    return not is_running(pid) or worker.get("begun") != _state(pid)[1]


def is_running(pid: int) -> bool:
    """Return whether a process with this pid runs on this host; True if that is not known.

    A zombie does not run.
    """
    if os.name != "posix":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process, or an invalid pid
        return True
    return _state(pid)[0] not in ("Z", "X")


def _host() -> str:
    """Return the host's name and its pid namespace, because containers can share the name."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _state(pid: int) -> tuple[str, str]:
    """Return a process's state letter and its start time in clock ticks; empty if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


@contextmanager
def delay_interrupt() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block, which may fork.

    Python drops an exception that a function registered by ``os.register_at_fork`` raises; the
    modules ``logging``, ``random`` and ``threading`` register some. A Ctrl-C that arrives while
    they run would be lost.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received:
        handler(*received[0])


def raise_interrupt_on_termination() -> None:
    """Let SIGTERM raise what Ctrl-C raises, so that open files and trials are closed.

    Python drops an exception raised within a destructor or a weak reference's callback after
    printing its traceback. Such an interrupt is raised again a moment later, without the print.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _interrupt_later


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _interrupt_later(dropped: sys.UnraisableHookArgs) -> None:
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(dropped)
