"""The grid: which tasks are trained by which arms.

A new optimizer is one class and one row of :data:`ARMS`; a new task one module and one row
of :data:`TASKS`. Numbers (learning rates, seeds, sizes) are parameters, under ``conf/``.
This module is imported by every ``kedro`` command and therefore imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARMS", "EVERY_TASK", "FAMILIES", "HALVES", "KINDS", "TASKS", "VARIANTS", "Arm", "Task"]
__all__ += [
    "Run",
    "arm_names",
    "arms_on",
    "default_arms",
    "get_arm",
    "get_task",
    "published_arms",
    "run_tags",
]
__all__ += ["runs_on", "tasks_of"]

Run = tuple[str, str]
"""Names of a task and of an arm: a cell of the grid."""

KINDS = ("first-order", "second-order", "ladder", "zoo")
"""``zoo``: strong optimizers of the package pytorch_optimizer, which the extra ``zoo`` installs."""

FAMILIES = ("rahimi_recht", "images", "text")
"""Rahimi–Recht functions, networks that classify images, networks that predict words."""

HALVES = ("rahimi_recht", "networks")
"""Of the study; each has tables, figures and a report of its own, and is a tag."""


@dataclass(frozen=True)
class Task:
    """A row of the grid: what is trained.

    Attributes:
        name: key in the parameters, tag and folder.
        label: for figures and tables.
        family: one of :data:`FAMILIES`: what it needs to be trained.
        learns: the task whose function or data it shares; None: its own.
    """

    name: str
    label: str
    family: str
    learns: str | None = None

    @property
    def half(self) -> str:
        """The one of :data:`HALVES` that the task belongs to."""
        return self.family if self.family in HALVES else "networks"

    @property
    def dataset(self) -> str:
        """What it learns, by its name in the catalog."""
        if self.family == "rahimi_recht":
            return f"rr_synthesis.{self.learns or self.name}.function"
        return f"data.{self.learns or self.name}.tensors"


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
        default: whether the default run covers it although it is not in the published tables.
        families: of the tasks that it can be trained on.
        schedule: of the learning rate, where the optimizer needs another than the study's.
    """

    name: str
    label: str
    kind: str
    optimizer: str | None
    options: dict[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None
    published: bool = False
    default: bool = False
    families: tuple[str, ...] = FAMILIES
    schedule: str | None = None

    @property
    def may_be_reference(self) -> bool:
        """Whether others may be judged by it: a first-order arm of the published tables."""
        return self.kind == "first-order" and self.published


def _own(name: str) -> str:
    return f"adaptive_opt.optim.{name}"


def _zoo(name: str) -> str:
    return f"pytorch_optimizer.{name}"


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
            # On a network it would take a Hessian-vector product for each parameter.
            families=("rahimi_recht",) if source == "exact" else FAMILIES,
        )


TASKS = (
    Task("rr_cond29", "Rahimi–Recht, condition 29", "rahimi_recht"),
    Task("rr_cond15099", "Rahimi–Recht, condition 15,099", "rahimi_recht"),
    Task("resnet18", "ResNet-18", "images"),
    Task("transformer", "Transformer", "text"),
)
"""What the default study is about."""

VARIANTS = (
    Task("rr_cond29_mse", "Rahimi–Recht, condition 29, MSE", "rahimi_recht", "rr_cond29"),
    Task("rr_cond15099_mse", "Rahimi–Recht, condition 15,099, MSE", "rahimi_recht", "rr_cond15099"),
)
"""The same functions by the mean squared error, whose curvature stays bounded at a minimum."""

EVERY_TASK = (*TASKS, *VARIANTS)

ARMS = (
    Arm("sgdm", "SGDM", "first-order", _own("SGDM"), published=True),
    Arm("adam", "Adam", "first-order", _own("Adam"), published=True),
    Arm("sophia", "Sophia", "second-order", _own("Sophia"), published=True),
    Arm("sadh", "SADH", "second-order", _own("SADH"), published=True),
    Arm("ssdh", "SSDH", "second-order", _own("SSDH"), published=True),
    Arm("ssvp", "SSVP", "second-order", _own("SSVP"), published=True),
    Arm(
        "sophia_g",
        "Sophia-G",
        "second-order",
        _own("Sophia"),
        {"curvature": "gauss_newton"},
        tuned_as="sophia",
        default=True,
    ),
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
    Arm("adahessian", "AdaHessian", "zoo", _zoo("AdaHessian"), {"create_graph": True}),
    Arm(
        "muon",
        "Muon",
        "zoo",
        _zoo("Muon"),
        {"groups": {"hidden": {"use_muon": True}, "others": {"use_muon": False}}},
    ),
    Arm("soap", "SOAP", "zoo", _zoo("SOAP")),
    Arm(
        "schedule_free",
        "Schedule-free AdamW",
        "zoo",
        _zoo("ScheduleFreeAdamW"),
        schedule="constant",
    ),
    Arm("prodigy", "Prodigy", "zoo", _zoo("Prodigy")),
)


def arm_names(kind: str | None = None) -> list[str]:
    """Names of all arms but the zoo's, or of those of one kind."""
    return [arm.name for arm in ARMS if (arm.kind != "zoo" if kind is None else arm.kind == kind)]


def published_arms() -> list[str]:
    """The six arms of the published tables."""
    return [arm.name for arm in ARMS if arm.published]


def default_arms() -> list[str]:
    """The optimizers of ``kedro run``: those of the published tables, and others of their rank."""
    return [arm.name for arm in ARMS if arm.published or arm.default]


def get_arm(name: str) -> Arm:
    """The row of an arm."""
    return next(arm for arm in ARMS if arm.name == name)


def get_task(name: str) -> Task:
    """The row of a task."""
    return next(task for task in EVERY_TASK if task.name == name)


def tasks_of(*families: str) -> list[Task]:
    """The tasks of some families, variants left out, in the order of the grid."""
    return [task for task in TASKS if task.family in families]


def runs_on(arms: Iterable[str], tasks: Iterable[Task] = TASKS) -> list[Run]:
    """Some arms on those of some tasks that they can be trained on, task by task."""
    chosen = list(arms)
    return [(task.name, arm) for task in tasks for arm in arms_on(task, chosen)]


def run_tags(task: str, arm: str) -> list[str]:
    """Tags by which a cell of the grid is chosen: task, half, arm, kind, or the cell itself.

    Example:
        >>> run_tags("resnet18", "adam")
        ['resnet18', 'networks', 'adam', 'first-order', 'resnet18.adam']
    """
    return [task, get_task(task).half, arm, get_arm(arm).kind, f"{task}.{arm}"]


def arms_on(task: Task, arms: Iterable[str]) -> list[str]:
    """Those of some arms that a task can be trained by."""
    return [name for name in arms if task.family in get_arm(name).families]
