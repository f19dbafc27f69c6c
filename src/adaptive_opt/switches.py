"""What the original study did otherwise, one switch for each, and the runs that flip them.

Beside the grid (:mod:`adaptive_opt.study`) the other table that pipelines are made from, and as
light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BASELINE", "SWITCHES", "VARIANTS", "Switch", "Variant", "get_variant", "with_switches"]

BASELINE = "baseline"

CLIP_NORM = 1.0
"""The published limit of the Transformer's gradients; Rahimi–Recht has none of its own."""


@dataclass(frozen=True)
class Switch:
    """A row of the replication ledger.

    Attributes:
        name: key in the tables.
        label: for the report.
        published, corrected: what the original did, and what is done here.
        why: what difference it can make.
        note: what to know when reading its effect.
        variants: runs that flip it, by name; empty: nothing is to be trained for it.
    """

    name: str
    label: str
    published: str
    corrected: str
    why: str
    note: str = ""
    variants: tuple[str, ...] = ()


SWITCHES = (
    Switch(
        "probe",
        "Probe",
        "SADH and SSDH multiply the Hessian by the constant vector −1",
        "by random signs",
        "the constant vector gives the sums of the Hessian's rows, not its diagonal",
        variants=("probe",),
    ),
    Switch(
        "initialisation",
        "Initial weights",
        "one set for all seeds, which differ in the order of their batches alone",
        "each seed draws its own",
        "the spread over seeds is that of shuffling",
        variants=("initialisation",),
    ),
    Switch(
        "seeds",
        "Seeds",
        "set in the process that starts the workers, not in them: no run can be repeated",
        "derived from task, arm and seed",
        "a result that cannot be repeated cannot be checked",
        "There is nothing to measure.",
    ),
    Switch(
        "clip",
        "Gradient clipping",
        "scales the gradient and leaves the curvature as it was",
        "scales both by the same factor",
        "first-order rules see the clipped gradient in everything they divide by",
        "Rahimi–Recht is trained without clipping, where the switch has no effect. It is measured "
        f"with gradients clipped to norm {CLIP_NORM:g} in both rows, each against the other.",
        ("clipped", "clip"),
    ),
    Switch(
        "loss",
        "Loss",
        "root of the mean squared error",
        "that, beside the mean squared error",
        "the gradient of a root does not vanish at the minimum and its curvature is without "
        "bound there",
        "The published loss is the default here too, so the flip goes the other way, from the "
        "root to the mean squared error, with the target on the same scale. The published "
        "hyperparameters were tuned for the root: what this row says holds for them.",
        ("loss",),
    ),
    Switch(
        "schedule",
        "Schedule",
        "cosine by epoch with T_max = epochs + 1, which does not reach its floor",
        "cosine by iteration",
        "the last learning rate is higher than was said",
        variants=("schedule",),
    ),
    Switch(
        "search",
        "Search",
        "ranges linear in η, ρ and β2; lowest training loss of short trials, one seed",
        "ranges on the scale of each parameter; time to the target over several seeds",
        "best values stood at the bounds of their ranges",
        "The row has the configurations that the search here found in place of the published ones.",
        ("searched",),
    ),
    Switch(
        "targets",
        "Targets",
        "the final value of each optimizer's best run",
        "one target for all arms of a task, all seeds",
        "one that ends higher has an easier target",
        "Both are computed from the baseline's runs.",
    ),
    Switch(
        "clock",
        "Clock",
        "the gradient's graph at every step, a wait for the device for every tensor",
        "the graph when it is due, no wait",
        "second-order steps look dearer than they are",
    ),
    Switch(
        "precision",
        "Hessian precision",
        "float32",
        "float64, zero eigenvalues counted apart",
        "signs of small eigenvalues are rounding",
        "At the baseline's final weights, and at a global minimum of the mean squared error.",
    ),
    Switch(
        "test_set",
        "Test set",
        "looked at during training, its best value quoted",
        "read once, at the end",
        "the best of many looks is too good",
        "Networks only: Rahimi–Recht has no test set.",
    ),
)


@dataclass(frozen=True)
class Variant:
    """Runs of all published arms with some switches flipped.

    Attributes:
        name: key, tag and folder.
        label: for figures and tables.
        against: the variant that it is compared with.
        task, training: parameters in place of the corrected ones.
        arms: likewise, by arm.
        searched: take the configurations that were searched.
    """

    name: str
    label: str
    against: str = BASELINE
    task: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    searched: bool = False


_CONSTANT = {arm: {"probe": "constant"} for arm in ("sadh", "ssdh")}
_SHARED = {"initialisation": "shared"}
_BY_EPOCH = {"schedule": "cosine_by_epoch"}
_CLIPPED = {"max_grad_norm": CLIP_NORM}
_UNSCALED = {"clip_curvature": False}

CORRECTED = Variant(
    "corrected",
    "all corrected",
    task={"loss": "rmse", "initialisation": "per_seed", "max_grad_norm": None},
    training={"schedule": "cosine", "clip_curvature": True},
    arms={"sadh": {"probe": "rademacher"}, "ssdh": {"probe": "rademacher"}},
)
"""What every variant starts from, whatever the environment says of the switches."""

VARIANTS = (
    Variant(BASELINE, "baseline"),
    Variant("probe", "constant probe", arms=_CONSTANT),
    Variant("initialisation", "one start", task=_SHARED),
    Variant("schedule", "schedule by epoch", training=_BY_EPOCH),
    Variant("loss", "mean squared error", task={"loss": "mse"}),
    Variant("clipped", "clipped", task=_CLIPPED),
    Variant("clip", "clipped, curvature not", "clipped", task=_CLIPPED, training=_UNSCALED),
    Variant("searched", "searched", searched=True),
    Variant(
        "published",
        "all as published",
        task=_SHARED,
        training={**_BY_EPOCH, **_UNSCALED},
        arms=_CONSTANT,
    ),
)


def get_variant(name: str) -> Variant:
    """The row of a variant."""
    return next(v for v in VARIANTS if v.name == name)


def with_switches(variant: str, task: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The sections ``tasks``, ``arms`` and ``training`` as they hold for a variant.

    Every switch is set, to ``corrected`` or as the variant wants it, and no exact Hessian is
    taken on the way; everything else is as given.

    Args:
        variant: its name.
        task: of the Rahimi–Recht tasks, whose sections are changed.
        parameters: the three sections.

    Example:
        >>> given = {"tasks": {"rr_cond29": {"epochs": 3}}, "training": {},
        ...          "arms": {"rr_cond29": {"ssdh": {"lr": 0.1}, "sadh": {"lr": 0.1}}}}
        >>> with_switches("probe", "rr_cond29", given)["arms"]["rr_cond29"]["ssdh"]
        {'lr': 0.1, 'probe': 'constant'}
    """
    row = get_variant(variant)
    own: dict[str, Any] = dict(parameters["arms"][task])
    for changes in (CORRECTED.arms, row.arms):
        for arm, values in changes.items():
            own[arm] = {**own[arm], **values}
    settings = {**parameters["tasks"][task], **CORRECTED.task, **row.task}
    training = {**parameters["training"], **CORRECTED.training, **row.training}
    return {
        "tasks": {**parameters["tasks"], task: settings},
        "arms": {**parameters["arms"], task: own},
        "training": {**training, "hessian_every": 0},
    }
