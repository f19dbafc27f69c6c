"""The pipelines that ``kedro run --pipelines=…`` knows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from kedro.pipeline import Pipeline

from adaptive_opt.pipelines import analysis, data, rr_synthesis, training, tuning
from adaptive_opt.pipelines.selection import StudyPipeline
from adaptive_opt.study import (
    EVERY_TASK,
    TASKS,
    Run,
    arm_names,
    default_arms,
    get_arm,
    get_task,
    published_arms,
    runs_on,
    tasks_of,
)

CUSTOM = ("sgdm", "adam", "ssdh", "custom")
"""Arms of the pipeline of that name."""

RR_FIGURES = ("median_loss", "decades")
NETWORK_FIGURES = ("loss_by_iteration", "valid_loss")
SHARPNESS_FIGURES = ("sharpness", "stability")
"""Figures of other parts that a report shows."""


def register_pipelines() -> dict[str, Pipeline]:
    """All of them, without Kedro's advice against the names of other namespaces' results."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One or more dataset names contain '.'")
        return _pipelines()


def _pipelines() -> dict[str, Pipeline]:
    """The parts of the study, and whole ones.

    Returns:
        ``data``, ``rr_synthesis``, ``tuning`` and ``training`` (the whole grid), ``analysis``
        (of the default study); ``__default__``: all of these for the default arms, and for the
        placebos of SSDH except at condition 29, with the verdict and the report;
        ``ladder``: likewise with the placebos
        of SADH too, and also by the mean squared error; ``all``: for every arm;
        ``zoo``: for the default arms and those of pytorch_optimizer;
        ``custom``: for an optimizer of the reader's own beside SGDM, Adam and SSDH, on
        Rahimi–Recht;
        ``fidelity``: what curvature estimates are worth on Rahimi–Recht, and the search that it
        needs;
        ``evening``: what ``kedro run --env=evening`` makes: the default arms, AdamW and NAdam, with
        the placebos of SSDH, and on Rahimi–Recht those of SADH too;
        ``curvature``: spectra of Hessians along training, with the runs of the published arms;
        ``ledger``: what each thing that the original did otherwise changes.

        Tags choose a smaller study of the whole ones (:class:`.selection.StudyPipeline`).
    """
    every, default = arm_names(), default_arms()
    placebos = [arm for arm in arm_names("ladder") if arm.startswith("ssdh_")]
    # At condition 29 the parents are off the scale, and so are their placebos.
    laddered = [task for task in TASKS if task.name != "rr_cond29"]
    concluded = runs_on(default) + runs_on(placebos, laddered)
    grid = runs_on(every, EVERY_TASK)
    wide = [*default, "adamw", "nadam", *placebos]
    ladders = [*wide, *(arm for arm in arm_names("ladder") if arm.startswith("sadh_"))]
    evening = runs_on(ladders, tasks_of("rahimi_recht")) + runs_on(wide, tasks_of("images", "text"))
    return {
        "data": data.create_pipeline(),
        "rr_synthesis": rr_synthesis.create_pipeline(),
        "tuning": tuning.create_pipeline(grid),
        "training": training.create_pipeline(grid),
        "analysis": _concluded("", concluded, "kedro run"),
        "ladder": _study("ladder", runs_on([*default, *arm_names("ladder")], EVERY_TASK)),
        "all": _study("all", runs_on(every)),
        "evening": StudyPipeline("", evening, "kedro run --env=evening", _whole),
        "fidelity": _fidelity(),
        "curvature": _curvature(published_arms()),
        "custom": _study("custom", runs_on(CUSTOM, tasks_of("rahimi_recht"))),
        "ledger": _ledger(),
        "zoo": _study("zoo", runs_on([*default, *arm_names("zoo")])),
        "__default__": StudyPipeline("", concluded, "kedro run", _whole),
    }


def _study(name: str, runs: Sequence[Run]) -> StudyPipeline:
    """Some runs searched, trained and judged, in outputs of their own."""
    return StudyPipeline(f"{name}_", runs, f"kedro run --pipelines={name}", _whole)


def _whole(prefix: str, runs: Sequence[Run], command: str) -> Pipeline:
    """Everything from the data to the report for some runs, and nothing else."""
    learnt = {get_task(task).learns or task for task, _ in runs}
    made = tuning.create_pipeline(runs) + training.create_pipeline(runs)
    return _sources(learnt) + made + _concluded(prefix, runs, command)


def _sources(tasks: Iterable[str]) -> Pipeline:
    """The data and functions that some tasks learn."""
    sources = data.create_pipeline() + rr_synthesis.create_pipeline()
    return sources.only_nodes_with_tags(*tasks)


def _concluded(prefix: str, runs: Sequence[Run], command: str) -> Pipeline:
    """Tables, figures, verdict and report of some runs.

    Args:
        prefix: of the names of outputs.
        runs: (task, arm).
        command: that makes them, for the report.
    """
    # Published tables and sharpness are of optimizers; placebos are in the verdict.
    drawn = [run for run in runs if get_arm(run[1]).kind != "ladder"]
    parts = [tuning.create_report(f"{prefix}search", runs)]
    figures = [f"tuning.{prefix}search.best_of_n_figure"]
    if own := [run for run in drawn if get_task(run[0]).half == "rahimi_recht"]:
        parts.append(analysis.create_pipeline(f"{prefix}rahimi_recht", own))
        figures += [f"analysis.{prefix}rahimi_recht.{name}_figure" for name in RR_FIGURES]
    if own := [run for run in drawn if get_task(run[0]).half == "networks"]:
        parts.append(analysis.create_network_pipeline(f"{prefix}networks", own))
        figures += [f"analysis.{prefix}networks.{name}_figure" for name in NETWORK_FIGURES]
        parts.append(analysis.create_sharpness_pipeline(own, f"{prefix}sharpness"))
        figures += [f"analysis.{prefix}sharpness.{name}_figure" for name in SHARPNESS_FIGURES]
    verdict = analysis.create_verdict_pipeline(f"{prefix}verdict", runs, figures, command)
    return sum(parts, verdict)


def _ledger() -> Pipeline:
    """The replication ledger, with the functions and searches that it takes."""
    searches = tuning.create_pipeline(runs_on(published_arms()))
    needed = searches.to_outputs(*sorted(analysis.searched_configurations()))
    return rr_synthesis.create_pipeline() + needed + analysis.create_ledger_pipeline()


def _curvature(arms: Sequence[str]) -> Pipeline:
    """At the weights that the runs of some arms left, with the runs."""
    runs = runs_on(arms)
    made = tuning.create_pipeline(runs) + training.create_pipeline(runs)
    sources = data.create_pipeline() + rr_synthesis.create_pipeline()
    return sources + made + analysis.create_curvature_pipeline(arms)


def _fidelity(arm: str = "ssdh") -> Pipeline:
    """Along the runs of one arm, with all that they need."""
    search = tuning.create_pipeline(runs_on([arm], tasks_of("rahimi_recht")))
    follow = analysis.create_fidelity_pipeline(arm=arm)
    return rr_synthesis.create_pipeline() + search + follow
