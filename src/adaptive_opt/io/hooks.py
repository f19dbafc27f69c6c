"""A Kedro hook that checks parameters, data and options before anything is computed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import yaml
from kedro.framework.hooks import hook_impl

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import (
    Fault,
    RRFunctionParameters,
    TuningParameters,
    find_faults,
    resolve_arm,
    search_space,
    training_parameters,
    with_values,
)
from adaptive_opt.parameters.data import ImageDataParameters, TextDataParameters
from adaptive_opt.processes import one_thread
from adaptive_opt.study import (
    ARMS,
    EVERY_TASK,
    HALVES,
    KINDS,
    arm_names,
    get_task,
    runs_on,
    tasks_of,
)

__all__ = ["ValidationHooks", "check_parameters", "check_way", "known_tags"]

FOREIGN_RUNNERS = {
    "ThreadRunner": "would mix the random numbers of runs",
    # Its forked processes waited without end for OpenMP threads that the checks below had started
    # in their parent (see processes.one_thread). They also share no cores among them.
    "ParallelRunner": "gives every process as many torch threads as there are cores",
}
"""Runners of Kedro's that are refused, and why."""


def known_tags() -> list[str]:
    """Every tag that a part of the grid can be chosen by."""
    cells = [f"{task}.{arm}" for task, arm in runs_on((a.name for a in ARMS), EVERY_TASK)]
    return [*(t.name for t in EVERY_TASK), *(a.name for a in ARMS), *KINDS, *HALVES, *cells]


class ValidationHooks:
    """Checks parameters, function files and the device before the first node."""

    def __init__(self) -> None:
        self._conf: Path | None = None

    @hook_impl
    def after_context_created(self, context: Any) -> None:
        """Remember where the parameters are from."""
        self._conf = Path(context.config_loader.conf_source)

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        """Raise one error that lists every fault, each with file and key."""
        check_way(run_params)
        parameters = catalog.load("parameters")
        env = run_params.get("env")
        conf = self._conf or Path(run_params["project_path"]) / "conf"
        given = run_params.get("runtime_params") or {}
        check_parameters(parameters, pipeline, conf, env, given)
        # RayRunner checks the GPUs of its cluster; this machine need not have one.
        here = "RayRunner" not in str(run_params.get("runner"))
        with one_thread():  # a runner may fork this process
            faults = _find_deep_faults(parameters, pipeline, catalog, device=here)
        if faults:
            raise StudyError(_report(faults, conf, env, given))


def _find_deep_faults(
    parameters: dict[str, Any], pipeline: Any, catalog: Any, *, device: bool
) -> list[Fault]:
    """Return the faults that show only in files and data."""
    namespaces = {n.split(".")[0] for n in pipeline.inputs() | pipeline.all_outputs()}
    faults = _device_faults(parameters) if device else []
    faults += _deep_faults(parameters, namespaces)
    if not faults:
        faults = _stale_data(parameters["data"], pipeline, catalog)
    return faults or _search_faults(parameters, pipeline, catalog)


def check_parameters(
    parameters: dict[str, Any],
    pipeline: Any,
    conf: Path,
    env: str | None,
    given: dict[str, Any],
    *,
    classes: bool = True,
) -> None:
    """All that the parameters alone can be at fault in.

    Args:
        parameters: all of them.
        pipeline: that takes them.
        conf: the folder of the environments.
        env: the environment.
        given: on the command line.
        classes: see ``adaptive_opt.parameters.find_faults``.

    Raises:
        StudyError: every fault, each with file and key.
    """
    faults = find_faults(parameters, _zoo_arms(pipeline), classes=classes)
    if faults:
        raise StudyError(_report(faults, conf, env, given))


def check_way(run_params: dict[str, Any]) -> None:
    """Refuse options of Kedro's that do not work here.

    Raises:
        StudyError: the runner or ``load_versions`` is refused.
    """
    runner = str(run_params.get("runner"))
    for name, why in FOREIGN_RUNNERS.items():
        if name in runner:
            raise StudyError(
                f"{name} {why}; leave --runner out, which runs as many nodes at a time as there "
                "are cores, set their number by --runner-params=workers=2, or use several machines "
                "by --runner=adaptive_opt.io.RayRunner"
            )
    if run_params.get("load_versions"):
        raise StudyError(
            "--load-versions: results are kept in one version; leave the option out, and name "
            "another folder in ADAPTIVE_OPT_FOLDER to keep the results of two runs"
        )


def _device_faults(parameters: dict[str, Any]) -> list[Fault]:
    from adaptive_opt.engine.device import resolve_device

    try:
        resolve_device(parameters["training"]["device"])
    except StudyError as error:
        return [Fault(("training", "device"), str(error))]
    return []


def _deep_faults(parameters: dict[str, Any], namespaces: set[str]) -> list[Fault]:
    """Faults that need more than the parameters: files, dimensions."""
    from adaptive_opt.tasks.rr_functions import import_function, synthesise

    faults = []
    if "data" in namespaces:
        faults += _source_faults(parameters["data"])
    for task, given in parameters["rr_synthesis"].items():
        if "rr_synthesis" not in namespaces:
            break
        function = RRFunctionParameters(**given)
        try:
            # Made for real: nothing less tells whether a draw or a file will do.
            if function.source != "file":
                synthesise(function.source, **function.model_dump(exclude={"source", "path"}))
            elif function.path is None:
                raise StudyError("source is 'file', so path must name an .npz or .pth file")
            else:
                import_function(function.path, function.layers, function.hidden_dim, function.seed)
        except StudyError as error:
            faults.append(Fault(("rr_synthesis", task), str(error)))
    return faults


def _source_faults(data: dict[str, Any]) -> list[Fault]:
    from adaptive_opt.tasks.images import check_image_source
    from adaptive_opt.tasks.text import check_text_source

    faults = []
    for task, given in data.items():
        try:
            if get_task(task).family == "images":
                check_image_source(ImageDataParameters(**given))
            else:
                check_text_source(TextDataParameters(**given))
        except StudyError as error:
            faults.append(Fault(("data", task, "path"), str(error)))
    return faults


def _stale_data(data: dict[str, Any], pipeline: Any, catalog: Any) -> list[Fault]:
    """Data sets to be trained on that other parameters made, and this run does not make anew."""
    from adaptive_opt.tasks.fingerprint import as_hex

    outputs = pipeline.all_outputs()
    faults = []
    for task in tasks_of("images", "text"):
        trained = any(name.startswith(f"training.{task.name}.") for name in outputs)
        if not trained or task.dataset in outputs or not catalog.exists(task.dataset):
            continue
        model = ImageDataParameters if task.family == "images" else TextDataParameters
        made_with = catalog.load(task.dataset).get("parameters")
        if made_with is None or as_hex(made_with) != model(**data[task.name]).digest():
            message = (
                "the data there are were made with other parameters; make them anew with "
                f"kedro run --pipelines=data --tags={task.name}"
            )
            faults.append(Fault(("data", task.name), message))
    return faults


def _search_faults(parameters: dict[str, Any], pipeline: Any, catalog: Any) -> list[Fault]:
    """What keeps the searches of this run from being made, or its training from their results."""
    outputs = pipeline.all_outputs()
    searched = [name.split(".")[1:3] for name in sorted(outputs) if _is_best(name)]
    taken = [name.split(".")[1:3] for name in sorted(pipeline.inputs()) if _is_best(name)]
    source = parameters["tuning"]["source"]
    faults = _missing_searches(taken, source, catalog)
    if source == "search" and searched and not faults:
        faults = [f for task, arm in searched for f in _budget_faults(task, arm, parameters)]
        if not faults:
            catalog.load("tuning_storage").check()
    return faults


def _zoo_arms(pipeline: Any) -> list[str]:
    """Arms of the zoo that this run is to search or train."""
    names = pipeline.inputs() | pipeline.all_outputs()
    found = sorted({n.split(".")[2] for n in names if _is_best(n)} & {*arm_names("zoo")})
    if found and importlib.util.find_spec("pytorch_optimizer") is None:
        raise StudyError(
            f"the arms {', '.join(found)} need the package pytorch_optimizer: "
            "pip install 'adaptive_opt[zoo]'"
        )
    return found


def _is_best(name: str) -> bool:
    return name.startswith("tuning.") and name.endswith(".best")


def _missing_searches(taken: list[list[str]], source: str, catalog: Any) -> list[Fault]:
    faults = []
    for task, arm in taken:
        name = f"tuning.{task}.{arm}.best"
        remedy = f"kedro run --pipelines=tuning --tags={arm}"
        if not catalog.exists(name):
            faults.append(Fault(("tuning", "source"), f"{task}, {arm}: not searched; {remedy}"))
            continue
        best = catalog.load(name)
        if "studies" not in best:
            message = f"{task}, {arm}: searched by an earlier version; {remedy}"
            faults.append(Fault(("tuning", "source"), message))
        elif (then := best.get("source")) != source and then == "search":
            message = f"{task}, {arm}: the configuration there is from a search; {remedy}"
            faults.append(Fault(("tuning", "source"), message))
    return faults


def _budget_faults(task: str, arm: str, parameters: dict[str, Any]) -> list[Fault]:
    from adaptive_opt.engine.optimizers import cost_of_run

    tuning = TuningParameters(**parameters["tuning"])
    arms = parameters["arms"]
    space = search_space(task, arm, tuning, arms[task])
    if not space:
        return []
    values = {name: d.low for name, d in space.items()}
    training = training_parameters(arm, parameters["training"])
    resolved = resolve_arm(arm, with_values(arms, task, arm, values)[task], training)
    iterations = 100_000
    share = training.curvature_share
    one = cost_of_run(resolved["optimizer"], resolved["hyperparameters"], iterations, share)
    if one / iterations <= tuning.tasks[task].budget:
        return []
    message = (
        f"must be at least {one / iterations:.3g}, the cost of one trial of {arm}, "
        f"got {tuning.tasks[task].budget}"
    )
    return [Fault(("tuning", "tasks", task, "budget"), message)]


def _report(faults: list[Fault], conf: Path, env: str | None, runtime: dict[str, Any]) -> str:
    lines = [
        f"{_origin(f.path, conf, env, runtime)}: {'.'.join(f.path)}: {f.message}" for f in faults
    ]
    count = "a fault" if len(lines) == 1 else f"{len(lines)} faults"
    return "\n  ".join([f"The parameters have {count}; nothing was run.", *lines])


def _origin(path: tuple[str, ...], conf: Path, env: str | None, runtime: dict[str, Any]) -> str:
    """Where a parameter is set: where most of its path is found, the command line first."""
    best, depth = "--params", _depth(runtime, path)
    if conf.is_file() and depth < len(path):  # an archive
        return conf.name
    for folder in [f for f in (env, "local", "base") if f]:
        for file in sorted((conf / folder).glob("parameters*.yml")):
            found = _depth(yaml.safe_load(file.read_text(encoding="utf-8")), path)
            if found > depth:
                best, depth = file.relative_to(conf.parent).as_posix(), found
    return best


def _depth(tree: Any, path: tuple[str, ...]) -> int:
    for i, key in enumerate(path):
        if not isinstance(tree, dict) or key not in tree:
            return i
        tree = tree[key]
    return len(path)
