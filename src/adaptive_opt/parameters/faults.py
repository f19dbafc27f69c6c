"""Validation of all parameters, with all faults reported together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from adaptive_opt.errors import StudyError, nearest
from adaptive_opt.parameters.data import DATA_MODELS
from adaptive_opt.study import ARMS, EVERY_TASK, Arm, get_arm, get_task, tasks_of

from .arms import arm_schema
from .models import TASK_MODELS, StudyParameters
from .tuning import TuningParameters
from .tuning_faults import tuning_faults

__all__ = ["Fault", "find_faults"]


@dataclass(frozen=True)
class Fault:
    """A fault of a parameter.

    Attributes:
        path: keys from the top level to the parameter.
        message: what is wrong and how to correct it.
    """

    path: tuple[str, ...]
    message: str


def find_faults(
    parameters: dict[str, Any], zoo: Collection[str] = (), *, classes: bool = True
) -> list[Fault]:
    """Return all faults that can be found without reading data files.

    Args:
        parameters: all parameters.
        zoo: zoo arms to check too; importing their package takes seconds.
        classes: whether to check arms without a schema by creating their optimizers, which
            imports torch.
    """
    faults = _model_faults(StudyParameters, parameters, ())
    every = [t.name for t in EVERY_TASK]
    rahimi_recht = [t.name for t in tasks_of("rahimi_recht")]
    networks = [t.name for t in tasks_of("images", "text")]
    sections = {"rr_synthesis": rahimi_recht, "data": networks, "tasks": every, "arms": every}
    for section, known_tasks in sections.items():
        present = parameters.get(section, {})
        if not isinstance(present, dict):
            continue  # reported above
        for name in present:
            if name not in known_tasks:
                hint = nearest(str(name), known_tasks)
                faults.append(Fault((section, str(name)), f"unknown task {str(name)!r}; {hint}"))
        for name in known_tasks:
            if name not in present:
                faults.append(Fault((section, name), "is missing"))
            elif section in ("tasks", "data") and isinstance(present[name], dict):
                family = get_task(name).family
                model = TASK_MODELS[family] if section == "tasks" else DATA_MODELS[family]
                faults += _model_faults(model, present[name], (section, name))
    training = parameters.get("training")
    lengths = training.get("lengths") if isinstance(training, dict) else None
    for name in lengths if isinstance(lengths, dict) else ():
        if name not in every:
            message = f"unknown task {str(name)!r}; {nearest(str(name), every)}"
            faults.append(Fault(("training", "lengths", str(name)), message))
    for task in EVERY_TASK:
        faults += _task_faults(task.name, parameters, zoo, classes)
    return faults + _tuning_faults(parameters, zoo)


def _tuning_faults(parameters: dict[str, Any], zoo: Collection[str]) -> list[Fault]:
    given = parameters.get("tuning")
    faults = _model_faults(TuningParameters, given, ("tuning",)) if given is not None else []
    arms = parameters.get("arms")
    if given is None or faults or not isinstance(arms, dict):
        return faults
    well_formed = {
        task: {name: arm or {} for name, arm in row.items() if isinstance(arm or {}, dict)}
        for task, row in arms.items()
        if isinstance(row, dict)
    }
    found = tuning_faults(TuningParameters(**given), well_formed, zoo)
    return [Fault(("tuning", *path), message) for path, message in dict(found).items()]


def _task_faults(
    task: str, parameters: dict[str, Any], zoo: Collection[str], classes: bool
) -> list[Fault]:
    section = parameters.get("arms")
    arms = section.get(task) if isinstance(section, dict) else None
    if not isinstance(arms, dict):
        return []
    known = [arm.name for arm in ARMS]
    faults = []
    for name, given in arms.items():
        path = ("arms", task, str(name))
        if name not in known:
            hint = nearest(str(name), known)
            faults.append(Fault(path, f"unknown arm {str(name)!r}; {hint}"))
        elif isinstance(given, dict):
            schema = arm_schema(get_arm(name))
            if schema is not None:
                faults += _model_faults(schema, given, path)
            elif classes and (get_arm(name).kind != "zoo" or name in zoo):
                faults += _class_faults(get_arm(name), given, path)
    for arm in ARMS:
        if arm.published and arm.name not in arms:
            faults.append(Fault(("arms", task, arm.name), "is missing"))
    return faults


def _class_faults(arm: Arm, given: dict[str, Any], path: tuple[str, ...]) -> list[Fault]:
    """Return the faults that creating the optimizer reports."""
    import torch

    from adaptive_opt.engine.optimizers import build_optimizer, load_optimizer_class

    kwargs = {**given, **arm.options}
    dotted = kwargs.pop("optimizer", arm.optimizer)
    if not isinstance(dotted, str):
        return [Fault(path, "needs 'optimizer', the dotted import path of a class")]
    try:
        accepted = list(inspect.signature(load_optimizer_class(dotted)).parameters)[1:]
    except StudyError as error:
        return [Fault((*path, "optimizer"), str(error))]
    accepted += ["beta1", "beta2"] * ("betas" in accepted and "beta1" not in accepted)
    accepted += ["create_graph", "groups"]
    unknown = [key for key in kwargs if key not in accepted]
    if unknown:
        return [
            Fault((*path, key), f"{dotted} takes no argument {key!r}; {nearest(key, accepted)}")
            for key in unknown
        ]
    infinite = [k for k, v in kwargs.items() if isinstance(v, float) and not math.isfinite(v)]
    if infinite:
        return [Fault((*path, key), f"must be finite, got {kwargs[key]}") for key in infinite]
    try:
        build_optimizer(dotted, kwargs, [torch.zeros(1, 2, 2)], probe_seeds=[0])
    except StudyError as error:
        return [Fault(path, str(error))]
    return []


def _model_faults(model: type[BaseModel], given: Any, prefix: tuple[str, ...]) -> list[Fault]:
    try:
        model.model_validate(given)
    except ValidationError as error:
        return [_fault(model, e, prefix) for e in error.errors(include_url=False)]
    return []


def _fault(model: type[BaseModel], error: Any, prefix: tuple[str, ...]) -> Fault:
    path = tuple(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        valid = _fields(model, path[:-1])
        message = f"unknown parameter {path[-1]!r}; {nearest(path[-1], valid)}"
    elif error["type"] == "missing":
        message = "is missing"
    else:
        text = error["msg"].removeprefix("Value error, ")
        message = text.replace("Input should be ", "must be ").replace("'", "")
        if error["type"] != "value_error":
            message += f", got {error['input']!r}"
    return Fault((*prefix, *path), message)


def _fields(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """Return the valid keys at a path inside a model."""
    inner: Any = model
    for key in path:
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            inner = inner.model_fields[key].annotation
        else:
            inner = get_args(inner)[1]
    return list(inner.model_fields)
