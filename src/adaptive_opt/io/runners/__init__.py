"""Run independent nodes at the same time, on the cores of a machine or on a Ray cluster.

Data flow::

    pipeline ─→ nodes whose inputs exist ─→ worker processes ─→ events ─→ hooks in this process

This module has the loop that starts nodes and what workers send: each call of a hook is an event,
and the main process calls the hook. Data do not pass through here: a node loads and saves them
through the catalog.

- :mod:`.local_runner`: ``StudyRunner``, the default, with forked processes as workers;
- :mod:`.ray_runner`: ``RayRunner``, with Ray tasks as workers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from typing import Any, NamedTuple, Protocol

from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.specs import DatasetSpecs, NodeSpecs
from kedro.io import DatasetError, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner, Task
from pluggy import PluginManager

from adaptive_opt.errors import StudyError

__all__ = ["REMOTE_DATA", "SHUTDOWN_TIMEOUT", "Event", "Job", "ParallelNodeRunner", "WorkerPool"]
__all__ += ["memory_datasets", "training_device"]

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 10.0
"""Seconds that a worker has to shut down before it is killed."""

REMOTE_DATA = "in another process"
"""What hooks receive in place of data: only the worker has them."""


class Event(NamedTuple):
    """A call of a hook in a worker, with the names of hook, node and dataset.

    ``hook`` None: the node has finished. ``error``: why the node failed.
    """

    node: str
    hook: str | None = None
    dataset: str | None = None
    error: Exception | None = None


class Job:
    """Everything that a worker needs to run the nodes of a pipeline.

    Args:
        pipeline: the pipeline.
        catalog: where its nodes load and save.
        is_async, run_id: see Kedro's runners.
    """

    def __init__(
        self, pipeline: Pipeline, catalog: Any, is_async: bool, run_id: str | None
    ) -> None:
        self.pipeline, self.catalog = pipeline, catalog
        self.is_async, self.run_id = is_async, run_id
        self.nodes = {node.name: node for node in pipeline.nodes}

    def run_node(self, name: str, send: Callable[[Event], Any]) -> None:
        """Run a node and send its events; the last one says that it finished or failed."""

        def report(hook: str, _: Any, arguments: Any) -> None:
            if hook != "on_node_error":  # sent below, also when a dataset fails
                send(Event(name, hook, arguments.get("dataset_name")))

        manager = PluginManager(hook_impl.project_name)
        manager.add_hookspecs(NodeSpecs)
        manager.add_hookspecs(DatasetSpecs)
        manager.add_hookcall_monitoring(report, lambda *_: None)
        try:
            Task(self.nodes[name], self.catalog, self.is_async, manager, self.run_id).execute()
        except Exception as error:
            kind = next((k for k in (StudyError, DatasetError) if isinstance(error, k)), None)
            if kind is None:
                logger.exception("%s failed", name)  # a traceback cannot be sent
            # Other processes may lack the error's own class.
            sent = kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")
            send(Event(name, "on_node_error", error=sent))
        else:
            send(Event(name))

    def call_hook(self, event: Event, hook_manager: Any) -> None:
        """Call the hook of an event; raise the error that its node failed with."""
        getattr(hook_manager.hook, str(event.hook))(
            node=self.nodes[event.node],
            catalog=self.catalog,
            is_async=self.is_async,
            run_id=self.run_id,
            dataset_name=event.dataset,
            error=event.error,
            data=REMOTE_DATA,
            inputs={},
            outputs={},
        )
        if event.error is not None:
            raise event.error


class WorkerPool(Protocol):
    """Processes that run nodes and send events."""

    def open(self) -> None:
        """Start the workers."""

    def has_room(self) -> bool:
        """Whether another node can start."""

    def start(self, node: Node) -> None:
        """Let a worker run a node."""

    def receive(self) -> Iterable[Event]:
        """Wait for events; raise StudyError if a worker died."""

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
        """Run each node as soon as its inputs exist, and call the hooks in this process.

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
                        job.call_hook(event, hook_manager)
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


def training_device(catalog: Any) -> str:
    """Return the parameter ``training.device``."""
    parameters = catalog.load("parameters") if "parameters" in catalog else {}
    return str(parameters.get("training", {}).get("device", "cpu"))
