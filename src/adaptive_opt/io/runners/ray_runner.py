"""``kedro run --runner=adaptive_opt.io.RayRunner``: nodes as tasks of a Ray cluster.

Ray (the extra ``ray``) is imported when a run begins.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from adaptive_opt.errors import StudyError, first_line
from adaptive_opt.parameters.resources import ResourcesParameters, node_resources
from adaptive_opt.processes import keep_freed_memory

from ..private_interfaces import local_ray_options
from ..tracking.training import ENVIRONMENT
from . import (
    SHUTDOWN_TIMEOUT,
    Event,
    Job,
    ParallelNodeRunner,
    memory_datasets,
    training_device,
)

__all__ = ["RayRunner", "run_node"]

CONNECT_TIMEOUT = 10.0
"""Seconds in which a cluster must answer."""

NO_GPU = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
"""Runtime environment that hides a machine's GPUs from a node without one."""

GPU_INPUT = "params:training"
"""Input of the nodes that use a GPU where there is one."""


class RayRunner(ParallelNodeRunner):
    """Run each node as a Ray task as soon as its inputs exist.

    Data pass through the catalog: every machine must see it under the same paths. If the worker
    or the machine of a node dies, Ray restarts the node, which continues from its checkpoint.
    ``resources`` (:class:`.ResourcesParameters`) says how many cores and GPUs a node takes. Hooks
    are called in this process when a node has ended, without the data.

    Args:
        address: of a cluster, as ``ray.init`` takes it; None: start Ray on this machine for this
            run.
        workers: how many nodes run at a time; default: as many as there is room for.
        is_async: see Kedro.

    Raises:
        StudyError: ``workers`` is not a positive whole number, or Ray is not installed.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, is_async: bool = False
    ) -> None:
        super().__init__(workers, is_async)
        if find_spec("ray") is None:
            raise StudyError("RayRunner needs the package ray: pip install 'adaptive_opt[ray]'")
        self.address = address

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: Any = None,
        run_id: str | None = None,
    ) -> None:
        if names := memory_datasets(pipeline, catalog):
            nodes = sorted(n.name for n in pipeline.nodes if {*names} & {*n.inputs})
            raise StudyError(
                f"only in memory is {', '.join(names)}, which {', '.join(nodes)} would take from "
                "another process: give it an entry with a file in conf/base/catalog.yml"
            )
        parameters = catalog.load("parameters") if "parameters" in catalog else {}
        resources = ResourcesParameters(**parameters.get("resources", {}))
        device = training_device(catalog)
        job = Job(pipeline, catalog, self._is_async, run_id)
        with _connected(self.address, self.workers) as ray:
            gpu = device == "cuda" or (device == "auto" and _cluster_has_gpu(ray))
            needs = {node.name: _node_needs(node, resources, gpu) for node in pipeline.nodes}
            _check_cluster(ray, needs, job)
            tasks = _RayTasks(ray, job, needs, resources.retries, self.workers)
            self.run_on(tasks, job, hook_manager)


@contextlib.contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """Connect to a cluster, or start Ray here and stop it afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"address": address}
        if address is None:
            # A socket's path has at most 107 letters, and Ray's own part takes most of them.
            place = "/tmp" if os.name == "posix" else None  # noqa: S108
            # Ray's last processes may still write while it is deleted.
            folder = tempfile.TemporaryDirectory(
                prefix="ray", dir=place, ignore_cleanup_errors=True
            )
            options = local_ray_options(stack.enter_context(folder), workers)
        import ray

        if ray.is_initialized():  # a notebook has done so, and shuts Ray down
            yield ray
            return
        stack.callback(ray.shutdown)
        try:
            _check_reachable(address)
            ray.init(logging_level=logging.WARNING, **options)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            where = f"at {address}" if address else "on this machine"
            raise StudyError(
                f"no Ray cluster can be used {where} ({first_line(error)}); "
                "--runner-params=address=HOST:PORT names one, and without it Ray is started here"
            ) from error
        yield ray


def _check_reachable(address: str | None) -> None:
    """Fail within seconds; Ray tries for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT).close()


def _cluster_has_gpu(ray: Any) -> bool:
    return bool(ray.cluster_resources().get("GPU", 0))


def _node_needs(node: Node, resources: ResourcesParameters, gpu: bool) -> dict[str, Any]:
    """Return the cores and GPUs of a node."""
    needs = node_resources(resources, node.tags)
    return needs if gpu and GPU_INPUT in node.inputs else {**needs, "gpus": 0}


def _check_cluster(ray: Any, needs: Mapping[str, Mapping[str, Any]], job: Job) -> None:
    """Refuse what Ray would wait for without end, and a database that machines cannot share."""
    alive = [n for n in ray.nodes() if n["Alive"]]
    machines = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in alive]
    for name, need in needs.items():
        if not any(need["cpus"] <= cpus and need["gpus"] <= gpus for cpus, gpus in machines):
            raise StudyError(
                f"{name} is to have {need['cpus']} cores and {need['gpus']:g} GPUs (resources "
                "in the parameters), and no machine of the Ray cluster has as many"
            )
    hosts = {n["NodeManagerHostname"] for n in alive}
    if len(hosts) > 1 and "tuning_storage" in job.pipeline.inputs():
        url = job.catalog.load("tuning_storage").name
        if url.startswith("sqlite"):
            raise StudyError(
                f"searches of several machines cannot share {url}: name a PostgreSQL server in "
                "conf/local/credentials.yml (docs/howto/many_machines.md)"
            )


class _RayTasks:
    """The worker pool of a Ray cluster."""

    def __init__(
        self, ray: Any, job: Job, needs: Mapping[str, Any], retries: int, workers: int | None
    ) -> None:
        self._ray, self._job, self._needs, self._retries = ray, job, needs, retries
        self._most = workers or len(job.nodes)
        self._running: dict[str, Any] = {}
        self._ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def open(self) -> None:
        level = logging.getLogger("adaptive_opt").getEffectiveLevel()
        environment = {name: os.environ[name] for name in (ENVIRONMENT,) if name in os.environ}
        try:
            self._sent = self._ray.put((self._job, environment, level))
        except Exception as error:  # catalogs and nodes raise anything
            raise StudyError(f"the catalog cannot be sent to other processes ({error})") from error
        self._hide_gpus = NO_GPU if _cluster_has_gpu(self._ray) else None
        self._task = self._ray.remote(run_node)
        # torch keeps the GPU that its process used first, so that process serves one node.
        self._gpu_task = self._ray.remote(max_calls=1)(run_node)

    def has_room(self) -> bool:
        return len(self._running) < self._most

    def start(self, node: Node) -> None:
        need, name = self._needs[node.name], node.name
        task = (self._gpu_task if need["gpus"] else self._task).options(
            name=name,
            num_cpus=need["cpus"],
            num_gpus=need["gpus"],
            max_retries=self._retries,
            retry_exceptions=False,
            runtime_env=None if need["gpus"] else self._hide_gpus,
        )
        self._running[name] = task.remote([self._sent], name, need["cpus"])
        ended = self._ended
        self._running[name].future().add_done_callback(lambda future: ended.put((name, future)))

    def receive(self) -> list[Event]:
        from ray import exceptions

        name, future = self._ended.get()
        del self._running[name]
        try:
            events: list[Event] = future.result()
        except exceptions.RayTaskError as error:
            raise StudyError(f"{name} failed in Ray: {first_line(error.cause)}") from error
        except exceptions.RayError as error:
            raise StudyError(
                f"{name}: its process died {self._retries + 1} times ({first_line(error)}); if "
                "memory ran out, give it more cores of its own: resources.cpus"
            ) from error
        return events

    def close(self) -> None:
        references = list(self._running.values())
        for force in (False, True):
            for reference in references:
                with contextlib.suppress(Exception):
                    self._ray.cancel(reference, force=force)
            if references and not force:
                _, references = self._ray.wait(
                    references, num_returns=len(references), timeout=SHUTDOWN_TIMEOUT
                )


def run_node(reference: Sequence[Any], name: str, threads: int) -> list[Event]:
    """Run a node in a process of the cluster and return its events.

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
