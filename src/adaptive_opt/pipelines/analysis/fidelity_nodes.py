"""Nodes of ``analysis.fidelity``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from typing import Any

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import (
    AnalysisParameters,
    resolve_arm,
    studies_of,
    task_parameters,
    training_parameters,
    with_values,
)


def trace(
    task: str,
    arm: str,
    tensors: dict[str, Any],
    best: dict[str, Any],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    analysis: dict[str, Any],
) -> dict[str, Any]:
    """Train the first seeds of an arm again; save weights and momentum at every refresh."""
    from adaptive_opt.engine.trace import trace_rahimi_recht
    from adaptive_opt.tasks.load import task_data

    settings = training_parameters(arm, training)
    task_settings = task_parameters(task, tasks)
    studies = studies_of(best)
    trained = [s for s in range(task_settings.seeds) if studies[s % len(studies)] is not None]
    seeds = trained[: AnalysisParameters(**analysis).fidelity.seeds]
    optimizer, hyperparameters = _resolve(task, arm, best, arms, settings)
    return trace_rahimi_recht(
        task_data(task, tensors),
        task=task,
        arm=arm,
        optimizer=optimizer,
        hyperparameters=hyperparameters,
        task_parameters=task_settings,
        training=settings,
        seeds=seeds,
    )


def measure(
    task: str,
    arm: str,
    trajectory: dict[str, Any],
    tensors: dict[str, Any],
    best: dict[str, Any],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    analysis: dict[str, Any],
) -> Any:
    """Compare every probe and method with the exact Hessians along the trajectory."""
    from adaptive_opt.engine.trace import measure_fidelity
    from adaptive_opt.tasks.load import task_data

    settings = training_parameters(arm, training)
    _, hyperparameters = _resolve(task, arm, best, arms, settings)
    return measure_fidelity(
        task_data(task, tensors),
        trajectory,
        task=task,
        hyperparameters=hyperparameters,
        task_parameters=task_parameters(task, tasks),
        settings=AnalysisParameters(**analysis).fidelity,
    )


def _resolve(
    task: str, arm: str, best: dict[str, Any], arms: dict[str, Any], settings: Any
) -> tuple[str, list[dict[str, Any] | None]]:
    """Return the optimizer, and its hyperparameters from each search (None if it failed)."""
    found = [
        None if v is None else resolve_arm(arm, with_values(arms, task, arm, v)[task], settings)
        for v in studies_of(best)
    ]
    optimizer = next((f["optimizer"] for f in found if f is not None), None)
    if optimizer is None:
        raise StudyError(
            f"{task}, {arm}: no search found a configuration, so there is no run to analyse; raise "
            f"tuning.tasks.{task}.budget and search again"
        )
    return optimizer, [None if f is None else f["hyperparameters"] for f in found]


def compare(arm: str, scale: str, *measures: Any) -> tuple[Any, str, Any, Any]:
    """Compare all tasks: table, report, and figure with Plotly and Matplotlib."""
    from adaptive_opt.evidence.fidelity import fidelity_table, report
    from adaptive_opt.plots.fidelity import fidelity_figure
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly

    figure = fidelity_figure(measures)
    text = report(measures, scale, arm)
    return fidelity_table(measures), text, to_plotly(figure), to_matplotlib(figure)
