"""Kedro hooks: a run of MLflow for each ``kedro run``."""

from __future__ import annotations

import atexit
import logging
import os
import re
from typing import Any

from kedro.framework.hooks import hook_impl

from adaptive_opt.files import PROJECT, changed_at
from adaptive_opt.parameters.models import TrackingParameters

from ..status.results import path_of
from .describe import describe_run, flat, run_name
from .run import Destination, TrackedRun

__all__ = ["TrackingHooks"]

logger = logging.getLogger(__name__)

INHERITED = ("scale", "configuration", "device", "git.commit", "git.dirty", "mlflow.user")

URI = "MLFLOW_TRACKING_URI"

LAYER = re.compile(r"\d\d_[a-z_]+")
"""A folder of the catalog, such as ``08_reporting``."""


class TrackingHooks:
    """In place of kedro-mlflow's, which wait for the server and fail with it.

    Configuration is kedro-mlflow's, in ``mlflow.yml``, but for the environment variable
    ``MLFLOW_TRACKING_URI``, which comes first.
    """

    def __init__(self) -> None:
        self._to: Destination | None = None
        self._run: TrackedRun | None = None
        self._process = 0
        self._written: tuple[Any, Any] | None = None

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Read ``mlflow.yml``; nothing is asked of the server."""
        import mlflow
        from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig

        loader = context.config_loader
        loader.config_patterns.setdefault("mlflow", ["mlflow*", "mlflow*/**", "**/mlflow*"])
        config = KedroMlflowConfig.model_validate({**loader["mlflow"]})
        credentials = context._get_config_credentials().get(config.server.credentials) or {}
        os.environ.update({name: str(value) for name, value in credentials.items()})
        uri = os.environ.get(URI) or str(config.server.mlflow_tracking_uri)
        config.server.mlflow_tracking_uri = uri
        wished = URI in os.environ
        mlflow.set_tracking_uri(uri)
        if not wished:  # MLflow puts it there, where the next run would take it for a wish
            os.environ.pop(URI, None)
        context.mlflow = config  # for `kedro mlflow ui`, as by kedro-mlflow
        self._to = Destination(uri, config.tracking.experiment.name, PROJECT)

    @hook_impl(trylast=True)  # parameters that will not do begin no run
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        """Begin to record."""
        parameters = catalog.load("parameters")
        settings = TrackingParameters(**parameters.get("tracking", {}))
        if self._to is None or not settings.enabled:
            return
        try:
            tags = describe_run(run_params, parameters)
            inherited = {name: tags[name] for name in INHERITED if name in tags}
            params = {name: str(value) for name, value in flat(parameters)}
            self._run = TrackedRun(self._to, run_name(tags), settings, tags, params, inherited)
        except OSError as error:
            logger.warning("MLflow gets nothing of this run: %s", error)
            return
        self._process = os.getpid()
        self._written = (pipeline, catalog) if settings.artifacts else None
        atexit.register(self._finish, "KILLED")  # Kedro says nothing of an interrupt

    @hook_impl
    def after_pipeline_run(self) -> None:
        """It went well."""
        self._finish("FINISHED")

    @hook_impl
    def on_pipeline_error(self) -> None:
        """It did not."""
        self._finish("FAILED")

    def _finish(self, status: str) -> None:
        run, self._run = self._run, None
        if run is None or os.getpid() != self._process:  # a worker has a copy of these hooks
            return
        atexit.unregister(self._finish)
        try:
            files = list(_files(run, *self._written)) if self._written else []
            if word := run.close(status, files):
                logger.warning(word)
        except OSError as error:
            logger.warning("MLflow gets no more of this run: %s", error)


def _files(run: TrackedRun, pipeline: Any, catalog: Any) -> Any:
    """Reports, tables, figures and the best configurations that the run wrote."""
    for name in sorted(pipeline.all_outputs()):
        path = path_of(catalog.get(name))
        layers = [] if path is None else [i for i, p in enumerate(path.parts) if LAYER.fullmatch(p)]
        if path is None or not layers or not run.wrote(path):
            continue
        layer, *inside = path.parts[layers[-1] : -1]
        if layer == "08_reporting" or name.endswith(".best"):
            yield str(path), "/".join([layer, *inside]), changed_at(path)
