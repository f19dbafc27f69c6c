"""The runner of ``kedro run``: as many nodes at a time as there are cores, each on its own."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import pandas as pd
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DatasetError, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from kedro.runner.task import Task

from adaptive_opt.errors import StudyError

__all__ = ["StudyRunner"]

logger = logging.getLogger(__name__)

ENDS_WITHIN = 10.0
"""Seconds a worker is given to leave what it is at in order."""


class StudyRunner(SequentialRunner):
    """Independent nodes side by side, in processes that were forked from this one.

    Each has cores to itself, and torch there as many threads, so that a run takes the seconds it
    would take alone. Hooks are called in this process as things happen; of what nodes load and
    save they see the shape of tables, and nothing else. On a GPU, on one core, and where a
    dataset lives in memory alone, nodes run one after the other, as with ``SequentialRunner``.

    Args:
        workers: how many nodes at a time; default: one for each core, on a GPU one.
        is_async: see Kedro.

    Raises:
        StudyError: ``workers`` is no positive whole number, or above 1 on a GPU.
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

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: Any = None,
        run_id: str | None = None,
    ) -> None:
        workers = min(self._workers(catalog), len(pipeline.nodes))
        if workers > 1 and (names := _in_memory(pipeline, catalog)):
            self._logger.info("One node at a time: only in memory is %s", ", ".join(names))
            workers = 1
        if workers <= 1:
            super()._run(pipeline, catalog, hook_manager, run_id)
            return
        done: set[Node] = set()
        study = _Study(pipeline, catalog, self._is_async, run_id)
        with _crew(workers, study) as crew:
            try:
                for node in _completed(crew, hook_manager, study):
                    done.add(node)
                    self._logger.info("Completed node: %s", node.name)
                    self._logger.info(
                        "Completed %d out of %d tasks", len(done), len(pipeline.nodes)
                    )
            except Exception:
                self._suggest_resume_scenario(pipeline, done, catalog)
                raise

    def _workers(self, catalog: Any) -> int:
        from adaptive_opt.engine.device import resolve_device

        parameters = catalog.load("parameters") if "parameters" in catalog else {}
        named = parameters.get("training", {}).get("device", "cpu")
        # A process that has looked for a GPU cannot fork others that use one.
        if resolve_device(named).type != "cpu":
            if (self._wished or 1) > 1:
                raise StudyError(
                    f"--runner-params=workers={self._wished}: on a GPU it is one node at a time"
                )
            return 1
        if sys.platform != "linux":  # elsewhere a fork is no sure thing
            return 1
        return self._wished or len(os.sched_getaffinity(0))


class _Study:
    """What every worker has from its beginning."""

    def __init__(
        self, pipeline: Pipeline, catalog: Any, is_async: bool, run_id: str | None
    ) -> None:
        self.nodes, self.needs = list(pipeline.nodes), pipeline.node_dependencies
        self.catalog, self.is_async, self.run_id = catalog, is_async, run_id
        self.by_name = {node.name: node for node in self.nodes}


class _Worker:
    """A process, and the node it is at."""

    def __init__(self, number: int, cores: Sequence[int], study: _Study) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, number, cores, study))
        self.process.start()
        theirs.close()
        self.node: Node | None = None

    def begin(self, node: Node) -> None:
        self.node = node
        with contextlib.suppress(OSError):  # a death is noticed when its word is waited for
            self.connection.send(node.name)

    def end(self) -> None:
        self.process.join(ENDS_WITHIN)
        self.process.kill()
        self.process.join()

    def death(self) -> StudyError:
        self.process.join(ENDS_WITHIN)
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        hint = "; if for want of memory, take fewer: --runner-params=workers=1"
        name = self.node.name if self.node else "a worker"
        return StudyError(f"{name}: its process died ({how}){hint if code == -9 else ''}")


@contextlib.contextmanager
def _crew(count: int, study: _Study) -> Iterator[list[_Worker]]:
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // count)
    crew: list[_Worker] = []
    try:
        for i in range(count):
            first = i * share % len(cores)
            crew.append(_Worker(i, cores[first : first + share], study))
        yield crew
    finally:
        for worker in crew:  # before it finds nobody to report to, which would look like a failure
            worker.process.terminate()
        for worker in crew:
            worker.connection.close()
            worker.end()


def _completed(crew: Sequence[_Worker], hook_manager: Any, study: _Study) -> Iterator[Node]:
    """Every node when it is done; the order in which they begin is Kedro's."""
    todo, done = [*study.nodes], set[Node]()
    while len(done) < len(study.nodes):
        idle = [worker for worker in crew if worker.node is None]
        ready = [node for node in todo if study.needs[node] <= done]
        for worker, node in zip(idle, ready, strict=False):
            todo.remove(node)
            worker.begin(node)
        busy = {worker.connection: worker for worker in crew if worker.node is not None}
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index]
            if (finished := worker.node) and _heard(worker, hook_manager, study):
                done.add(finished)
                yield finished


def _heard(worker: _Worker, hook_manager: Any, study: _Study) -> bool:
    """Take a worker's word; whether its node is done."""
    try:
        event, told = worker.connection.recv()
    except (EOFError, OSError):
        raise worker.death() from None
    if event is None:
        worker.node = None
        return True
    told = {key: _Outline(value) if type(value) is tuple else value for key, value in told.items()}
    common = {"node": worker.node, "catalog": study.catalog, "run_id": study.run_id}
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


class _Messenger:
    """Hooks of a worker: they tell the process that has the real ones."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _tell(self, event: str | None, **told: Any) -> None:
        self._connection.send((event, told))

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str) -> None:
        self._tell("before_dataset_loaded", dataset_name=dataset_name)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        self._tell("after_dataset_loaded", dataset_name=dataset_name, data=_outline(data))

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, data: Any) -> None:
        self._tell("before_dataset_saved", dataset_name=dataset_name, data=_outline(data))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        self._tell("after_dataset_saved", dataset_name=dataset_name, data=_outline(data))

    @hook_impl
    def before_node_run(self) -> None:
        self._tell("before_node_run")

    @hook_impl
    def after_node_run(self) -> None:
        self._tell("after_node_run")

    def done(self) -> None:
        self._tell(None)

    def failed(self, error: Exception) -> None:
        """In a class that is sure to arrive: not every exception can be made from its text."""
        kind = next((k for k in (StudyError, DatasetError) if isinstance(error, k)), None)
        sent = kind(str(error)) if kind else RuntimeError(f"{type(error).__name__}: {error}")
        self._tell("on_node_error", error=sent)


def _outline(data: Any) -> Any:
    return tuple(data.shape) if isinstance(data, pd.DataFrame) else ELSEWHERE


ELSEWHERE = "in another process"
"""What hooks are given for data that is no table."""


def _serve(connection: Connection, number: int, cores: Sequence[int], study: _Study) -> None:
    """A worker's life."""
    from adaptive_opt.engine.results import BAR_POSITION

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells all; this one is told below
    signal.signal(signal.SIGTERM, _leave)
    sys.unraisablehook = _leave_later
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[BAR_POSITION] = str(number)
    os.sched_setaffinity(0, cores)
    if torch := sys.modules.get("torch"):  # else it counts the cores when it is imported
        torch.set_num_threads(len(cores))
    messenger = _Messenger(connection)
    hook_manager = _create_hook_manager()
    hook_manager.register(messenger)
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            node = study.by_name[connection.recv()]
            try:
                Task(node, study.catalog, study.is_async, hook_manager, study.run_id).execute()
            except Exception as error:
                if not isinstance(error, StudyError | DatasetError):  # its traceback stays here
                    logger.exception("%s failed", node.name)
                messenger.failed(error)
            else:
                messenger.done()


def _leave(*_: Any) -> NoReturn:
    """As an interrupt ends a run that is alone: what is open is closed."""
    raise KeyboardInterrupt


def _leave_later(unraisable: Any) -> None:
    """What is raised while an object is deleted goes nowhere: then once more, a moment later."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGTERM]).start()
    else:
        sys.__unraisablehook__(unraisable)


def _end_with_parent() -> None:
    """A worker that is left alone would write where the next run writes, too."""
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
    os._exit(1)


def _in_memory(pipeline: Pipeline, catalog: Any) -> list[str]:
    """What one node makes and another takes, that no other process would see."""
    between = pipeline.all_outputs() & set().union(*(node.inputs for node in pipeline.nodes))
    return sorted(n for n in between if isinstance(catalog.get(n), MemoryDataset))
