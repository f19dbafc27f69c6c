"""The default runner of ``kedro run``: one node for each core, each in a forked process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from adaptive_opt.errors import StudyError
from adaptive_opt.processes import (
    delay_interrupt,
    keep_freed_memory,
    raise_interrupt_on_termination,
)

from . import (
    SHUTDOWN_TIMEOUT,
    Event,
    Job,
    ParallelNodeRunner,
    memory_datasets,
    training_device,
)

__all__ = ["StudyRunner"]


class StudyRunner(ParallelNodeRunner):
    """Run independent nodes in parallel, in processes forked from this one.

    Each process is bound to cores of its own and has as many torch threads, so that a run takes
    as long as it would alone. Hooks are called in this process, without the data. Nodes run one
    after the other on a GPU, on one core, and where a dataset is only in memory.

    Args:
        workers: how many nodes run at a time; default: one for each core, on a GPU one.
        is_async: see Kedro.

    Raises:
        StudyError: ``workers`` is not a positive whole number, or above 1 on a GPU.
    """

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: Any = None,
        run_id: str | None = None,
    ) -> None:
        workers = min(self._worker_count(catalog), len(pipeline.nodes))
        if workers > 1 and (names := memory_datasets(pipeline, catalog)):
            self._logger.info("One node at a time: only in memory is %s", ", ".join(names))
            workers = 1
        if workers <= 1:
            super()._run(pipeline, catalog, hook_manager, run_id)
            return
        job = Job(pipeline, catalog, self._is_async, run_id)
        self.run_on(_ForkedWorkers(workers, job), job, hook_manager)

    def _worker_count(self, catalog: Any) -> int:
        from adaptive_opt.engine.device import resolve_device

        # CUDA does not work in a process forked from one that has initialized it.
        if resolve_device(training_device(catalog)).type != "cpu":
            if (self.workers or 1) > 1:
                raise StudyError(
                    f"--runner-params=workers={self.workers}: a GPU runs one node at a time; "
                    "leave the option out"
                )
            return 1
        if sys.platform != "linux":  # macOS and Windows do not fork safely
            return 1
        return self.workers or len(os.sched_getaffinity(0))


class _ForkedWorkers:
    """The worker pool of this machine."""

    def __init__(self, count: int, job: Job) -> None:
        self._count, self._job = count, job
        self._workers: list[_Worker] = []

    def open(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // self._count)
        with delay_interrupt():
            for number in range(self._count):
                first = number * share % len(cores)
                self._workers.append(_Worker(number, cores[first : first + share], self._job))

    def has_room(self) -> bool:
        return any(worker.node is None for worker in self._workers)

    def start(self, node: Node) -> None:
        worker = next(worker for worker in self._workers if worker.node is None)
        worker.node = node
        with contextlib.suppress(OSError):  # it died; receive() says so
            worker.connection.send(node.name)

    def receive(self) -> Iterator[Event]:
        busy = {worker.connection: worker for worker in self._workers if worker.node is not None}
        for connection in wait(list(busy)):
            worker = busy[connection]  # type: ignore[index]
            try:
                event: Event = worker.connection.recv()
            except (EOFError, OSError):
                raise worker.death() from None
            if event.hook is None:
                worker.node = None
            yield event

    def close(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.connection.close()
            worker.process.join(SHUTDOWN_TIMEOUT)
            worker.process.kill()
            worker.process.join()


class _Worker:
    """A process and the node that it runs."""

    def __init__(self, number: int, cores: Sequence[int], job: Job) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, number, cores, job))
        self.process.start()
        theirs.close()
        self.node: Node | None = None

    def death(self) -> StudyError:
        self.process.join(SHUTDOWN_TIMEOUT)
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        remedy = "if memory ran out, run fewer nodes at a time: --runner-params=workers=1"
        return StudyError(f"{self.node and self.node.name}: its process died ({how}); {remedy}")


def _work(connection: Connection, number: int, cores: Sequence[int], job: Job) -> None:
    """Main loop of a worker process."""
    from adaptive_opt.engine.results import BAR_POSITION

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts every process; see close()
    with contextlib.suppress(KeyboardInterrupt):
        raise_interrupt_on_termination()
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        os.environ[BAR_POSITION] = str(number)
        os.sched_setaffinity(0, cores)
        keep_freed_memory()
        if torch := sys.modules.get("torch"):  # otherwise torch counts the cores at its import
            torch.set_num_threads(len(cores))
        with contextlib.suppress(EOFError, OSError):  # the parent has closed the connection
            while True:
                job.run_node(connection.recv(), connection.send)


def _exit_with_parent() -> None:
    """Exit when the parent dies; otherwise this worker and the next run could write one file."""
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
    os._exit(1)
