"""Nodes of ``rr_synthesis``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from typing import Any

from adaptive_opt.parameters import RRFunctionParameters, TaskParameters


def make_function(task: str, given: dict[str, Any]) -> dict[str, Any]:
    """Synthesise or import a task's function; return its named tensors."""
    from adaptive_opt.tasks.rr_functions import import_function, synthesise

    p = RRFunctionParameters(**given[task])
    if p.source == "file":
        function = import_function(str(p.path), p.layers, p.hidden_dim, p.seed)
    else:
        function = synthesise(p.source, **p.model_dump(exclude={"source", "path"}))
    return function.to_tensors()


def describe_function(
    task: str, tensors: dict[str, Any], tasks: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Return condition numbers and spectra of a function, and the parameters it was made with."""
    from adaptive_opt.tasks.rr_functions import RRFunction, function_report

    loss = TaskParameters(**tasks[task]).loss
    made_with = RRFunctionParameters(**given[task]).model_dump()
    return {
        "task": task,
        "made_with": made_with,
        **function_report(RRFunction.from_tensors(tensors), loss),
    }


def draw_function(report: dict[str, Any]) -> tuple[Any, Any]:
    """Plot a function's spectra with Plotly and Matplotlib."""
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly
    from adaptive_opt.plots.rahimi_recht import function_figure

    figure = function_figure(report)
    return to_plotly(figure), to_matplotlib(figure)
