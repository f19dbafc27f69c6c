"""A node as a Ray task: the function that Ray calls in a process of the cluster."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from adaptive_opt.processes import keep_freed_memory

from .events import Event, Job

__all__ = ["run_node"]


def run_node(reference: Sequence[Any], name: str, threads: int) -> list[Event]:
    """Run a node and return its events.

    Args:
        reference: Ray's reference to the :class:`.Job`, the environment variables and the log
            level of the run. It is in a list, so that Ray passes it on and each process fetches
            it once.
        name: of the node.
        threads: of torch; results depend on their number.
    """
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
    job: Job
    job, environment, log_level = ray.get(reference)
    os.environ.update(environment)
    logging.getLogger("adaptive_opt").setLevel(log_level)
    return job
