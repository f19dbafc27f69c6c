"""The grid: which tasks are trained by which arms.

A new optimizer is one class and one row of :data:`ARMS`; a new task one module and one row
of :data:`TASKS`. Numbers (learning rates, seeds, sizes) are parameters, under ``conf/``.
This module is imported by every ``kedro`` command and therefore imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARMS", "KINDS", "TASKS", "Arm", "Task", "arm_names", "published_arms"]

KINDS = ("first-order", "second-order", "ladder")


@dataclass(frozen=True)
class Task:
    """A row of the grid: what is trained.

    Attributes:
        name: key in the parameters, tag and folder.
        label: for figures and tables.
    """

    name: str
    label: str


@dataclass(frozen=True)
class Arm:
    """A column of the grid: an optimizer and where its curvature comes from.

    Attributes:
        name: key in the parameters, tag and folder.
        label: for figures and tables.
        kind: one of :data:`KINDS`.
        optimizer: dotted import path of the class; None: given in the parameters.
        options: keyword arguments that make the arm what it is.
        tuned_as: the arm whose configuration serves where this one has none of its own.
        published: whether the arm is in the published tables, which the default run covers.
    """

    name: str
    label: str
    kind: str
    optimizer: str | None
    options: dict[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None
    published: bool = False


def _own(name: str) -> str:
    return f"adaptive_opt.optim.{name}"


def _ladder(parent: str, optimizer: str) -> Iterable[Arm]:
    sources = {
        "exact": "exact diagonal",
        "permuted": "permuted",
        "per_tensor": "one a tensor",
        "per_model": "one number",
        "squared_gradient": "g²",
        "constant": "constant",
    }
    for source, words in sources.items():
        yield Arm(
            f"{parent}_{source}",
            f"{optimizer}, {words}",
            "ladder",
            _own(optimizer),
            {"curvature": source},
            tuned_as=parent,
        )


TASKS = (
    Task("rr_cond29", "Rahimi–Recht, condition 29"),
    Task("rr_cond15099", "Rahimi–Recht, condition 15,099"),
)

ARMS = (
    Arm("sgdm", "SGDM", "first-order", _own("SGDM"), published=True),
    Arm("adam", "Adam", "first-order", _own("Adam"), published=True),
    Arm("sophia", "Sophia", "second-order", _own("Sophia"), published=True),
    Arm("sadh", "SADH", "second-order", _own("SADH"), published=True),
    Arm("ssdh", "SSDH", "second-order", _own("SSDH"), published=True),
    Arm("ssvp", "SSVP", "second-order", _own("SSVP"), published=True),
    Arm(
        "ssvp_cumulative",
        "SSVP cumulative",
        "second-order",
        _own("SSVP"),
        {"probe": "momentum_sign_cumulative"},
        tuned_as="ssvp",
    ),
    Arm("sgd", "SGD", "first-order", "torch.optim.SGD"),
    Arm("adamw", "AdamW", "first-order", "torch.optim.AdamW"),
    Arm("amsgrad", "AMSGrad", "first-order", "torch.optim.Adam", {"amsgrad": True}),
    Arm("nadam", "NAdam", "first-order", "torch.optim.NAdam"),
    Arm("custom", "Custom", "first-order", None),
    *_ladder("ssdh", "SSDH"),
    *_ladder("sadh", "SADH"),
)


def arm_names(kind: str | None = None) -> list[str]:
    """Names of all arms, or of those of one kind."""
    return [arm.name for arm in ARMS if kind in (None, arm.kind)]


def published_arms() -> list[str]:
    """The six arms of the published tables."""
    return [arm.name for arm in ARMS if arm.published]


def get_arm(name: str) -> Arm:
    """The row of an arm."""
    return next(arm for arm in ARMS if arm.name == name)
