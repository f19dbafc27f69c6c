"""The pipelines of ``kedro run --pipelines=…``."""

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
    placebos,
    published_arms,
    runs_on,
    tasks_of,
)

CUSTOM_ARMS = ("sgdm", "adam", "ssdh", "custom")
"""Arms of the pipeline ``custom``."""

MATRIX_ARMS = ("adahessian", "muon", "soap", "shampoo")
"""Arms of pytorch_optimizer in the pipeline ``ladder``: AdaHessian, and optimizers whose step sizes
are matrices. Its PSGD (Kron) is left out: NumPy's global random state decides when it balances its
factors, and no checkpoint saves that state."""

# Figures of other pipelines in the report of a study.
RR_FIGURES = ("median_loss", "decades")
NETWORK_FIGURES = ("loss_by_iteration", "valid_loss")
SHARPNESS_FIGURES = ("sharpness", "stability")


def register_pipelines() -> dict[str, Pipeline]:
    """Create all pipelines, without Kedro's warning about dots in dataset names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One or more dataset names contain '.'")
        return _pipelines()


def _pipelines() -> dict[str, Pipeline]:
    """Create all pipelines by name.

    Returns:
        Parts of the study:

        - ``data``, ``rr_synthesis``, ``tuning``, ``training``: these parts for the whole grid;
        - ``analysis``: tables, figures, verdict and report of the default study.

        Whole studies, from the data to the report. Their tags select smaller studies
        (:class:`.selection.StudyPipeline`):

        - ``__default__``: the default arms, and the placebos of SSDH except at condition 29;
        - ``ladder``: the default arms and every rung of the ladders of SSDH and SADH, also with
          the mean squared error; on networks also optimizers with matrices of pytorch_optimizer;
        - ``all``: every arm except the zoo;
        - ``zoo``: the default arms and those of pytorch_optimizer;
        - ``custom``: the user's own optimizer, SGDM, Adam and SSDH, on Rahimi–Recht;
        - ``evening``: the study of ``kedro run --env=evening``: the default arms, AdamW, NAdam,
          the placebos of SSDH, and on Rahimi–Recht those of SADH.

        Other analyses, with the searches and runs that they need:

        - ``fidelity``: errors of curvature estimates on Rahimi–Recht;
        - ``curvature``: Hessian spectra during training of the published arms;
        - ``ledger``: effect of each difference from the original study.
    """
    every, default = arm_names(), default_arms()
    # At condition 29, the speed-ups of SSDH and its placebos exceed the measurable range.
    placebo_tasks = [task for task in TASKS if task.name != "rr_cond29"]
    default_runs = runs_on(default) + runs_on(placebos("ssdh"), placebo_tasks)
    grid = runs_on(every, EVERY_TASK)
    wide = [*default, "adamw", "nadam", *placebos("ssdh")]
    ladders = [*wide, *placebos("sadh")]
    evening = runs_on(ladders, tasks_of("rahimi_recht")) + runs_on(wide, tasks_of("images", "text"))
    ladder = runs_on([*default, *arm_names("ladder")], EVERY_TASK)
    ladder += runs_on(MATRIX_ARMS, tasks_of("images", "text"))
    return {
        "data": data.create_pipeline(),
        "rr_synthesis": rr_synthesis.create_pipeline(),
        "tuning": tuning.create_pipeline(grid),
        "training": training.create_pipeline(grid),
        "analysis": _analysis("", default_runs, "kedro run"),
        "ladder": StudyPipeline("ladder_", ladder, "kedro run --pipelines=ladder", _upward_study),
        "all": _study("all", runs_on(every)),
        "evening": StudyPipeline("", evening, "kedro run --env=evening", _whole_study),
        "fidelity": _fidelity(),
        "curvature": _curvature(published_arms()),
        "custom": _study("custom", runs_on(CUSTOM_ARMS, tasks_of("rahimi_recht"))),
        "ledger": _ledger(),
        "zoo": _study("zoo", runs_on([*default, *arm_names("zoo")])),
        "__default__": StudyPipeline("", default_runs, "kedro run", _whole_study),
    }


def _study(name: str, runs: Sequence[Run]) -> StudyPipeline:
    """Create a whole study of some runs, whose outputs have the study's name as a prefix."""
    return StudyPipeline(f"{name}_", runs, f"kedro run --pipelines={name}", _whole_study)


def _upward_study(prefix: str, runs: Sequence[Run], command: str) -> Pipeline:
    """Create a whole study with the ladder upwards in its report."""
    return _whole_study(prefix, runs, command, upward=True)


def _whole_study(
    prefix: str, runs: Sequence[Run], command: str, *, upward: bool = False
) -> Pipeline:
    """Create all nodes from the data to the report of some runs."""
    source_tasks = {get_task(task).learns or task for task, _ in runs}
    trained = tuning.create_pipeline(runs) + training.create_pipeline(runs)
    return _sources(source_tasks) + trained + _analysis(prefix, runs, command, upward=upward)


def _sources(tasks: Iterable[str]) -> Pipeline:
    """Create the nodes for the data and functions of some tasks."""
    sources = data.create_pipeline() + rr_synthesis.create_pipeline()
    return sources.only_nodes_with_tags(*tasks)


def _analysis(prefix: str, runs: Sequence[Run], command: str, *, upward: bool = False) -> Pipeline:
    """Create the nodes for tables, figures, verdict and report of some runs.

    Args:
        prefix: prefix of the names of outputs.
        runs: the (task, arm) pairs.
        command: the command that runs the study, for the report.
        upward: see :func:`.analysis.create_verdict_pipeline`.
    """
    # Placebos are only in the verdict, not in the tables and figures of optimizers.
    optimizers = [run for run in runs if get_arm(run[1]).kind != "ladder"]
    parts = [tuning.create_report(f"{prefix}search", runs)]
    figures = [f"tuning.{prefix}search.best_of_n_figure"]
    if half := [run for run in optimizers if get_task(run[0]).half == "rahimi_recht"]:
        parts.append(analysis.create_pipeline(f"{prefix}rahimi_recht", half))
        figures += [f"analysis.{prefix}rahimi_recht.{name}_figure" for name in RR_FIGURES]
    if half := [run for run in optimizers if get_task(run[0]).half == "networks"]:
        parts.append(analysis.create_network_pipeline(f"{prefix}networks", half))
        figures += [f"analysis.{prefix}networks.{name}_figure" for name in NETWORK_FIGURES]
        parts.append(analysis.create_sharpness_pipeline(half, f"{prefix}sharpness"))
        figures += [f"analysis.{prefix}sharpness.{name}_figure" for name in SHARPNESS_FIGURES]
    verdict = analysis.create_verdict_pipeline(
        f"{prefix}verdict", runs, figures, command, upward=upward
    )
    return sum(parts, verdict)


def _ledger() -> Pipeline:
    """Create the replication ledger, with the functions and searches that it needs."""
    searches = tuning.create_pipeline(runs_on(published_arms()))
    needed = searches.to_outputs(*sorted(analysis.searched_configurations()))
    return rr_synthesis.create_pipeline() + needed + analysis.create_ledger_pipeline()


def _curvature(arms: Sequence[str]) -> Pipeline:
    """Create the curvature analysis of some arms, with their searches and runs."""
    runs = runs_on(arms)
    trained = tuning.create_pipeline(runs) + training.create_pipeline(runs)
    sources = data.create_pipeline() + rr_synthesis.create_pipeline()
    return sources + trained + analysis.create_curvature_pipeline(arms)


def _fidelity(arm: str = "ssdh") -> Pipeline:
    """Create the fidelity analysis of one arm, with the functions and searches that it needs."""
    search = tuning.create_pipeline(runs_on([arm], tasks_of("rahimi_recht")))
    fidelity = analysis.create_fidelity_pipeline(arm=arm)
    return rr_synthesis.create_pipeline() + search + fidelity
