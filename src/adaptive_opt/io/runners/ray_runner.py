"""``kedro run --runner=adaptive_opt.io.RayRunner``: nodes as tasks of a Ray cluster.

Ray (the extra ``ray``) is imported when a run begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters.resources import ResourcesParameters, node_resources

from ..tracking.training import ENVIRONMENT
from .events import ENDS_WITHIN, Agenda, RelayRunner, Study, in_memory, relay
from .ray_worker import Letter, Order, Surroundings, perform

__all__ = ["RayRunner"]

LONGEST_FOLDER = 40
"""Letters of a temporary folder's name: Ray's sockets are below it, and theirs may have 107."""

ANSWERS_WITHIN = 10.0
"""Seconds a cluster is given to answer."""

NO_GPU = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
"""Surroundings of nodes without a GPU, where there are some."""

TRAINS = "params:training"
"""Input of the nodes that use a GPU where there is one."""


class RayRunner(RelayRunner):
    """Nodes become tasks of Ray as soon as their inputs exist.

    Data pass through the catalog, which every machine must see under the same paths. A node
    whose process or machine dies is begun again elsewhere, and goes on from its checkpoint.
    What a node takes of a machine is in ``resources`` (:class:`.ResourcesParameters`). Hooks are
    called in this process.

    Args:
        address: of a cluster, as ``ray.init`` takes it; None: Ray is started on this machine,
            for this run.
        workers: how many nodes at a time; default: as many as there is room for.
        is_async: see Kedro.

    Raises:
        StudyError: ``workers`` is no positive whole number, or Ray is not installed.
    """

    def __init__(
        self, address: str | None = None, workers: int | None = None, is_async: bool = False
    ) -> None:
        super().__init__(workers, is_async)
        if find_spec("ray") is None:
            raise StudyError("RayRunner needs the package ray: pip install 'adaptive_opt[ray]'")
        self._address = address

    def _run(
        self,
        pipeline: Pipeline,
        catalog: Any,
        hook_manager: Any = None,
        run_id: str | None = None,
    ) -> None:
        if names := in_memory(pipeline, catalog):
            nodes = sorted(n.name for n in pipeline.nodes if {*names} & {*n.inputs})
            raise StudyError(
                f"only in memory is {', '.join(names)}, which {', '.join(nodes)} would take from "
                "another process: give it an entry with a file in conf/base/catalog.yml"
            )
        parameters = catalog.load("parameters") if "parameters" in catalog else {}
        resources = ResourcesParameters(**parameters.get("resources", {}))
        study = Study(pipeline, catalog, self._is_async, run_id)
        with _cluster(self._address, self._wished) as ray:
            device = parameters.get("training", {}).get("device", "cpu")
            wanted = _wanted(pipeline, resources, device, ray)
            _check_machines(ray, wanted, pipeline, catalog)
            with contextlib.closing(_Foreman(ray, study, wanted, resources.retries)) as foreman:
                at_once = self._wished or len(pipeline.nodes)
                done = foreman.completed(Agenda(pipeline), at_once, hook_manager)
                self._follow(done, pipeline, catalog)


@contextlib.contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster or started here; ended or left afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # else Ray replaces the loopback by an address that others reach
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():  # a notebook's, which will be ended there
        yield ray
        return
    options: dict[str, Any] = {"configure_logging": True, "logging_level": logging.WARNING}
    with contextlib.ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(_short_folder())
            options |= {"address": "local", "include_dashboard": False, "_temp_dir": folder}
            options |= {"num_cpus": workers or _cores(), "_node_ip_address": "127.0.0.1"}
        else:
            options |= {"address": address}
        stack.callback(ray.shutdown)
        try:
            _knock(address)
            ray.init(**options)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            where = f"at {address}" if address else "on this machine"
            said = str(error).strip().split("\n")[0]
            raise StudyError(
                f"no Ray cluster can be used {where} ({said}); --runner-params=address=HOST:PORT "
                "names one, and without it Ray is started here"
            ) from error
        yield ray


def _knock(address: str | None) -> None:
    """Find out in seconds what Ray would find out in minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN).close()


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    """For Ray's sockets and logs, gone afterwards."""
    above = tempfile.gettempdir()
    name = tempfile.mkdtemp(prefix="ray", dir=above if len(above) <= LONGEST_FOLDER else "/tmp")  # noqa: S108
    try:
        yield name
    finally:
        _remove(Path(name))


def _remove(folder: Path) -> None:
    """Delete a folder in which processes that are ending may still write."""
    until = time.monotonic() + ENDS_WITHIN
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            time.sleep(0.1)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _wanted(
    pipeline: Pipeline, resources: ResourcesParameters, device: str, ray: Any
) -> dict[str, dict[str, Any]]:
    """Of each node, by its name, the cores and GPUs that it takes."""
    gpu = device == "cuda" or (device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    found = {}
    for node in pipeline.nodes:
        takes = node_resources(resources, node.tags)
        if not gpu or TRAINS not in node.inputs:
            takes["gpus"] = 0
        found[node.name] = takes
    return found


def _check_machines(
    ray: Any, wanted: dict[str, dict[str, Any]], pipeline: Pipeline, catalog: Any
) -> None:
    """Refuse what Ray would wait for without end, and a database that machines cannot share."""
    alive = [n for n in ray.nodes() if n["Alive"]]
    has = [(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0)) for n in alive]
    for name, takes in wanted.items():
        if not any(takes["cpus"] <= cpus and takes["gpus"] <= gpus for cpus, gpus in has):
            raise StudyError(
                f"{name} is to have {takes['cpus']} cores and {takes['gpus']:g} GPUs (resources "
                "in the parameters), and no machine of the Ray cluster has as many"
            )
    if len({n["NodeManagerHostname"] for n in alive}) > 1 and "tuning_storage" in pipeline.inputs():
        url = catalog.load("tuning_storage").name
        if url.startswith("sqlite"):
            raise StudyError(
                f"searches of several machines cannot share {url}: name a PostgreSQL server in "
                "conf/local/credentials.yml (docs/howto/many_machines.md)"
            )


class _Post:
    """An actor: takes letters from tasks while they go on, and hands them out."""

    def __init__(self) -> None:
        self._letters: list[tuple[Order, Letter]] = []
        self._some = asyncio.Event()

    async def put(self, order: Order, letter: Letter) -> None:
        self._letters.append((order, letter))
        self._some.set()

    async def take(self) -> list[tuple[Order, Letter]]:
        await self._some.wait()
        self._some.clear()
        letters, self._letters = self._letters, []
        return letters


class _Foreman:
    """Gives nodes to Ray, and hears what becomes of them.

    Everything comes to one queue, so that each node costs the same however many are under way.
    """

    def __init__(
        self, ray: Any, study: Study, wanted: dict[str, dict[str, Any]], retries: int
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._study, self._wanted, self._retries = ray, study, wanted, retries
        self._inbox: queue.SimpleQueue[tuple[str | None, Any]] = queue.SimpleQueue()
        self._running: dict[str, Any] = {}
        self._heard: dict[str, dict[Order, int]] = {}
        # Where this process is: no machine that is lost takes it along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Its process may die all the same: what letters it had comes again with the last ones.
        actor = ray.remote(_Post).options(
            num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
        )
        self._post = actor.remote()
        try:
            self._sent = ray.put(study)
        except Exception as error:  # of what is in catalogs and nodes, anything can be raised
            raise StudyError(f"the catalog cannot be sent to other processes ({error})") from error
        level = logging.getLogger("adaptive_opt").getEffectiveLevel()
        tracked = {ENVIRONMENT: os.environ[ENVIRONMENT]} if ENVIRONMENT in os.environ else {}
        self._surroundings = Surroundings(tracked, level)
        self._task = ray.remote(perform)
        # torch keeps the GPU that a process used first, whichever Ray gives it next.
        self._task_of_gpu = ray.remote(max_calls=1)(perform)
        self._gpus = ray.cluster_resources().get("GPU", 0) > 0
        self._mail: Any = None

    def completed(self, agenda: Agenda, at_once: int, hook_manager: Any) -> Iterator[Node]:
        """Every node when it is done."""
        self._ask_for_mail()
        while agenda.left:
            while len(self._running) < at_once and (node := agenda.take()) is not None:
                self._begin(node)
            name, future = self._inbox.get()
            if name is None:
                for order, letter in self._letters(future):
                    self._hear(order, letter, hook_manager)
                self._ask_for_mail()
                continue
            node = self._study.by_name[name]
            self._hear(*self._result(node, future), hook_manager)
            del self._running[name], self._heard[name]
            agenda.finish(node)
            yield node

    def _ask_for_mail(self) -> None:
        self._mail = self._post.take.remote()
        self._notice(None, self._mail)

    def _letters(self, future: Any) -> list[tuple[Order, Letter]]:
        from ray import exceptions

        try:
            found: list[tuple[Order, Letter]] = future.result()
        except exceptions.RayError as error:
            said = str(error).strip().split("\n")[0]
            raise StudyError(f"Ray itself has died on this machine ({said})") from error
        return found

    def _notice(self, name: str | None, ref: Any) -> None:
        ref.future().add_done_callback(lambda future: self._inbox.put((name, future)))

    def _begin(self, node: Node) -> None:
        takes = self._wanted[node.name]
        task = (self._task_of_gpu if takes["gpus"] else self._task).options(
            name=node.name, num_cpus=takes["cpus"], num_gpus=takes["gpus"],
            max_retries=self._retries, retry_exceptions=False,
            # Else it would see those of others; its process never becomes one with a GPU.
            runtime_env=NO_GPU if self._gpus and not takes["gpus"] else None,
        )  # fmt: skip
        # In a list the study is not unpacked before the process is bound to its cores.
        ref = task.remote([self._sent], node.name, takes["cpus"], self._surroundings, self._post)
        self._running[node.name], self._heard[node.name] = ref, {}
        self._notice(node.name, ref)

    def _result(self, node: Node, future: Any) -> tuple[Order, Letter]:
        from ray import exceptions

        try:
            found: tuple[Order, Letter] = future.result()
        except exceptions.RayTaskError as error:
            cause = str(error.cause).split("\n")[0]
            raise StudyError(f"{node.name} failed in Ray: {cause}") from error
        except exceptions.RayError as error:
            times = f"{self._retries + 1} times" if self._retries else "once"
            said = str(error).strip().split("\n")[0]
            raise StudyError(
                f"{node.name}: its process died {times} ({said}); if for want of memory, give it "
                "more cores to itself: resources.cpus"
            ) from error
        return found

    def _hear(self, order: Order, letter: Letter, hook_manager: Any) -> None:
        """Call the hooks of a letter, those apart that an earlier one from there told of."""
        heard = self._heard.get(order.node)
        if heard is None:  # a late letter of a node that is done
            return
        start = heard.get(order, 0)
        heard[order] = max(start, len(letter))
        node = self._study.by_name[order.node]
        for event, told in letter[start:]:
            relay(event, told, node, self._study, hook_manager)

    def close(self) -> None:
        """End what is under way in order, then by force."""
        refs = list(self._running.values())
        for ref in refs:
            with contextlib.suppress(Exception):
                self._ray.cancel(ref, force=False)
        if refs:
            _, late = self._ray.wait(refs, num_returns=len(refs), timeout=ENDS_WITHIN)
            for ref in late:
                with contextlib.suppress(Exception):
                    self._ray.cancel(ref, force=True)
        with contextlib.suppress(Exception):
            self._ray.kill(self._post)
