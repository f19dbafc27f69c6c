"""Nodes of ``analysis.fidelity``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from typing import Any

from adaptive_opt.parameters import (
    AnalysisParameters,
    resolve_arm,
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
    followed = min(AnalysisParameters(**analysis).fidelity.seeds, of_task.seeds)
    return trace_rahimi_recht(
        task_data(task, tensors),
        task=task,
        arm=arm,
        **resolve_arm(arm, with_values(arms, task, arm, best["values"])[task], settings),
        task_parameters=of_task,
        training=settings,
        seeds=range(followed),
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
    resolved = resolve_arm(arm, with_values(arms, task, arm, best["values"])[task], settings)
    return measure_fidelity(
        task_data(task, tensors),
        trajectory,
        task=task,
        hyperparameters=resolved["hyperparameters"],
        task_parameters=task_parameters(task, tasks),
        settings=AnalysisParameters(**analysis).fidelity,
    )


def compare(arm: str, scale: str, *measures: Any) -> tuple[Any, str, Any, Any]:
    """Of all tasks: their table, the report, and the figure for the browser and as PNG."""
    from adaptive_opt.evidence.fidelity import fidelity_table, report
    from adaptive_opt.plots.fidelity import fidelity_figure
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly

    figure = fidelity_figure(measures)
    written = report(measures, scale, arm)
    return fidelity_table(measures), written, to_plotly(figure), to_matplotlib(figure)
