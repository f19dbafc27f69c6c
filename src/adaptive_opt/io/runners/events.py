"""What runners share whose nodes run in other processes: order, and hooks that are called here."""

from __future__ import annotations

import heapq
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DatasetError, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from kedro.runner.task import Task

from adaptive_opt.errors import StudyError

__all__ = ["Agenda", "Messenger", "RelayRunner", "Study", "Tell", "in_memory", "relay"]

logger = logging.getLogger(__name__)

ENDS_WITHIN = 10.0
"""Seconds a worker is given to leave what it is at in order."""

ELSEWHERE = "in another process"
"""What hooks are given for data that is no table."""

Tell = Callable[[str | None, dict[str, Any]], Any]
"""Takes the name of a hook and what it is told; None: the node is done."""


class RelayRunner(SequentialRunner):
    """What the runners have in common.

    Args:
        workers: how many nodes at a time; None: as many as there is room for.
        is_async: see Kedro.

    Raises:
        StudyError: ``workers`` is no positive whole number.
    """

    def __init__(self, workers: int | None = None, is_async: bool = False) -> None:
        super().__init__(is_async=is_async)
        if workers is not None and (type(workers) is not int or workers < 1):
            raise StudyError(
                f"--runner-params=workers={workers}: must be a whole number of at least 1"
            )
        self._wished = workers

    def __str__(self) -> str:
        # kedro-viz records runs whose hooks come in order, and knows them by these words.
        known = f"{SequentialRunner.__module__}.{SequentialRunner.__name__} object"
        return f"{type(self).__name__} object, to hooks a {known}"

    def _follow(self, completed: Iterator[Node], pipeline: Pipeline, catalog: Any) -> None:
        """Log every node that is completed; of a failure, where to go on from."""
        done: set[Node] = set()
        total = len(pipeline.nodes)
        try:
            for node in completed:
                done.add(node)
                self._logger.info("Completed node: %s", node.name)
                self._logger.info("Completed %d out of %d tasks", len(done), total)
        except Exception:
            self._suggest_resume_scenario(pipeline, done, catalog)
            raise


class Study:
    """What every worker has from its beginning.

    Args:
        pipeline: whose nodes it runs.
        catalog: where data are.
        is_async, run_id: see Kedro.
    """

    def __init__(
        self, pipeline: Pipeline, catalog: Any, is_async: bool, run_id: str | None
    ) -> None:
        self.catalog, self.is_async, self.run_id = catalog, is_async, run_id
        self.by_name = {node.name: node for node in pipeline.nodes}

    def execute(self, node: Node, messenger: Messenger) -> None:
        """Run a node, and have everything told that hooks would be."""
        try:
            Task(node, self.catalog, self.is_async, messenger.manager, self.run_id).execute()
        except Exception as error:
            if not isinstance(error, StudyError | DatasetError):  # its traceback stays here
                logger.exception("%s failed", node.name)
            messenger.failed(error)
        else:
            messenger.done()


class Agenda:
    """Nodes that may begin, in Kedro's order, as those are done that they wait for.

    Each step takes as long with ten thousand nodes as with ten, but for a logarithm.

    Example:
        >>> from kedro.pipeline import Pipeline, node
        >>> nodes = [node(len, "b", "c", name="2"), node(len, "a", "b", name="1")]
        >>> agenda = Agenda(Pipeline(nodes))
        >>> first = agenda.take()
        >>> first.name, agenda.take()
        ('1', None)
        >>> agenda.finish(first)
        >>> agenda.take().name
        '2'
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._nodes = pipeline.nodes
        self._place = {node.name: i for i, node in enumerate(self._nodes)}
        self._users: dict[int, list[int]] = defaultdict(list)
        self._waits_for = [0] * len(self._nodes)
        for node, needed in pipeline.node_dependencies.items():
            place = self._place[node.name]
            self._waits_for[place] = len(needed)
            for other in needed:
                self._users[self._place[other.name]].append(place)
        self._ready = [i for i, count in enumerate(self._waits_for) if not count]
        self.left = len(self._nodes)

    def take(self) -> Node | None:
        """The next that may begin; None: they all wait."""
        return self._nodes[heapq.heappop(self._ready)] if self._ready else None

    def finish(self, node: Node) -> None:
        """It is done; those that waited for it alone may begin."""
        self.left -= 1
        for place in self._users[self._place[node.name]]:
            self._waits_for[place] -= 1
            if not self._waits_for[place]:
                heapq.heappush(self._ready, place)


def relay(
    event: str | None, told: dict[str, Any], node: Node, study: Study, hook_manager: Any
) -> bool:
    """Call the hook that a worker tells of; whether its node is done.

    Raises:
        Exception: what the node failed with.
    """
    if event is None:
        return True
    told = {key: _Outline(value) if type(value) is tuple else value for key, value in told.items()}
    common = {"node": node, "catalog": study.catalog, "run_id": study.run_id}
    common |= {"is_async": study.is_async, "inputs": {}, "outputs": {}}
    caller = getattr(hook_manager.hook, event)
    names = caller.spec.argnames
    caller(**{name: value for name, value in {**common, **told}.items() if name in names})
    if event == "on_node_error":
        raise told["error"]
    return False


class _Outline(pd.DataFrame):
    """A table of which nothing is known but its shape."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        object.__setattr__(self, "_outline", shape)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = object.__getattribute__(self, "_outline")
        return rows, columns


class Messenger:
    """Hooks of a worker: they tell the process that has the real ones.

    Args:
        tell: what takes the words there.
    """

    def __init__(self, tell: Tell) -> None:
        self._told = tell
        self.manager = _create_hook_manager()
        self.manager.register(self)

    def _tell(self, event: str | None, **told: Any) -> None:
        self._told(event, told)

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str) -> None:
        """It is about to be."""
        self._tell("before_dataset_loaded", dataset_name=dataset_name)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Of the data goes the outline."""
        self._tell("after_dataset_loaded", dataset_name=dataset_name, data=_outline(data))

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """It is about to be."""
        self._tell("before_dataset_saved", dataset_name=dataset_name, data=_outline(data))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Of the data goes the outline."""
        self._tell("after_dataset_saved", dataset_name=dataset_name, data=_outline(data))

    @hook_impl
    def before_node_run(self) -> None:
        """Its inputs are loaded."""
        self._tell("before_node_run")

    @hook_impl
    def after_node_run(self) -> None:
        """Its outputs are to be saved."""
        self._tell("after_node_run")

    def done(self) -> None:
        """The node is."""
        self._tell(None)

    def failed(self, error: Exception) -> None:
        """In a class that is sure to arrive: not every exception can be made from its text."""
        kind = next((k for k in (StudyError, DatasetError) if isinstance(error, k)), None)
        sent = kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")
        self._tell("on_node_error", error=sent)


def _outline(data: Any) -> Any:
    return tuple(data.shape) if isinstance(data, pd.DataFrame) else ELSEWHERE


def in_memory(pipeline: Pipeline, catalog: Any) -> list[str]:
    """What one node makes and another takes, that no other process would see."""
    between = pipeline.all_outputs() & set().union(*(node.inputs for node in pipeline.nodes))
    return sorted(n for n in between if isinstance(catalog.get(n), MemoryDataset))
