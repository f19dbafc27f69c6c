"""Schemas of the parameters ``arms``: hyperparameters of the optimizers."""

from __future__ import annotations

from typing import Any, Literal

from adaptive_opt.errors import StudyError
from adaptive_opt.study import Arm, get_arm

from .fields import Beta, Count, NonNegative, Strict
from .models import LengthsParameters, TrainingParameters

__all__ = ["arm_schema", "lengths_of", "resolve_arm", "training_parameters"]

Probe = Literal["rademacher", "gaussian", "constant", "momentum_sign", "momentum_sign_cumulative"]


class _SGDM(Strict):
    lr: NonNegative
    momentum: Beta | None = None
    weight_decay: NonNegative = 0.0


class _Adam(Strict):
    lr: NonNegative
    beta1: Beta | None = None
    beta2: Beta = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.0


class _WholeMatrix(Strict):
    lr: NonNegative
    beta1: Beta | None = None
    beta2: Beta = 0.99
    rho: NonNegative = 1e-2
    eps: NonNegative = 1e-12
    weight_decay: NonNegative = 0.0
    update_period: Count | None = None


class _SecondOrder(_WholeMatrix):
    probe: Probe | None = None


def resolve_arm(name: str, arms: dict[str, Any], training: TrainingParameters) -> dict[str, Any]:
    """Return an arm's optimizer path and all its keyword arguments on one task.

    Args:
        name: the arm.
        arms: the task's section of the parameters ``arms``.
        training: default ``beta1`` and ``update_period`` of arms without their own.

    Returns:
        ``{"optimizer": dotted path, "hyperparameters": {...}}``.

    Raises:
        StudyError: neither the arm nor its ``tuned_as`` has a configuration.
    """
    arm = get_arm(name)
    own = arms.get(name)
    given = own if own is not None else arms.get(arm.tuned_as or "")
    if given is None:
        raise StudyError(f"arm {name} has no configuration under arms.<task>.{name}")
    schema = arm_schema(arm)
    if schema is None:
        kwargs = dict(given)
        path = kwargs.pop("optimizer", arm.optimizer)
        if path is None:
            raise StudyError(f"arm {name} needs 'optimizer': the dotted import path of a class")
        return {"optimizer": path, "hyperparameters": {**kwargs, **arm.options}}
    if "probe" not in schema.model_fields:  # the parent's configuration may have one
        given = {name: value for name, value in given.items() if name != "probe"}
    values = schema(**given).model_dump()
    if schema is _SGDM:
        values["momentum"] = training.beta1 if values["momentum"] is None else values["momentum"]
    else:
        values["beta1"] = training.beta1 if values["beta1"] is None else values["beta1"]
    if issubclass(schema, _WholeMatrix):
        values["update_period"] = values["update_period"] or training.update_period
        if values.get("probe", "") is None:
            del values["probe"]
    return {"optimizer": arm.optimizer, "hyperparameters": {**values, **arm.options}}


def training_parameters(arm: str, training: dict[str, Any]) -> TrainingParameters:
    """Return the parameters ``training`` with the arm's own schedule, interval and batch share."""
    parameters = TrainingParameters(**training)
    row = get_arm(arm)
    own: dict[str, Any] = {}
    if row.schedule is not None:
        own["schedule"] = row.schedule
    if row.curvature_share is not None:
        own["curvature_share"] = row.curvature_share
    if row.kind == "ladder" and parameters.hessian_of == "published":
        own["hessian_every"] = 0
    return parameters.model_copy(update=own)


def lengths_of(task: str, arm: str, training: TrainingParameters) -> list[float]:
    """Return the additional training lengths of an arm, as falling shares of the full length.

    Example:
        >>> lengths_of("resnet18", "adam", TrainingParameters())
        [2.0, 0.5, 0.25, 0.125, 0.0625]
        >>> lengths_of("resnet18", "ssdh_permuted", TrainingParameters())
        [0.5, 0.25]
    """
    given, row = training.lengths.get(task, LengthsParameters()), get_arm(arm)
    shares = given.placebos if row.kind == "ladder" else given.arms
    shares = [*shares, *(given.reference if row.may_be_reference else [])]
    return sorted({s for s in shares if s != 1}, reverse=True)


def arm_schema(arm: Arm) -> type[Strict] | None:
    """Return the schema of an arm's hyperparameters; None: use the class's signature."""
    second = dict.fromkeys(("Sophia", "SADH", "SSDH", "SSVP"), _SecondOrder)
    schemas: dict[str, type[Strict]] = {"SGDM": _SGDM, "Adam": _Adam, **second}
    schemas["SaddleFreeNewton"] = _WholeMatrix
    package, _, name = (arm.optimizer or "").rpartition(".")
    return schemas.get(name) if package == "adaptive_opt.optim" else None
