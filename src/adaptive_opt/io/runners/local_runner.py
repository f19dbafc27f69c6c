"""The runner of ``kedro run``: as many nodes at a time as there are cores, each on its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from adaptive_opt.errors import StudyError
from adaptive_opt.processes import keep_freed_memory

from .events import ENDS_WITHIN, Agenda, Messenger, RelayRunner, Study, in_memory, relay

__all__ = ["StudyRunner"]


class StudyRunner(RelayRunner):
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

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: Any = None,
        run_id: str | None = None,
    ) -> None:
        workers = min(self._workers(catalog), len(pipeline.nodes))
        if workers > 1 and (names := in_memory(pipeline, catalog)):
            self._logger.info("One node at a time: only in memory is %s", ", ".join(names))
            workers = 1
        if workers <= 1:
            super()._run(pipeline, catalog, hook_manager, run_id)
            return
        study = Study(pipeline, catalog, self._is_async, run_id)
        with _crew(workers, study) as crew:
            self._follow(_completed(crew, hook_manager, study, Agenda(pipeline)), pipeline, catalog)

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


class _Worker:
    """A process, and the node it is at."""

    def __init__(self, number: int, cores: Sequence[int], study: Study) -> None:
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
def _crew(count: int, study: Study) -> Iterator[list[_Worker]]:
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


def _completed(
    crew: Sequence[_Worker], hook_manager: Any, study: Study, agenda: Agenda
) -> Iterator[Node]:
    """Every node when it is done; the order in which they begin is Kedro's."""
    while agenda.left:
        for worker in crew:
            if worker.node is None and (node := agenda.take()) is not None:
                worker.begin(node)
        busy = {worker.connection: worker for worker in crew if worker.node is not None}
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index]
            if (finished := worker.node) and _heard(worker, finished, hook_manager, study):
                worker.node = None
                agenda.finish(finished)
                yield finished


def _heard(worker: _Worker, node: Node, hook_manager: Any, study: Study) -> bool:
    """Take a worker's word; whether its node is done."""
    try:
        event, told = worker.connection.recv()
    except (EOFError, OSError):
        raise worker.death() from None
    return relay(event, told, node, study, hook_manager)


def _serve(connection: Connection, number: int, cores: Sequence[int], study: Study) -> None:
    """A worker's life."""
    from adaptive_opt.engine.results import BAR_POSITION

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells all; this one is told below
    signal.signal(signal.SIGTERM, _leave)
    sys.unraisablehook = _leave_later
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[BAR_POSITION] = str(number)
    os.sched_setaffinity(0, cores)
    keep_freed_memory()
    if torch := sys.modules.get("torch"):  # else it counts the cores when it is imported
        torch.set_num_threads(len(cores))
    messenger = Messenger(lambda event, told: connection.send((event, told)))
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            study.execute(study.by_name[connection.recv()], messenger)


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
