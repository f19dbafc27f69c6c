"""Kedro hooks: nothing is computed before the parameters are known to be sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from kedro.framework.hooks import hook_impl

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import Fault, RRFunctionParameters, find_faults
from adaptive_opt.study import ARMS, KINDS, TASKS

__all__ = ["ValidationHooks", "known_tags"]


def known_tags() -> list[str]:
    """Every tag that a part of the grid can be chosen by."""
    return [*(t.name for t in TASKS), *(a.name for a in ARMS), *KINDS]


class ValidationHooks:
    """Checks parameters, function files and the device before the first node."""

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Any, catalog: Any) -> None:
        """Raise one error that lists every fault, each with file and key."""
        parameters = catalog.load("parameters")
        faults = find_faults(parameters)
        if not faults:
            faults = _deep_faults(
                parameters, {n.split(".")[0] for n in pipeline.inputs() | pipeline.all_outputs()}
            )
        if faults:
            project = Path(run_params["project_path"])
            given = run_params.get("runtime_params") or {}
            raise StudyError(_report(faults, project, run_params.get("env"), given))


def _deep_faults(parameters: dict[str, Any], namespaces: set[str]) -> list[Fault]:
    """Faults that need more than the parameters: files, dimensions, devices."""
    from adaptive_opt.engine.device import resolve_device
    from adaptive_opt.tasks.rr_functions import import_function, synthesise

    faults = []
    try:
        resolve_device(parameters["training"]["device"])
    except StudyError as error:
        faults.append(Fault(("training", "device"), str(error)))
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


def _report(faults: list[Fault], project: Path, env: str | None, runtime: dict[str, Any]) -> str:
    lines = [
        f"{_origin(f.path, project, env, runtime)}: {'.'.join(f.path)}: {f.message}" for f in faults
    ]
    count = "a fault" if len(lines) == 1 else f"{len(lines)} faults"
    return "\n  ".join([f"The parameters have {count}; nothing was run.", *lines])


def _origin(path: tuple[str, ...], project: Path, env: str | None, runtime: dict[str, Any]) -> str:
    """Where a parameter is set: where most of its path is found, the command line first."""
    best, depth = "--params", _depth(runtime, path)
    for folder in [f for f in (env, "local", "base") if f]:
        for file in sorted((project / "conf" / folder).glob("parameters*.yml")):
            found = _depth(yaml.safe_load(file.read_text(encoding="utf-8")), path)
            if found > depth:
                best, depth = file.relative_to(project).as_posix(), found
    return best


def _depth(tree: Any, path: tuple[str, ...]) -> int:
    for i, key in enumerate(path):
        if not isinstance(tree, dict) or key not in tree:
            return i
        tree = tree[key]
    return len(path)
