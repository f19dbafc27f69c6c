"""Checks of the parameters ``tuning`` beyond the types of their values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import ValidationError

from adaptive_opt.study import ARMS, EVERY_TASK, KINDS, get_arm, get_task

from .arms import arm_schema
from .tuning import Space, TuningParameters, accepted_names, with_values

__all__ = ["tuning_faults"]

Found = Iterator[tuple[tuple[str, ...], str]]


def tuning_faults(
    tuning: TuningParameters, arms: dict[str, Any], zoo: Collection[str] = ()
) -> Found:
    """Yield the faults: the path of the key below ``tuning``, and a message.

    Args:
        tuning: the parameters ``tuning``, with valid types.
        arms: the parameters ``arms``.
        zoo: zoo arms to check; checking imports their package.
    """
    tasks = [t.name for t in EVERY_TASK]
    for name in tasks:
        if name not in tuning.tasks:
            yield ("tasks", name), "is missing"
    for name in tuning.tasks:
        if name not in tasks:
            yield ("tasks", name), f"unknown task; valid: {', '.join(tasks)}"
        else:
            yield from _task_faults(name, tuning)
    if tuning.space not in tuning.spaces:
        known = ", ".join(tuning.spaces)
        yield ("space",), f"no space {tuning.space!r} under tuning.spaces; valid: {known}"
    for title, by_task in tuning.spaces.items():
        for task, by_arm in by_task.items():
            path = ("spaces", title, task)
            if task not in tasks:
                yield path, f"unknown task; valid: {', '.join(tasks)}"
                continue
            for name, space in by_arm.items():
                for inner, message in _space_faults(task, name, space, arms, zoo):
                    yield (*path, name, *inner), message


def _task_faults(task: str, tuning: TuningParameters) -> Found:
    given = tuning.tasks[task]
    path = ("tasks", task)
    if get_task(task).family == "rahimi_recht":
        if given.objective == "valid_loss":
            valid = "time_to_target or train_loss"
            yield (*path, "objective"), f"Rahimi–Recht has no validation data; use {valid}"
        if not float(given.epochs).is_integer():
            yield (*path, "epochs"), f"must be whole on Rahimi–Recht, got {given.epochs:g}"
        if given.pruner != "none":
            yield (*path, "pruner"), "trials of Rahimi–Recht train as one program; use none"
    elif given.batch > 1 and given.pruner != "none":
        yield (*path, "batch"), "trials with a pruner train one at a time; use 1"


def _space_faults(
    task: str, name: str, space: Space, arms: dict[str, Any], zoo: Collection[str]
) -> Found:
    if not space:
        yield (), "is empty; add a hyperparameter, or remove it"
        return
    if name in KINDS:
        members = [a.name for a in ARMS if a.kind == name and arm_schema(a) is not None]
    elif name in {a.name for a in ARMS}:
        members = [name]
        given = arms.get(task, {}).get(name) or {}
        unchecked = get_arm(name).kind == "zoo" and name not in zoo
        accepted = None if unchecked else accepted_names(get_arm(name), given)
        for key in space:
            if accepted is not None and key not in accepted:
                yield (key,), f"{name} takes no such hyperparameter; valid: {', '.join(accepted)}"
                return
    else:
        yield (), f"neither an arm nor a kind of arm ({', '.join(KINDS)})"
        return
    for arm in members:
        yield from _bound_faults(task, arm, space, arms)


def _bound_faults(task: str, arm: str, space: Space, arms: dict[str, Any]) -> Found:
    """Yield the bounds that are invalid values of their hyperparameter."""
    schema = arm_schema(get_arm(arm))
    if schema is None or not isinstance(arms.get(task), dict):
        return
    for key, dimension in space.items():
        if key not in schema.model_fields:
            continue
        for bound in ("low", "high"):
            value = getattr(dimension, bound)
            try:
                schema(**with_values(arms, task, arm, {key: value})[task][arm])
            except ValidationError as error:
                for fault in error.errors(include_url=False):
                    if fault["loc"] == (key,):
                        message = fault["msg"].replace("Input should be ", "must be ")
                        yield (key, bound), f"{message}, got {value:g}"
                        return
