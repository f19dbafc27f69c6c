"""The pipelines that ``kedro run --pipelines=…`` knows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from kedro.pipeline import Pipeline

from adaptive_opt.pipelines import analysis, data, rr_synthesis, training, tuning
from adaptive_opt.study import EVERY_TASK, TASKS, Task, arm_names, published_arms, tasks_of

REPORTED = (
    *(f"analysis.rahimi_recht.{name}_figure" for name in ("median_loss", "decades")),
    *(f"analysis.networks.{name}_figure" for name in ("loss_by_iteration", "valid_loss")),
    *(f"analysis.sharpness.{name}_figure" for name in ("sharpness", "stability")),
    "tuning.search.best_of_n_figure",
)
"""Figures of other parts that the report of the default study shows."""


def register_pipelines() -> dict[str, Pipeline]:
    """All of them, without Kedro's advice against the names of other namespaces' results."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One or more dataset names contain '.'")
        return _pipelines()


def _pipelines() -> dict[str, Pipeline]:
    """The parts of the study, and whole ones.

    Returns:
        ``data``, ``rr_synthesis``, ``tuning`` and ``training`` (the whole grid), ``analysis``
        (of the default study); ``__default__``: all of these for the published arms and the
        placebos of SSDH, with the verdict and the report; ``ladder``: likewise with the placebos
        of SADH too, and also by the mean squared error; ``all``: for every arm;
        ``zoo``: for the published arms and those of pytorch_optimizer;
        ``custom``: for an optimizer of the reader's own beside SGDM, Adam and SSDH, on
        Rahimi–Recht;
        ``fidelity``: what curvature estimates are worth on Rahimi–Recht, and the search that it
        needs;
        ``curvature``: spectra of Hessians along training, with the runs of the published arms;
        ``ledger``: what each thing that the original did otherwise changes.
    """
    sources = data.create_pipeline() + rr_synthesis.create_pipeline()

    def study(arms: Iterable[str], name: str, tasks: Sequence[Task] = TASKS) -> Pipeline:
        chosen = list(arms)
        searches = tuning.create_pipeline(chosen, tasks)
        searches += tuning.create_report(f"{name}_search", chosen, tasks)
        verdict = analysis.create_verdict_pipeline(
            f"{name}_verdict", chosen, tasks, command=f"kedro run --pipelines={name}"
        )
        runs = training.create_pipeline(chosen, tasks)
        return Pipeline([sources, searches, runs, _tables(chosen, f"{name}_"), verdict])

    published, every = published_arms(), arm_names()
    default = [*published, *(arm for arm in arm_names("ladder") if arm.startswith("ssdh_"))]
    ladder = [*published, *arm_names("ladder")]
    concluded = (
        tuning.create_report("search", default)
        + _tables(published)
        + analysis.create_sharpness_pipeline(published)
        + analysis.create_verdict_pipeline("verdict", default, figures=REPORTED)
    )
    made = tuning.create_pipeline(default) + training.create_pipeline(default)
    return {
        "data": data.create_pipeline(),
        "rr_synthesis": rr_synthesis.create_pipeline(),
        "tuning": tuning.create_pipeline(every, EVERY_TASK),
        "training": training.create_pipeline(every, EVERY_TASK),
        "analysis": concluded,
        "ladder": study(ladder, "ladder", EVERY_TASK),
        "all": study(every, "all"),
        "fidelity": _fidelity(),
        "curvature": _curvature(sources, published),
        "custom": _custom(),
        "ledger": _ledger(),
        "zoo": study([*published, *arm_names("zoo")], "zoo"),
        "__default__": sources + made + concluded,
    }


def _custom() -> Pipeline:
    """The arm ``custom`` searched, trained and judged beside three others."""
    arms, tasks = ["sgdm", "adam", "ssdh", "custom"], tasks_of("rahimi_recht")
    parts = [
        rr_synthesis.create_pipeline(),
        tuning.create_pipeline(arms, tasks),
        training.create_pipeline(arms, tasks),
        tuning.create_report("custom_search", arms, tasks),
        analysis.create_pipeline("custom_rahimi_recht", arms),
        analysis.create_verdict_pipeline(
            "custom_verdict", arms, tasks, command="kedro run --pipelines=custom"
        ),
    ]
    return Pipeline(parts)


def _ledger() -> Pipeline:
    """The replication ledger, with the functions and searches that it takes."""
    searches = tuning.create_pipeline(published_arms())
    needed = searches.to_outputs(*sorted(analysis.searched_configurations()))
    return rr_synthesis.create_pipeline() + needed + analysis.create_ledger_pipeline()


def _tables(arms: Iterable[str], prefix: str = "") -> Pipeline:
    """Tables and figures of both halves of the study, each under a name of its own."""
    arms = list(arms)
    return analysis.create_pipeline(
        f"{prefix}rahimi_recht", arms
    ) + analysis.create_network_pipeline(f"{prefix}networks", arms)


def _curvature(sources: Pipeline, arms: Sequence[str]) -> Pipeline:
    """At the weights that the runs of some arms left, with the runs."""
    runs = tuning.create_pipeline(arms) + training.create_pipeline(arms)
    return sources + runs + analysis.create_curvature_pipeline(arms)


def _fidelity(arm: str = "ssdh") -> Pipeline:
    """Along the runs of one arm, with all that they need."""
    search = tuning.create_pipeline([arm]).only_nodes_with_tags("rahimi_recht")
    follow = analysis.create_fidelity_pipeline(arm=arm)
    return rr_synthesis.create_pipeline() + search + follow
