"""What a worker reports: the calls of Kedro's hooks, as events that the main process repeats."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.specs import DatasetSpecs, NodeSpecs
from kedro.io import DatasetError
from kedro.pipeline import Pipeline
from kedro.runner import Task
from pluggy import PluginManager

from adaptive_opt.errors import StudyError

__all__ = ["REMOTE_DATA", "Event", "Job", "SendEvent", "call_hook"]

logger = logging.getLogger(__name__)

REMOTE_DATA = "in another process"
"""What hooks receive in place of data: only the worker has them."""


class Event(NamedTuple):
    """The call of a hook in a worker.

    Attributes:
        node: name of the node.
        hook: name of the hook; None: the node has finished.
        dataset: name of the dataset that is loaded or saved.
        error: why the node failed.
    """

    node: str
    hook: str | None = None
    dataset: str | None = None
    error: Exception | None = None


SendEvent = Callable[[Event], Any]


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

    def run_node(self, name: str, send: SendEvent) -> None:
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
            if not isinstance(error, StudyError | DatasetError):
                logger.exception("%s failed", name)  # a traceback cannot be sent
            send(Event(name, "on_node_error", error=_portable(error)))
        else:
            send(Event(name))


def _portable(error: Exception) -> Exception:
    """Return an error of a class that any process can unpickle."""
    for kind in (StudyError, DatasetError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


def call_hook(event: Event, job: Job, hook_manager: Any) -> None:
    """Call the hook of an event in the main process.

    Raises:
        Exception: the error that the node failed with.
    """
    getattr(hook_manager.hook, str(event.hook))(
        node=job.nodes[event.node],
        catalog=job.catalog,
        is_async=job.is_async,
        run_id=job.run_id,
        dataset_name=event.dataset,
        error=event.error,
        data=REMOTE_DATA,
        inputs={},
        outputs={},
    )
    if event.error is not None:
        raise event.error
