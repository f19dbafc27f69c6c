"""The grid of tasks and arms (optimizer variants).

A new optimizer needs a class and a row of :data:`ARMS`, a new task a module and a row of
:data:`TASKS`. Learning rates, seeds and sizes are parameters, under ``conf/``. Every ``kedro``
command imports this module, so it imports nothing slow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARMS", "EVERY_TASK", "FAMILIES", "HALVES", "KINDS", "PLACEBOS", "TASKS", "UPWARDS"]
__all__ += [
    "VARIANTS",
    "Arm",
    "Run",
    "Task",
    "arm_names",
    "arms_on",
    "default_arms",
    "get_arm",
    "get_task",
    "known_tags",
    "placebos",
    "published_arms",
    "run_tags",
]
__all__ += ["runs_on", "tasks_of"]

Run = tuple[str, str]
"""Names of a task and an arm: one cell of the grid."""

KINDS = ("first-order", "second-order", "ladder", "zoo")
"""Kinds of arms.

``ladder``: rungs of an information ladder. They give the step rule of their parent arm another
source of curvature (:data:`PLACEBOS`, :data:`UPWARDS`). ``zoo``: optimizers of the package
pytorch_optimizer, which the extra ``zoo`` installs.
"""

FAMILIES = ("rahimi_recht", "images", "text")
"""Families of tasks: Rahimi–Recht functions, image classification, language modelling."""

HALVES = ("rahimi_recht", "networks")
"""Halves of the study. Each has its own tables, figures and report, and is a tag."""


@dataclass(frozen=True)
class Task:
    """A row of the grid: a training problem.

    Attributes:
        name: key in the parameters, tag, and name of the folder.
        label: name in figures and tables.
        family: one of :data:`FAMILIES`.
        learns: the task whose function or data this task uses; None: its own.
    """

    name: str
    label: str
    family: str
    learns: str | None = None

    @property
    def half(self) -> str:
        """Half of the study that the task belongs to, one of :data:`HALVES`."""
        return self.family if self.family in HALVES else "networks"

    @property
    def dataset(self) -> str:
        """Catalog name of the task's data or function."""
        if self.family == "rahimi_recht":
            return f"rr_synthesis.{self.learns or self.name}.function"
        return f"data.{self.learns or self.name}.tensors"


@dataclass(frozen=True)
class Arm:
    """A column of the grid: an optimizer with fixed options, such as its curvature source.

    Attributes:
        name: key in the parameters, tag, and name of the folder.
        label: name in figures and tables.
        kind: one of :data:`KINDS`.
        optimizer: dotted import path of the class; None: defined in the parameters.
        options: fixed keyword arguments of the optimizer.
        tuned_as: the arm whose configuration is used if this arm has none.
        published: whether the arm is in the published tables. The default run includes it.
        default: whether the default run includes the arm although it is not published.
        families: families of tasks that the arm can train.
        schedule: learning rate schedule, if the optimizer needs a different one than the study's.
        curvature_share: share of each batch used for the curvature, if it is not the study's.
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
    curvature_share: float | None = None

    @property
    def may_be_reference(self) -> bool:
        """Whether other arms can be compared with it: only published first-order arms."""
        return self.kind == "first-order" and self.published


def _own(name: str) -> str:
    return f"adaptive_opt.optim.{name}"


def _zoo(name: str) -> str:
    return f"pytorch_optimizer.{name}"


PLACEBOS = {
    "exact": "exact diagonal",
    "permuted": "permuted",
    "per_tensor": "one a tensor",
    "per_model": "one number",
    "squared_gradient": "g²",
    "constant": "constant",
}
"""Rungs with less and less information, by curvature source, with their labels."""


def _ladder(parent: str, optimizer: str) -> Iterable[Arm]:
    for source, label in PLACEBOS.items():
        yield Arm(
            f"{parent}_{source}",
            f"{optimizer}, {label}",
            "ladder",
            _own(optimizer),
            {"curvature": source},
            tuned_as=parent,
            # The exact diagonal of a network would need one Hessian-vector product a parameter.
            families=("rahimi_recht",) if source == "exact" else FAMILIES,
        )


def _rung(
    parent: str,
    name: str,
    label: str,
    options: dict[str, Any],
    families: tuple[str, ...] = FAMILIES,
    optimizer: str | None = None,
    curvature_share: float | None = None,
) -> Arm:
    """A rung with the step rule of ``parent``, whose search space it uses without its own."""
    rule = {"sadh": "SADH", "ssdh": "SSDH"}[parent]
    return Arm(
        f"{parent}_{name}",
        f"{rule}, {label}",
        "ladder",
        _own(optimizer or rule),
        options,
        tuned_as=parent,
        families=families,
        curvature_share=curvature_share,
    )


RAHIMI_RECHT = ("rahimi_recht",)
# Samples of a network with batch normalisation have no gradients of their own.
WITH_SAMPLES = ("rahimi_recht", "text")
# The batches of Rahimi–Recht are represented by one matrix, which cannot be divided.
NETWORKS = ("images", "text")

MATRIX = "SaddleFreeNewton"

UPWARDS = (
    _rung("ssdh", "gauss_newton", "Gauss–Newton", {"curvature": "gauss_newton"}),
    _rung("ssdh", "empirical_fisher", "Fisher", {"curvature": "empirical_fisher"}, WITH_SAMPLES),
    _rung("sadh", "empirical_fisher", "Fisher", {"curvature": "empirical_fisher"}, WITH_SAMPLES),
    _rung("sadh", "diagonal", "diagonal", {"structure": "diagonal"}, RAHIMI_RECHT, MATRIX),
    _rung("sadh", "layers", "layer blocks", {"structure": "layer"}, RAHIMI_RECHT, MATRIX),
    _rung("sadh", "whole", "whole matrix", {"structure": "whole"}, RAHIMI_RECHT, MATRIX),
    _rung(
        "sadh",
        "whole_gauss_newton",
        "whole Gauss–Newton matrix",
        {"structure": "whole", "matrix": "gauss_newton"},
        RAHIMI_RECHT,
        MATRIX,
    ),
    *(_rung("ssdh", f"probes_{n}", f"{n} probes", {"probes": n}, RAHIMI_RECHT) for n in (4, 16)),
    *(_rung("ssdh", f"period_{k}", f"k = {k}", {"update_period": k}) for k in (1, 3, 30, 100)),
    *(
        _rung("ssdh", f"batch_{n}", f"1/{n} of the batch", {}, NETWORKS, curvature_share=1 / n)
        for n in (4, 16)
    ),
)
"""Rungs with more information than the diagonal estimate, or of another kind or quality.

- Kind: Gauss–Newton, empirical Fisher. g² is a placebo. None of these has negative entries, for
  which alone Sophia's rule differs from SADH's. So ``sophia_g`` is also SADH with Gauss–Newton, and
  Sophia has no rungs. On Rahimi–Recht the exact Gauss–Newton diagonal is that of the Hessian
  (:mod:`adaptive_opt.curvature.deep_linear`), so it is no rung either.
- Rank: exact diagonal, blocks of layers and whole matrix, with SADH's rule along the eigenvectors
  and one clip for all (:class:`adaptive_opt.optim.SaddleFreeNewton`).
- Quality: probes a refresh (1 is SSDH; only on Rahimi–Recht, where they are cheap), update period k
  (10 is SSDH, unless ``training`` says otherwise), share of the batch (1 is SSDH).
"""


TASKS = (
    Task("rr_cond29", "Rahimi–Recht, condition 29", "rahimi_recht"),
    Task("rr_cond15099", "Rahimi–Recht, condition 15,099", "rahimi_recht"),
    Task("resnet18", "ResNet-18", "images"),
    Task("transformer", "Transformer", "text"),
)
"""Tasks of the default study."""

VARIANTS = (
    Task("rr_cond29_mse", "Rahimi–Recht, condition 29, MSE", "rahimi_recht", "rr_cond29"),
    Task("rr_cond15099_mse", "Rahimi–Recht, condition 15,099, MSE", "rahimi_recht", "rr_cond15099"),
)
"""The same functions with the mean squared error, whose curvature is bounded at a minimum."""

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
    *UPWARDS,
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
        "shampoo",
        "Shampoo",
        "zoo",
        _zoo("ScalableShampoo"),
        # As often as the second-order arms refresh their curvature; the default is 1,000.
        {"preconditioning_compute_steps": 10},
    ),
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
    """Return the names of the arms of a kind; by default, of all arms except the zoo's."""
    return [arm.name for arm in ARMS if (arm.kind != "zoo" if kind is None else arm.kind == kind)]


def published_arms() -> list[str]:
    """Return the names of the six arms of the published tables."""
    return [arm.name for arm in ARMS if arm.published]


def default_arms() -> list[str]:
    """Return the names of the optimizers of ``kedro run``: published and additional ones."""
    return [arm.name for arm in ARMS if arm.published or arm.default]


def placebos(parent: str) -> list[str]:
    """Return the names of the placebos of an arm, and of its rung with the exact diagonal."""
    return [f"{parent}_{source}" for source in PLACEBOS]


def get_arm(name: str) -> Arm:
    """Return the arm with this name."""
    return next(arm for arm in ARMS if arm.name == name)


def get_task(name: str) -> Task:
    """Return the task or variant with this name."""
    return next(task for task in EVERY_TASK if task.name == name)


def tasks_of(*families: str) -> list[Task]:
    """Return the tasks of some families in grid order, without variants."""
    return [task for task in TASKS if task.family in families]


def runs_on(arms: Iterable[str], tasks: Iterable[Task] = TASKS) -> list[Run]:
    """Return all valid (task, arm) pairs of these arms and tasks, task by task."""
    names = list(arms)
    return [(task.name, arm) for task in tasks for arm in arms_on(task, names)]


def run_tags(task: str, arm: str) -> list[str]:
    """Return the tags that select a cell of the grid: task, half, arm, kind, and ``task.arm``.

    Example:
        >>> run_tags("resnet18", "adam")
        ['resnet18', 'networks', 'adam', 'first-order', 'resnet18.adam']
    """
    return [task, get_task(task).half, arm, get_arm(arm).kind, f"{task}.{arm}"]


def arms_on(task: Task, arms: Iterable[str]) -> list[str]:
    """Return those of the arms that can train a task."""
    return [name for name in arms if task.family in get_arm(name).families]


def known_tags() -> list[str]:
    """Return all tags that select a part of the grid."""
    cells = [f"{task}.{arm}" for task, arm in runs_on((arm.name for arm in ARMS), EVERY_TASK)]
    names = [task.name for task in EVERY_TASK] + [arm.name for arm in ARMS]
    return [*names, *KINDS, *HALVES, *cells]
