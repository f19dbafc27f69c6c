"""A Kedro hook that checks parameters, data and options before the first node runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import Fault, find_faults
from adaptive_opt.parameters.checks import (
    budget_faults,
    describe_faults,
    device_faults,
    source_faults,
)
from adaptive_opt.parameters.data import data_parameters
from adaptive_opt.processes import one_thread
from adaptive_opt.study import arm_names, tasks_of

__all__ = ["ValidationHooks", "check_parameters", "check_way"]

REFUSED_RUNNERS = {
    "ThreadRunner": "would mix the random numbers of runs",
    # Its forked processes waited without end for OpenMP threads that the checks below had started
    # in their parent (see processes.one_thread). It also does not divide the cores among them.
    "ParallelRunner": "gives every process as many torch threads as there are cores",
}
"""Kedro's runners that do not work here, and why."""


class ValidationHooks:
    """Checks parameters, data files and the device before the first node runs."""

    def __init__(self) -> None:
        self._conf: Path | None = None

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Store where the configuration is."""
        self._conf = Path(context.config_loader.conf_source)

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        """Raise one error that lists every fault with its file and key."""
        check_way(run_params)
        parameters = catalog.load("parameters")
        conf = self._conf or Path(run_params["project_path"]) / "conf"
        origin = conf, run_params.get("env"), run_params.get("runtime_params") or {}
        check_parameters(parameters, pipeline, *origin)
        # RayRunner checks the GPUs of its cluster; this machine may have none.
        on_cluster = "RayRunner" in str(run_params.get("runner"))
        sections = {name.split(".")[0] for name in pipeline.inputs() | pipeline.all_outputs()}
        with one_thread():  # a runner may fork this process
            faults = [] if on_cluster else device_faults(parameters)
            faults += source_faults(parameters, sections)
            faults = faults or _stale_data(parameters["data"], pipeline, catalog)
            faults = faults or _search_faults(parameters, pipeline, catalog)
        if faults:
            raise StudyError(describe_faults(faults, *origin))


def check_parameters(
    parameters: dict[str, Any],
    pipeline: Any,
    conf: Path,
    env: str | None,
    given: dict[str, Any],
    *,
    classes: bool = True,
) -> None:
    """Check everything that depends on the parameters alone.

    Args:
        parameters: all parameters.
        pipeline: the pipeline to run.
        conf, env, given: see :func:`.describe_faults`.
        classes: see :func:`.find_faults`.

    Raises:
        StudyError: lists every fault with its file and key.
    """
    if faults := find_faults(parameters, _zoo_arms(pipeline), classes=classes):
        raise StudyError(describe_faults(faults, conf, env, given))


def check_way(run_params: dict[str, Any]) -> None:
    """Check the runner and options of Kedro.

    Raises:
        StudyError: the runner or ``load_versions`` does not work here.
    """
    for name, why in REFUSED_RUNNERS.items():
        if name in str(run_params.get("runner")):
            raise StudyError(f"{name} {why}; leave --runner out, or use adaptive_opt.io.RayRunner")
    if run_params.get("load_versions"):
        raise StudyError("--load-versions: results have one version; leave the option out")


def _stale_data(data: dict[str, Any], pipeline: Any, catalog: Any) -> list[Fault]:
    """Return stored data that this run trains on, made with other parameters."""
    from adaptive_opt.tasks.fingerprint import as_hex

    outputs = pipeline.all_outputs()
    faults = []
    for task in tasks_of("images", "text"):
        trained = any(name.startswith(f"training.{task.name}.") for name in outputs)
        if not trained or task.dataset in outputs or not catalog.exists(task.dataset):
            continue
        made_with = catalog.load(task.dataset).get("parameters")
        if made_with is None or as_hex(made_with) != data_parameters(task.name, data).digest():
            message = "the stored data were made with other parameters; make them again with "
            message += f"kedro run --pipelines=data --tags={task.name}"
            faults.append(Fault(("data", task.name), message))
    return faults


def _search_faults(parameters: dict[str, Any], pipeline: Any, catalog: Any) -> list[Fault]:
    """Return why searches of this run cannot start, or why training lacks their results."""
    source = parameters["tuning"]["source"]
    faults = []
    for task, arm in _searched(pipeline.inputs()):
        name = f"tuning.{task}.{arm}.best"
        best = catalog.load(name) if catalog.exists(name) else None
        if best is None:
            reason = "not searched"
        elif "studies" not in best:
            reason = "searched by an earlier version"
        elif source != "search" and best.get("source") == "search":
            reason = "the stored configuration is from a search"
        else:
            continue
        remedy = f"kedro run --pipelines=tuning --tags={arm}"
        faults.append(Fault(("tuning", "source"), f"{task}, {arm}: {reason}; {remedy}"))
    searched = _searched(pipeline.all_outputs())
    if source == "search" and searched and not faults:
        faults = budget_faults(parameters, searched)
        if not faults:
            catalog.load("tuning_storage").check()
    return faults


def _zoo_arms(pipeline: Any) -> list[str]:
    """Return the zoo arms that a run searches or trains."""
    searched = _searched(pipeline.inputs() | pipeline.all_outputs())
    found = sorted({arm for _, arm in searched} & {*arm_names("zoo")})
    if found and importlib.util.find_spec("pytorch_optimizer") is None:
        raise StudyError(f"{', '.join(found)}: missing package; pip install 'adaptive_opt[zoo]'")
    return found


def _searched(names: set[str]) -> list[tuple[str, str]]:
    """Return (task, arm) of each dataset with the result of a search."""
    parts = (name.split(".") for name in sorted(names))
    return [(p[1], p[2]) for p in parts if len(p) == 4 and (p[0], p[3]) == ("tuning", "best")]
