"""A node as a task of Ray: what happens in the process that runs it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from adaptive_opt.processes import keep_freed_memory

from .events import Messenger, Study

__all__ = ["Letter", "Order", "Surroundings", "perform"]

Letter = Sequence[tuple[str | None, dict[str, Any]]]
"""Hooks that are to be called, and what they are told, from the node's beginning."""


class Order(NamedTuple):
    """One attempt at a node."""

    node: str
    attempt: str


class Surroundings(NamedTuple):
    """Of the process of the run: variables of its environment, and the level of its log."""

    environment: Mapping[str, str]
    level: int


def perform(
    study: Sequence[Any], name: str, cores: int, surroundings: Surroundings, post: Any
) -> tuple[Order, Letter]:
    """Run a node.

    Args:
        study: a reference to it, alone in a list.
        name: of the node.
        cores: that it is bound to.
        surroundings: that it is to have, too.
        post: told, when the node begins, what has happened so far.

    Returns:
        The attempt, and all that happened in it.
    """
    os.environ.update(surroundings.environment)
    logging.getLogger("adaptive_opt").setLevel(surroundings.level)
    order, letter = Order(name, uuid.uuid4().hex), []

    def tell(event: str | None, told: dict[str, Any]) -> None:
        letter.append((event, told))
        if event == "before_node_run":
            post.put.remote(order, list(letter))

    with _bound(cores):
        found = _unpacked(study[0])
        found.execute(found.by_name[name], Messenger(tell))
    return order, letter


_UNPACKED: dict[str, Study] = {}


def _unpacked(reference: Any) -> Study:
    """The study, of which a process needs one copy."""
    key = reference.hex()
    if key not in _UNPACKED:
        import ray

        keep_freed_memory()
        _UNPACKED.clear()
        _UNPACKED[key] = ray.get(reference)
    return _UNPACKED[key]


@contextlib.contextmanager
def _bound(count: int) -> Iterator[None]:
    """As many threads of torch, on cores that no other node of this machine is bound to.

    Results depend on the number of threads alone, so that where cores are wanting some are shared.
    """
    if sys.platform != "linux":
        _set_threads(count)
        yield
        return
    every = _every_core()
    with contextlib.ExitStack() as claims:
        mine: list[int] = []
        first = os.getpid() % len(every)  # where all are taken, not all on the same
        for core in [*every[first:], *every[:first]]:
            if len(mine) < count and _claim(core, claims):
                mine.append(core)
        others = [core for core in [*every[first:], *every[:first]] if core not in mine]
        mine += others[: count - len(mine)]
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread), mine)
        _set_threads(len(mine))
        yield


@cache
def _every_core() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _claim(core: int, claims: contextlib.ExitStack) -> bool:
    """Take a core for oneself, by a name that is no file and is free again with its process."""
    name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    claims.enter_context(name)
    try:
        name.bind(f"\0adaptive_opt/core/{core}")
    except OSError:
        return False
    return True


def _set_threads(count: int) -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
    else:  # it looks when it is imported
        os.environ["OMP_NUM_THREADS"] = str(count)
