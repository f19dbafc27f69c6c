"""Nodes of ``analysis.sharpness``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptive_opt.parameters import (
    AnalysisParameters,
    resolve_arm,
    task_parameters,
    training_parameters,
    values_of_seed,
    with_values,
)


def measure(
    task: str,
    names: Sequence[str],
    tensors: dict[str, Any],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    analysis: dict[str, Any],
    *snapshots_best: dict[str, Any],
) -> Any:
    """Measure top eigenvalues and stability at the snapshots of all arms.

    The last arguments are the snapshots of each of the arms ``names``, then their search records.
    """
    from adaptive_opt.engine.sharpness import measure_sharpness
    from adaptive_opt.tasks.load import task_data

    snapshots, bests = snapshots_best[: len(names)], snapshots_best[len(names) :]
    resolved = {}
    saved = {arm: tensors for arm, tensors in zip(names, snapshots, strict=True) if tensors}
    for arm, best in zip(names, bests, strict=True):
        if arm not in saved:  # the arm failed
            continue
        values = with_values(arms, task, arm, values_of_seed(best))[task]
        resolved[arm] = resolve_arm(arm, values, training_parameters(arm, training))
    return measure_sharpness(
        task_data(task, tensors),
        saved,
        resolved,
        task=task,
        task_parameters=task_parameters(task, tasks),
        training=training_parameters(names[0], training),
        settings=AnalysisParameters(**analysis).sharpness,
    )


def draw(*measures: Any) -> tuple[Any, ...]:
    """Return the table, and the figures with Plotly and Matplotlib."""
    from adaptive_opt.evidence.curvature import curvature_table
    from adaptive_opt.plots.curvature import sharpness_figure, stability_figure
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly

    table = curvature_table(measures).dropna(axis="columns", how="all")
    drawn: list[Any] = []
    for figure in (sharpness_figure(table), stability_figure(table)):
        drawn += [to_plotly(figure), to_matplotlib(figure)]
    return (table, *drawn)
