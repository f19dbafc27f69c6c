"""The parameters of a study: their types, ranges and meaning.

Validated before the first node runs; every fault is reported at once, by the path of its
key, with the nearest valid name where a key is unknown.
"""

from __future__ import annotations

import difflib
import inspect
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adaptive_opt.errors import StudyError
from adaptive_opt.study import ARMS, TASKS, Arm, get_arm

__all__ = ["Fault", "RRFunctionParameters", "TaskParameters", "TrainingParameters"]
__all__ += ["configuration", "find_faults", "resolve_arm"]

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Probe = Literal["rademacher", "gaussian", "constant", "momentum_sign", "momentum_sign_cumulative"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RRFunctionParameters(_Strict):
    """``rr_synthesis.<task>``: where the task's function comes from.

    Attributes:
        source: ``singular_values``, ``row_scaled`` or ``file``.
        path: for ``file``: an ``.npz`` or ``.pth``.
        condition: condition number of A, at most 1e10: beyond it float64 does not hold it
            to a millionth.
        x_dim, hidden_dim, y_dim: layer widths.
        layers: number of weight matrices.
        samples: rows of X.
        seed: of the draw.
    """

    source: Literal["singular_values", "row_scaled", "file"]
    path: str | None = None
    condition: Annotated[float, Field(ge=1, le=1e10)]
    x_dim: Count = 12
    hidden_dim: Count = 13
    y_dim: Count = 14
    layers: Annotated[int, Field(ge=2, strict=True)] = 2
    samples: Count = 1000
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0


class TaskParameters(_Strict):
    """``tasks.<task>``: how a task is trained.

    Attributes:
        loss: ``rmse`` as published, or ``mse``.
        batch_size: samples a batch.
        epochs: length of a run.
        seeds: number of runs of each arm, trained as one ensemble.
        initialisation: ``per_seed``: each run draws its own weights; ``shared``: all start
            from the function's, as published.
        target: the root mean squared error whose first passage is reported, whichever the
            loss.
    """

    loss: Literal["rmse", "mse"] = "rmse"
    batch_size: Count = 128
    epochs: Count
    seeds: Count
    initialisation: Literal["per_seed", "shared"] = "per_seed"
    target: Positive

    @property
    def target_loss(self) -> float:
        """The target as a value of the loss."""
        return self.target if self.loss == "rmse" else self.target**2


class TrainingParameters(_Strict):
    """``training``: what holds for every run.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        schedule: of the learning rate: ``cosine`` by iteration, ``cosine_by_epoch`` as
            published, or ``constant``.
        schedule_floor: what the cosine falls to, as a share of the learning rate.
        log_every: iterations between two rows of the history.
        statistics_every: iterations between two looks into the optimizer.
        hessian_every: iterations between two exact Hessians; 0: none.
        diverged_above: a run whose loss exceeds this multiple of its first is frozen.
        beta1: smoothing of the gradient where an arm does not set its own.
        update_period: k, likewise.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    schedule: Literal["cosine", "cosine_by_epoch", "constant"] = "cosine"
    schedule_floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    log_every: Count = 10
    statistics_every: Count = 100
    hessian_every: Annotated[int, Field(ge=0, strict=True)] = 100
    diverged_above: Annotated[float, Field(gt=1)] = 1e6
    beta1: Beta = 0.9
    update_period: Count = 10


class AnalysisParameters(_Strict):
    """``analysis``: how histories become tables.

    Attributes:
        settled_within: the loss has stopped moving where it first comes within this factor
            of its final level.
    """

    settled_within: Annotated[float, Field(gt=1)] = 10.0


class _SGDM(_Strict):
    lr: NonNegative
    momentum: Beta | None = None
    weight_decay: NonNegative = 0.0


class _Adam(_Strict):
    lr: NonNegative
    beta1: Beta | None = None
    beta2: Beta = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0


class _SecondOrder(_Strict):
    lr: NonNegative
    beta1: Beta | None = None
    beta2: Beta = 0.99
    rho: NonNegative = 1e-2
    eps: NonNegative = 1e-12
    weight_decay: NonNegative = 0.0
    update_period: Count | None = None
    probe: Probe | None = None


class StudyParameters(_Strict):
    """All parameters of the project but those of the arms, which depend on their class."""

    scale: str
    rr_synthesis: dict[str, RRFunctionParameters]
    tasks: dict[str, TaskParameters]
    training: TrainingParameters
    analysis: AnalysisParameters
    arms: dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Fault:
    """Something wrong with a parameter.

    Attributes:
        path: keys from the top.
        message: what is wrong and what would be right.
    """

    path: tuple[str, ...]
    message: str


def find_faults(parameters: dict[str, Any]) -> list[Fault]:
    """Everything wrong with the parameters, as far as they alone can tell."""
    faults = _model_faults(StudyParameters, parameters, ())
    known_tasks = [t.name for t in TASKS]
    for section in ("rr_synthesis", "tasks", "arms"):
        present = parameters.get(section, {})
        if not isinstance(present, dict):
            continue  # said above
        for name in present:
            if name not in known_tasks:
                hint = _nearest(str(name), known_tasks)
                faults.append(Fault((section, str(name)), f"unknown task {hint}"))
        for name in known_tasks:
            if name not in present:
                faults.append(Fault((section, name), "is missing"))
    for task in TASKS:
        faults += _task_faults(task.name, parameters)
    return faults


def resolve_arm(name: str, arms: dict[str, Any], training: TrainingParameters) -> dict[str, Any]:
    """An arm's optimizer path and its full keyword arguments, for one task.

    Args:
        name: the arm.
        arms: the task's section of the parameters ``arms``.
        training: where β1 and k come from if the arm has none of its own.

    Returns:
        ``{"optimizer": dotted path, "hyperparameters": {...}}``.

    Raises:
        StudyError: neither the arm nor the one it is tuned as has a configuration.
    """
    arm = get_arm(name)
    own = arms.get(name)
    given = own if own is not None else arms.get(arm.tuned_as or "")
    if given is None:
        raise StudyError(f"arm {name} has no configuration under arms.<task>.{name}")
    schema = _schema(arm)
    if schema is None:
        kwargs = dict(given)
        path = kwargs.pop("optimizer", arm.optimizer)
        if path is None:
            raise StudyError(f"arm {name} needs 'optimizer': the dotted import path of a class")
        return {"optimizer": path, "hyperparameters": {**kwargs, **arm.options}}
    values = schema(**given).model_dump()
    if schema is _SGDM:
        values["momentum"] = training.beta1 if values["momentum"] is None else values["momentum"]
    else:
        values["beta1"] = training.beta1 if values["beta1"] is None else values["beta1"]
    if schema is _SecondOrder:
        values["update_period"] = values["update_period"] or training.update_period
        if values["probe"] is None:
            del values["probe"]
    return {"optimizer": arm.optimizer, "hyperparameters": {**values, **arm.options}}


def configuration(task: str, arm: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a run of an arm on a task depends on, flat, to compare if it is stale.

    Args:
        task, arm: names.
        parameters: the sections ``tasks``, ``arms`` and ``training``.
    """
    training = TrainingParameters(**parameters["training"])
    resolved = resolve_arm(arm, parameters["arms"][task], training)
    settings = TaskParameters(**parameters["tasks"][task]).model_dump(exclude={"target"})
    kept = ("schedule", "schedule_floor", "diverged_above")
    return {
        **settings,
        **{name: getattr(training, name) for name in kept},
        "optimizer": resolved["optimizer"],
        **resolved["hyperparameters"],
    }


def _schema(arm: Arm) -> type[_Strict] | None:
    """The parameters of an optimizer that has a schema here; None: its signature is one."""
    second = dict.fromkeys(("Sophia", "SADH", "SSDH", "SSVP"), _SecondOrder)
    schemas: dict[str, type[_Strict]] = {"SGDM": _SGDM, "Adam": _Adam, **second}
    package, _, name = (arm.optimizer or "").rpartition(".")
    return schemas.get(name) if package == "adaptive_opt.optim" else None


def _task_faults(task: str, parameters: dict[str, Any]) -> list[Fault]:
    section = parameters.get("arms")
    arms = section.get(task) if isinstance(section, dict) else None
    if not isinstance(arms, dict):
        return []
    known = [arm.name for arm in ARMS]
    faults = []
    for name, given in arms.items():
        path = ("arms", task, str(name))
        if name not in known:
            faults.append(Fault(path, f"unknown arm {_nearest(str(name), known)}"))
        elif isinstance(given, dict):
            schema = _schema(get_arm(name))
            if schema is None:
                faults += _foreign_faults(get_arm(name), given, path)
            else:
                faults += _model_faults(schema, given, path)
    for arm in ARMS:
        if arm.published and arm.name not in arms:
            faults.append(Fault(("arms", task, arm.name), "is missing"))
    return faults


def _foreign_faults(arm: Arm, given: dict[str, Any], path: tuple[str, ...]) -> list[Fault]:
    """What the class itself says, by making one."""
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
    accepted += ["beta1", "beta2"] * ("adaptive_opt" in dotted and "betas" in accepted)
    unknown = [key for key in kwargs if key not in accepted]
    if unknown:
        return [
            Fault((*path, key), f"{dotted} takes no argument {_nearest(key, accepted)}")
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
        message = f"unknown parameter {_nearest(path[-1], _fields(model, path[:-1]))}"
    elif error["type"] == "missing":
        message = "is missing"
    else:
        text = error["msg"].replace("Input should be ", "must be ").replace("'", "")
        message = f"{text}, got {error['input']!r}"
    return Fault((*prefix, *path), message)


def _fields(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """Names valid at a path inside a model."""
    inner: Any = model
    for key in path:
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            inner = inner.model_fields[key].annotation
        else:
            inner = get_args(inner)[1]
    return list(inner.model_fields)


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"
    return f"{name!r}; {hint}"
