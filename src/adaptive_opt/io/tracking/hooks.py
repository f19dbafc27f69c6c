"""Kedro hooks: a run in MLflow for each ``kedro run``."""

from __future__ import annotations

import atexit
import contextlib
import getpass
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl

import adaptive_opt
from adaptive_opt.errors import StudyError, without_passwords
from adaptive_opt.files import CHECKOUT, PROJECT, changed_at, read_record, write_record
from adaptive_opt.parameters.models import TrackingParameters
from adaptive_opt.processes import this_worker

from ..status.outcome import command_line, path_of
from .training import END, ENVIRONMENT, RUN, SENDER, Record, delete, milliseconds

__all__ = ["TrackedRun", "TrackingHooks", "describe_run", "run_name"]

logger = logging.getLogger(__name__)

INHERITED = ("scale", "configuration", "device", "git.commit", "git.dirty", "mlflow.user")
"""Tags that child runs have, too."""

PACKAGES = ("numpy", "optuna", "kedro", "mlflow")
"""Packages whose versions are recorded."""

URI = "MLFLOW_TRACKING_URI"

CONNECT_TIMEOUT = 60.0
"""Seconds for the sender to connect; it may have to create a database."""

RUNS_PAGE = "#/experiments/{}/runs?compareRunsMode=CHART&searchFilter=metrics.train_loss%3E=0"
RUNS_PAGE += "&orderByKey=attributes.created"
"""All child runs with curves, newest first; MLflow's default order, ``start_time``, hides them."""


class TrackingHooks:
    """Replaces kedro-mlflow's hooks, which wait for the server and fail with it.

    The configuration is kedro-mlflow's ``mlflow.yml``; the environment variable
    ``MLFLOW_TRACKING_URI`` comes before it.
    """

    def __init__(self) -> None:
        self._destination: tuple[str, str] | None = None
        self._run: TrackedRun | None = None
        self._process = 0
        self._outputs: tuple[Any, Any] | None = None
        self.address = ""  # where the last run can be seen

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Read ``mlflow.yml``, without asking the server."""
        import mlflow
        from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig

        loader = context.config_loader
        loader.config_patterns.setdefault("mlflow", ["mlflow*", "mlflow*/**", "**/mlflow*"])
        config = KedroMlflowConfig.model_validate({**loader["mlflow"]})
        if config.server.credentials:
            credentials = loader["credentials"].get(config.server.credentials, {})
            os.environ.update({name: str(value) for name, value in credentials.items()})
        named = os.environ.get(URI)
        uri = named or str(config.server.mlflow_tracking_uri)
        config.server.mlflow_tracking_uri = uri
        mlflow.set_tracking_uri(uri)
        if named is None:  # MLflow sets it, and a second run of this process would obey it
            os.environ.pop(URI, None)
        context.mlflow = config  # for `kedro mlflow ui`
        self._destination = uri, config.tracking.experiment.name

    @hook_impl(trylast=True)  # invalid parameters begin no run
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        """Begin the run in MLflow."""
        import pandas as pd

        parameters = catalog.load("parameters")
        settings = TrackingParameters(**parameters.get("tracking", {}))
        self.address = ""
        if self._destination is None or not settings.enabled:
            return
        tags = describe_run(run_params, parameters)
        (params,) = pd.json_normalize(parameters, sep=".").to_dict("records")
        run: Record = {"name": run_name(tags), "tags": tags}
        run["params"] = {str(name): str(value) for name, value in params.items()}
        run["inherited"] = {name: tags[name] for name in INHERITED if name in tags}
        try:
            self._run = TrackedRun(*self._destination, settings, run, PROJECT)
        except OSError as error:
            logger.warning("MLflow gets no record of this run: %s", error)
            return
        self._process = os.getpid()
        self._outputs = (pipeline, catalog) if settings.artifacts else None
        atexit.register(self._finish, "KILLED")  # Kedro has no hook for an interrupt

    @hook_impl
    def after_pipeline_run(self) -> None:
        """End the run in MLflow."""
        self._finish("FINISHED")

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Say in MLflow that the run failed."""
        self._finish("FAILED")

    def _finish(self, status: str) -> None:
        run, self._run = self._run, None
        if run is None or os.getpid() != self._process:  # workers have copies of these hooks
            return
        atexit.unregister(self._finish)
        try:
            files = list(_artifacts(run.began, *self._outputs)) if self._outputs else []
            self.address = run.close(status, files)
        except OSError as error:
            logger.warning("MLflow does not have this run: %s", error)


def _artifacts(began: float, pipeline: Any, catalog: Any) -> Iterator[tuple[str, str, float]]:
    """Yield reports, tables, figures and best configurations that the run wrote."""
    for name in sorted(pipeline.all_outputs()):
        path = path_of(catalog.get(name))
        if path is None or (changed := changed_at(path)) < began:
            continue
        layers = [i for i, part in enumerate(path.parts) if re.fullmatch(r"\d\d_[a-z_]+", part)]
        folders = path.parts[layers[-1] : -1] if layers else ()
        if folders and (folders[0] == "08_reporting" or name.endswith(".best")):
            yield str(path), "/".join(folders), changed


def describe_run(run_params: dict[str, Any], parameters: dict[str, Any]) -> dict[str, str]:
    """Return the tags of a run; ``configuration`` is a hash of the parameters that matter."""
    import torch

    from adaptive_opt.engine.device import resolve_device
    from adaptive_opt.parameters import configuration_digest

    study = {k: v for k, v in parameters.items() if k not in ("tracking", "resources")}
    device = parameters["training"]["device"]
    with contextlib.suppress(StudyError):  # the GPUs may be on other machines of a cluster
        device = resolve_device(device).type
    on_gpu = device == "cuda" and torch.cuda.is_available()
    cpu = platform.processor() or platform.machine()
    command = command_line() or Path(sys.argv[0]).name
    runner = str(run_params.get("runner") or "SequentialRunner")  # or <package.Class object at …>
    tags = {
        "scale": parameters["scale"],
        "configuration": configuration_digest(study),
        "device": device,
        "device.name": torch.cuda.get_device_name() if on_gpu else cpu,
        "kedro.env": run_params.get("env") or "local",
        "kedro.pipelines": ",".join(run_params.get("pipeline_names") or ["__default__"]),
        "kedro.command": command,
        "kedro.runner": runner.strip("<").partition(" ")[0].rpartition(".")[2],
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "version.python": platform.python_version(),
        "version.adaptive_opt": adaptive_opt.__version__,
        "version.torch": torch.__version__,  # with what it was built for
        **{f"version.{name}": version(name) for name in PACKAGES},
    }
    for name, value in run_params.items():
        if value and isinstance(value, list | tuple | set):
            tags[f"kedro.{name}"] = ",".join(map(str, value))
        elif value and isinstance(value, dict):
            tags[f"kedro.{name}"] = json.dumps(value, default=str)
    with contextlib.suppress(OSError, KeyError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags | _git(Path(run_params["project_path"]))


def run_name(tags: dict[str, str]) -> str:
    """Return the name of a run: pipelines, scale, and the chosen part of the grid.

    Example:
        >>> run_name({"kedro.pipelines": "training", "scale": "paper", "kedro.tags": "ssdh,adam"})
        'training paper: ssdh,adam'
        >>> run_name({"kedro.pipelines": "__default__", "scale": "base"})
        'base'
    """
    name = f"{tags['kedro.pipelines']} {tags['scale']}".removeprefix("__default__ ")
    chosen = tags.get("kedro.tags") or tags.get("kedro.node_names")
    name = f"{name}: {chosen}" if chosen else name
    return name if len(name) <= 60 else f"{name[:60]}…"


def _git(folder: Path) -> dict[str, str]:
    """Return the commit, and whether files differ from it; nothing outside a repository."""
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--", "."]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    head, *rest = done.stdout.splitlines()
    commit = head.removeprefix("# branch.oid ")
    dirty = str(any(not line.startswith("#") for line in rest)).lower()
    return {"git.commit": commit, "git.dirty": dirty, "mlflow.source.git.commit": commit}


class TrackedRun:
    """A ``kedro run`` that is recorded: a folder of files, and the process that sends them.

    ``run`` has its ``name``, ``tags``, ``params``, and tags that children have ``inherited``.
    """

    def __init__(
        self, uri: str, experiment: str, settings: TrackingParameters, run: Record, project: Path
    ) -> None:
        self.began = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self.began))
        self._uri, self._wait_seconds = uri, settings.wait_seconds
        self._folder = project / "mlflow_unsent" / f"{stamp}-{uuid.uuid4().hex[:8]}"
        write_record(self._folder / RUN, {**run, "time": milliseconds(), "process": this_worker()})
        source = str(Path(adaptive_opt.__file__).parents[1])
        paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "adaptive_opt.io.tracking.sender", str(self._folder)]
        command += [str(os.getpid()), experiment, str(project / "mlflow_artifacts")]
        with (self._folder / "sender.log").open("wb") as log:
            self._sender = subprocess.Popen(  # noqa: S603
                command,
                env={**os.environ, "PYTHONPATH": paths, URI: uri},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt from the terminal does not reach it
            )
        shared = {"folder": str(self._folder), **settings.model_dump()}
        os.environ[ENVIRONMENT] = json.dumps(shared)

    def close(self, status: str, files: list[tuple[str, str, float]]) -> str:
        """End the run and wait for the sender; return where the run can be seen, or ``""``.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            files: artifacts: path, folder in MLflow, time of change.
        """
        os.environ.pop(ENVIRONMENT, None)
        metrics = {"seconds": round(time.time() - self.began, 3)}
        end = {"status": status, "time": milliseconds(), "files": files, "metrics": metrics}
        try:
            write_record(self._folder / END, end)
            limit, report = time.monotonic() + CONNECT_TIMEOUT, self._folder / SENDER
            while not report.exists() and self._sender.poll() is None and time.monotonic() < limit:
                time.sleep(0.05)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._sender.wait(self._wait_seconds)
        finally:
            self._sender.kill()
            code = self._sender.wait()
        state, where = read_record(self._folder / SENDER), without_passwords(self._uri)
        if code != 0:
            reason = state.get("reason") or f"not complete after {self._wait_seconds:g} s"
            logger.warning(
                "MLflow at %s does not have this run yet (%s). It is kept in mlflow_unsent and "
                "sent by the next kedro run.", where, reason,
            )  # fmt: skip
            return ""
        delete(self._folder)
        with contextlib.suppress(OSError):  # other runs wait there
            self._folder.parent.rmdir()
        for name, reason in state.get("refused", {}).items():
            logger.warning("MLflow at %s refuses %s of this run: %s", where, name, reason)
        page = RUNS_PAGE.format(state.get("experiment"))
        if where.startswith("http"):
            return f"{where.rstrip('/')}/{page}"
        ui = "make mlflow" if PROJECT == CHECKOUT else f"mlflow ui --backend-store-uri {where}"
        return f"{ui}, then http://127.0.0.1:5000/{page}"
