"""Checks of parameters that need files, data or a device, and the report of all faults."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from adaptive_opt.errors import StudyError
from adaptive_opt.study import get_task

from .arms import resolve_arm, training_parameters
from .data import data_parameters
from .faults import Fault
from .models import RRFunctionParameters
from .tuning import TuningParameters, search_space, with_values

__all__ = ["budget_faults", "describe_faults", "device_faults", "source_faults"]

ITERATIONS = 100_000
"""Length of the run whose cost is compared with the budget of a search."""


def _faults(path: tuple[str, ...], check: Callable[[], Any]) -> list[Fault]:
    try:
        check()
    except StudyError as error:
        return [Fault(path, str(error))]
    return []


def device_faults(parameters: dict[str, Any]) -> list[Fault]:
    """Return a fault if this machine lacks the device of ``training.device``."""
    from adaptive_opt.engine.device import resolve_device

    device = parameters["training"]["device"]
    return _faults(("training", "device"), partial(resolve_device, device))


def source_faults(parameters: dict[str, Any], sections: Collection[str]) -> list[Fault]:
    """Return the faults of data files and of Rahimi–Recht functions.

    Args:
        parameters: all parameters, with valid types.
        sections: ``data`` and ``rr_synthesis``, or one of them.
    """
    from adaptive_opt.tasks.images import check_image_source
    from adaptive_opt.tasks.text import check_text_source

    faults = []
    for task in parameters["data"] if "data" in sections else ():
        check: Any = check_image_source if get_task(task).family == "images" else check_text_source
        given = data_parameters(task, parameters["data"])
        faults += _faults(("data", task, "path"), partial(check, given))
    for task, row in parameters["rr_synthesis"].items() if "rr_synthesis" in sections else ():
        function = RRFunctionParameters(**row)
        faults += _faults(("rr_synthesis", task), partial(_make_function, function))
    return faults


def _make_function(given: RRFunctionParameters) -> None:
    """Create the function: no cheaper check shows whether a draw or a file is usable."""
    from adaptive_opt.tasks.rr_functions import import_function, synthesise

    if given.source != "file":
        synthesise(given.source, **given.model_dump(exclude={"source", "path"}))
    elif given.path is None:
        raise StudyError("source is 'file', so path must name an .npz or .pth file")
    else:
        import_function(given.path, given.layers, given.hidden_dim, given.seed)


def budget_faults(parameters: dict[str, Any], searches: Iterable[tuple[str, str]]) -> list[Fault]:
    """Return the tasks whose search budget is below the cost of one trial of an arm.

    Args:
        parameters: all parameters, with valid types.
        searches: the (task, arm) pairs to search.
    """
    from adaptive_opt.engine.optimizers import cost_of_run

    tuning, arms, faults = TuningParameters(**parameters["tuning"]), parameters["arms"], []
    for task, arm in searches:
        if not (space := search_space(task, arm, tuning, arms[task])):
            continue
        lowest = {name: dimension.low for name, dimension in space.items()}
        training = training_parameters(arm, parameters["training"])
        resolved = resolve_arm(arm, with_values(arms, task, arm, lowest)[task], training)
        optimizer, hyperparameters = resolved["optimizer"], resolved["hyperparameters"]
        cost = cost_of_run(optimizer, hyperparameters, ITERATIONS, training.curvature_share)
        cost, budget = cost / ITERATIONS, tuning.tasks[task].budget
        if cost > budget:
            message = f"must be at least {cost:.3g}, the cost of one trial of {arm}, got {budget}"
            faults.append(Fault(("tuning", "tasks", task, "budget"), message))
    return faults


def describe_faults(
    faults: Collection[Fault], conf: Path, env: str | None, given: dict[str, Any]
) -> str:
    """Return the message of an error, with the file and the key of each fault.

    Args:
        faults: at least one fault.
        conf: folder of the environments, or an archive of it.
        env: the environment.
        given: parameters of the command line.
    """
    lines = [
        f"{_origin(f.path, conf, env, given)}: {'.'.join(f.path)}: {f.message}" for f in faults
    ]
    count = "a fault" if len(lines) == 1 else f"{len(lines)} faults"
    return "\n  ".join([f"The parameters have {count}; nothing was run.", *lines])


def _origin(path: tuple[str, ...], conf: Path, env: str | None, given: dict[str, Any]) -> str:
    """Return the file that sets most of a path, or ``--params``, which overrides all files."""
    best, depth = "--params", _depth(given, path)
    if conf.is_file() and depth < len(path):
        return conf.name
    for folder in [f for f in (env, "local", "base") if f]:
        for file in sorted((conf / folder).glob("parameters*.yml")):
            found = _depth(yaml.safe_load(file.read_text(encoding="utf-8")), path)
            if found > depth:
                best, depth = file.relative_to(conf.parent).as_posix(), found
    return best


def _depth(tree: Any, path: tuple[str, ...]) -> int:
    """Return how many keys of a path exist in a tree."""
    for i, key in enumerate(path):
        if not isinstance(tree, dict) or key not in tree:
            return i
        tree = tree[key]
    return len(path)
