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
    """Train the first seeds of an arm anew, and keep points and momentum at every refresh."""
    from adaptive_opt.engine.trace import trace_rahimi_recht
    from adaptive_opt.tasks.load import task_data

    settings = training_parameters(arm, training)
    of_task = task_parameters(task, tasks)
    studies = studies_of(best)
    trained = [s for s in range(of_task.seeds) if studies[s % len(studies)] is not None]
    followed = trained[: AnalysisParameters(**analysis).fidelity.seeds]
    optimizer, hyperparameters = _resolved(task, arm, best, arms, settings)
    return trace_rahimi_recht(
        task_data(task, tensors),
        task=task,
        arm=arm,
        optimizer=optimizer,
        hyperparameters=hyperparameters,
        task_parameters=of_task,
        training=settings,
        seeds=followed,
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
    """Every probe and method against the exact Hessians along the trajectory."""
    from adaptive_opt.engine.trace import measure_fidelity
    from adaptive_opt.tasks.load import task_data

    settings = training_parameters(arm, training)
    _, hyperparameters = _resolved(task, arm, best, arms, settings)
    return measure_fidelity(
        task_data(task, tensors),
        trajectory,
        task=task,
        hyperparameters=hyperparameters,
        task_parameters=task_parameters(task, tasks),
        settings=AnalysisParameters(**analysis).fidelity,
    )


def _resolved(
    task: str, arm: str, best: dict[str, Any], arms: dict[str, Any], settings: Any
) -> tuple[str, list[dict[str, Any] | None]]:
    """The optimizer, and its hyperparameters as each search found them."""
    found = [
        None if v is None else resolve_arm(arm, with_values(arms, task, arm, v)[task], settings)
        for v in studies_of(best)
    ]
    optimizer = next((f["optimizer"] for f in found if f is not None), None)
    if optimizer is None:
        raise StudyError(
            f"{task}, {arm}: no search found a configuration, so there is no run to follow"
        )
    return optimizer, [None if f is None else f["hyperparameters"] for f in found]


def compare(arm: str, scale: str, *measures: Any) -> tuple[Any, str, Any, Any]:
    """Of all tasks: their table, the report, and the figure for the browser and as PNG."""
    from adaptive_opt.evidence.fidelity import fidelity_table, report
    from adaptive_opt.plots.fidelity import fidelity_figure
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly

    figure = fidelity_figure(measures)
    written = report(measures, scale, arm)
    return fidelity_table(measures), written, to_plotly(figure), to_matplotlib(figure)
