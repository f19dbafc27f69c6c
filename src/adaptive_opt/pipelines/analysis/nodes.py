"""Nodes of ``analysis``: histories in, tables and figures out."""

from __future__ import annotations

import json
from typing import Any

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import AnalysisParameters, TaskParameters, configuration
from adaptive_opt.study import TASKS


def _targets(tasks: dict[str, Any]) -> dict[str, float]:
    return {name: TaskParameters(**given).target_loss for name, given in tasks.items()}


def check_runs(
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    scale: str,
    *functions_and_summaries: dict[str, Any],
) -> dict[str, Any]:
    """The configuration of every run, or an error if one was trained with another.

    The last arguments are the function of each task, in the order of the grid, and then the
    summaries of the runs.
    """
    from adaptive_opt.tasks.rr_functions import RRFunction

    parameters = {"tasks": tasks, "arms": arms, "training": training}
    digests = {
        task.name: RRFunction.from_tensors(tensors).digest()
        for task, tensors in zip(TASKS, functions_and_summaries, strict=False)
    }
    found = {}
    for summary in functions_and_summaries[len(TASKS) :]:
        task, arm, then = summary["task"], summary["arm"], summary["configuration"]
        now = {"function": digests[task], **configuration(task, arm, parameters)}
        now = json.loads(json.dumps(now))
        changed = [k for k in {**then, **now} if then.get(k) != now.get(k)]
        if changed:
            said = ", ".join(f"{k}: {then.get(k)}, now {now.get(k)}" for k in changed)
            raise StudyError(
                f"{task}, {arm} was trained with other parameters ({said}); run "
                f"kedro run --env={scale} --pipelines=training --tags={task}"
            )
        found[f"{task}.{arm}"] = then
    return found


def tabulate(
    checked: dict[str, Any], tasks: dict[str, Any], analysis: dict[str, Any], *histories: Any
) -> tuple[Any, ...]:
    """Time to target, convergence and decades of the final loss."""
    del checked  # there before this node runs, which is all that is asked of it
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


def draw(
    name: str, checked: dict[str, Any], tasks: dict[str, Any], *histories: Any
) -> tuple[Any, Any]:
    """One figure of :mod:`adaptive_opt.plots.rahimi_recht`, for the browser and as PNG."""
    del checked
    from adaptive_opt.plots import rahimi_recht as plots
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly

    if name in tasks:
        figure = plots.spread_figure(histories, name)
    elif name in ("loss", "median_loss"):
        figure = getattr(plots, f"{name}_figure")(histories, _targets(tasks))
    else:
        figure = getattr(plots, f"{name}_figure")(histories)
    return to_plotly(figure), to_matplotlib(figure)
