"""Differences from the original study, one switch each, and the variants that flip them.

Like the grid (:mod:`adaptive_opt.study`), every ``kedro`` command imports this module, so it
imports nothing slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BASELINE", "SWITCHES", "VARIANTS", "Switch", "Variant", "get_variant", "with_switches"]

BASELINE = "baseline"

CLIP_NORM = 1.0
"""Published gradient norm limit of the Transformer, also used here for Rahimi–Recht."""


@dataclass(frozen=True)
class Switch:
    """A difference from the original study: one row of the replication ledger.

    Attributes:
        name: key in the tables.
        label: name in the report.
        published: what the original study did.
        corrected: what this study does.
        why: why the difference matters.
        note: remarks on the measured effect.
        variants: names of the variants that measure its effect; empty: none is trained.
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
        "they use random signs",
        "the constant vector gives the row sums of the Hessian, not its diagonal",
        variants=("probe",),
    ),
    Switch(
        "initialisation",
        "Initial weights",
        "all seeds start from the same weights and differ only in the order of their batches",
        "each seed has its own initial weights",
        "the published spread over seeds covers only the effect of shuffling",
        variants=("initialisation",),
    ),
    Switch(
        "seeds",
        "Seeds",
        "the main process sets the seed, but its workers do not, so no run can be repeated",
        "every random stream is derived from task, arm and seed",
        "a result that cannot be repeated cannot be checked",
        "There is no effect to measure.",
    ),
    Switch(
        "clip",
        "Gradient clipping",
        "clipping scales the gradient but not the curvature",
        "clipping scales both by the same factor",
        "first-order optimizers compute their denominator from clipped gradients too",
        "Rahimi–Recht is trained without clipping, so the switch would have no effect there. It "
        f"is therefore measured between two variants with gradients clipped to norm {CLIP_NORM:g}.",
        ("clipped", "clip"),
    ),
    Switch(
        "loss",
        "Loss",
        "root mean squared error",
        "root mean squared error, and also the mean squared error",
        "at the minimum, the gradient of the root does not vanish and its curvature is unbounded",
        "The root is the default here too, so this switch goes from the root to the mean squared "
        "error, with the target on the same scale. The published hyperparameters, which this row "
        "uses, were tuned for the root.",
        ("loss",),
    ),
    Switch(
        "schedule",
        "Schedule",
        "cosine by epoch with T_max = epochs + 1, which does not reach its floor",
        "cosine by iteration",
        "the final learning rate is higher than stated",
        variants=("schedule",),
    ),
    Switch(
        "search",
        "Search",
        "ranges linear in η, ρ and β2; lowest training loss of short trials, one seed",
        "ranges on the scale of each parameter; time to the target over several seeds",
        "the published best values are at the bounds of their ranges",
        "This row uses the configurations that this study's searches found.",
        ("searched",),
    ),
    Switch(
        "targets",
        "Targets",
        "the final value of each optimizer's best run",
        "one target for all arms and seeds of a task",
        "an optimizer with a higher final loss has an easier target",
        "Both are computed from the baseline's runs.",
    ),
    Switch(
        "clock",
        "Clock",
        "every step builds the gradient's graph and waits for the device once for every tensor",
        "a step builds the graph only when curvature is due, and never waits",
        "second-order steps seem slower than they are",
    ),
    Switch(
        "precision",
        "Hessian precision",
        "float32",
        "float64, with zero eigenvalues counted separately",
        "the signs of small eigenvalues are rounding errors",
        "Measured at the baseline's final weights and at a global minimum of the mean squared "
        "error.",
    ),
    Switch(
        "test_set",
        "Test set",
        "evaluated during training, with the best value reported",
        "evaluated once, at the end",
        "the best of many evaluations is too optimistic",
        "Applies to networks only: Rahimi–Recht has no test set.",
    ),
)


@dataclass(frozen=True)
class Variant:
    """Runs of all published arms with some switches flipped.

    Attributes:
        name: key, and name of the folder.
        label: name in figures and tables.
        against: the variant to compare with.
        task, training: parameters that replace the corrected ones.
        arms: the same, by arm.
        searched: whether to use the configurations that the searches found.
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
"""Settings of all switches from which every variant starts, in every environment."""

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
    """Return the variant with this name."""
    return next(v for v in VARIANTS if v.name == name)


def with_switches(variant: str, task: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters ``tasks``, ``arms`` and ``training`` of a variant.

    All switches are set to the variant's values, and exact Hessians are switched off. All other
    parameters are unchanged.

    Args:
        variant: name of the variant.
        task: name of the Rahimi–Recht task whose parameters to change.
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
