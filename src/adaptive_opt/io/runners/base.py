"""The loop of both runners: start each node as soon as its inputs exist, handle the events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from graphlib import TopologicalSorter
from typing import Any, Protocol

from kedro.io import MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner

from adaptive_opt.errors import StudyError

from .events import Event, Job, call_hook

__all__ = ["SHUTDOWN_TIMEOUT", "ParallelNodeRunner", "WorkerPool", "memory_datasets"]

SHUTDOWN_TIMEOUT = 10.0
"""Seconds that a worker has to shut down before it is killed."""


class WorkerPool(Protocol):
    """Processes that run nodes and report events."""

    def open(self) -> None:
        """Start the workers."""

    def has_room(self) -> bool:
        """Whether another node can start."""

    def start(self, node: Node) -> None:
        """Let a worker run a node."""

    def receive(self) -> Iterable[Event]:
        """Wait for events.

        Raises:
            StudyError: a worker died.
        """

    def close(self) -> None:
        """Interrupt the nodes that still run, and end all workers."""


class ParallelNodeRunner(SequentialRunner):
    """Base of the runners whose nodes run in other processes.

    Args:
        workers: how many nodes run at a time; None: as many as there is room for.
        is_async: see Kedro.

    Raises:
        StudyError: ``workers`` is not a positive whole number.
    """

    def __init__(self, workers: int | None = None, is_async: bool = False) -> None:
        super().__init__(is_async=is_async)
        if workers is not None and (type(workers) is not int or workers < 1):
            raise StudyError(
                f"--runner-params=workers={workers}: must be a whole number of at least 1"
            )
        self.workers = workers

    def run_on(self, pool: WorkerPool, job: Job, hook_manager: Any) -> None:
        """Run all nodes of a job, and call the hooks in this process.

        Raises:
            Exception: the error of the first node that failed; the others are interrupted.
        """
        needs = job.pipeline.node_dependencies
        order = TopologicalSorter({n.name: [d.name for d in needs[n]] for n in job.pipeline.nodes})
        order.prepare()
        ready: deque[str] = deque()
        done: set[Node] = set()
        try:
            pool.open()
            while order.is_active():
                ready.extend(order.get_ready())
                while ready and pool.has_room():
                    pool.start(job.nodes[ready.popleft()])
                for event in pool.receive():
                    if event.hook is not None:
                        call_hook(event, job, hook_manager)
                        continue
                    order.done(event.node)
                    done.add(job.nodes[event.node])
                    self._logger.info("Completed node: %s", event.node)
                    self._logger.info("Completed %d out of %d tasks", len(done), len(job.nodes))
        except Exception:
            self._suggest_resume_scenario(job.pipeline, done, job.catalog)
            raise
        finally:
            pool.close()


def memory_datasets(pipeline: Pipeline, catalog: Any) -> list[str]:
    """Return datasets that pass from node to node in memory, where other processes see none."""
    between = pipeline.all_outputs() & set().union(*(node.inputs for node in pipeline.nodes))
    return sorted(n for n in between if isinstance(catalog.get(n), MemoryDataset))
