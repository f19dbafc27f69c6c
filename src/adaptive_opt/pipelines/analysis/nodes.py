"""Nodes of ``analysis``: histories in, tables and figures out."""

from __future__ import annotations

from typing import Any

from adaptive_opt.parameters import AnalysisParameters, TaskParameters


def _targets(tasks: dict[str, Any]) -> dict[str, float]:
    return {name: TaskParameters(**given).target for name, given in tasks.items()}


def tabulate(tasks: dict[str, Any], analysis: dict[str, Any], *histories: Any) -> tuple[Any, ...]:
    """Time to target, convergence and decades of the final loss."""
    from adaptive_opt.evidence import rahimi_recht as evidence

    within = AnalysisParameters(**analysis).settled_within
    return (
        evidence.time_to_target_table(histories, _targets(tasks)),
        evidence.convergence_table(histories, within),
        evidence.decade_table(histories),
    )


def write_report(
    time_to_target: Any, convergence: Any, decades: Any, analysis: dict[str, Any], scale: str
) -> str:
    """The tables in words and Markdown."""
    from adaptive_opt.evidence.rahimi_recht import report

    within = AnalysisParameters(**analysis).settled_within
    return report(time_to_target, convergence, decades, scale=scale, settled_within=within)


def draw(name: str, tasks: dict[str, Any], *histories: Any) -> tuple[Any, Any]:
    """One figure of :mod:`adaptive_opt.plots.rahimi_recht`, for the browser and as PNG."""
    from adaptive_opt.plots import rahimi_recht as plots
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly

    if name in tasks:
        figure = plots.spread_figure(histories, name)
    elif name in ("loss", "median_loss"):
        figure = getattr(plots, f"{name}_figure")(histories, _targets(tasks))
    else:
        figure = getattr(plots, f"{name}_figure")(histories)
    return to_plotly(figure), to_matplotlib(figure)
