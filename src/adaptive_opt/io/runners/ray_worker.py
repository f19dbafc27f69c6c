"""A node as a Ray task: the function that Ray calls in a process of the cluster."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from adaptive_opt.processes import keep_freed_memory

from .events import Event, Job

__all__ = ["WorkerSettings", "run_node"]


class WorkerSettings(NamedTuple):
    """What a worker takes over from the main process: environment variables and log level."""

    environment: Mapping[str, str]
    log_level: int


def run_node(
    reference: Sequence[Any], name: str, threads: int, settings: WorkerSettings
) -> list[Event]:
    """Run a node and return its events.

    Args:
        reference: Ray's reference to the :class:`.Job`, in a list, so that Ray passes it on as it
            is and each process fetches the job once.
        name: of the node.
        threads: of torch; results depend on their number.
        settings: see :class:`WorkerSettings`.
    """
    os.environ.update(settings.environment)
    logging.getLogger("adaptive_opt").setLevel(settings.log_level)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it at its import
    job = _fetch(reference[0])
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    events: list[Event] = []
    job.run_node(name, events.append)
    return events


@lru_cache(maxsize=1)
def _fetch(reference: Any) -> Job:
    import ray

    keep_freed_memory()
    job: Job = ray.get(reference)
    return job
