"""Nodes of ``analysis`` that make tables, figures and reports from histories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import AnalysisParameters, studies_of, target_losses


def check_runs(
    names: Sequence[str],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    scale: str,
    *data_bests_summaries: dict[str, Any],
) -> dict[str, Any]:
    """Check that every run was trained with the current parameters.

    The last arguments are the data of each of the tasks ``names``, then the search records of all
    runs, then their summaries. Returns the configurations of runs that did not fail.

    Raises:
        StudyError: a run was trained with other parameters.
    """
    from adaptive_opt.engine.provenance import identify_run
    from adaptive_opt.tasks.digest import data_digest

    runs = data_bests_summaries[len(names) :]
    bests, summaries = runs[: len(runs) // 2], runs[len(runs) // 2 :]
    best_of_run = {f"{best['task']}.{best['arm']}": best for best in bests}
    parameters = {"tasks": tasks, "arms": arms, "training": training}
    digests = {
        task: data_digest(task, tensors)
        for task, tensors in zip(names, data_bests_summaries, strict=False)
    }
    checked = {}
    for summary in summaries:
        task, arm = summary["task"], summary["arm"]
        if summary.get("failed"):
            continue
        trained = summary.get("configuration", {})
        identity = identify_run(
            task, arm, digests[task], parameters, studies_of(best_of_run[f"{task}.{arm}"])
        )
        now = json.loads(json.dumps(identity.configuration))
        changed = [k for k in {**trained, **now} if trained.get(k) != now.get(k)]
        if changed:
            changes = ", ".join(f"{k}: {trained.get(k)}, now {now.get(k)}" for k in changed)
            raise StudyError(
                f"{task}, {arm} was trained with other parameters ({changes}); run "
                f"kedro run --env={scale} --nodes=training.{task}.{arm}.train"
            )
        checked[f"{task}.{arm}"] = trained
    return checked


def tabulate_rahimi_recht(
    checked: dict[str, Any], tasks: dict[str, Any], analysis: dict[str, Any], *histories: Any
) -> tuple[Any, ...]:
    """Return tables of time to target, convergence, and decades of the final loss."""
    del checked  # an input only so that this node runs after the check
    histories = _non_empty(histories)
    from adaptive_opt.evidence import rahimi_recht as evidence
    from adaptive_opt.evidence.tables import time_to_target_table

    within = AnalysisParameters(**analysis).settled_within
    return (
        time_to_target_table(histories, target_losses(tasks)),
        evidence.convergence_table(histories, within),
        evidence.decade_table(histories),
    )


def report_rahimi_recht(
    time_to_target: Any, convergence: Any, decades: Any, analysis: dict[str, Any], scale: str
) -> str:
    """Write the report of the tables in Markdown."""
    from adaptive_opt.evidence.rahimi_recht import report

    within = AnalysisParameters(**analysis).settled_within
    return report(time_to_target, convergence, decades, scale=scale, settled_within=within)


def draw_rahimi_recht(
    name: str, checked: dict[str, Any], tasks: dict[str, Any], *histories: Any
) -> tuple[Any, Any]:
    """Plot a figure of :mod:`adaptive_opt.plots.rahimi_recht` with Plotly and Matplotlib."""
    del checked
    histories = _non_empty(histories)
    from adaptive_opt.plots import rahimi_recht as plots

    kind, _, task = name.partition(".")
    if task:
        return _plot(getattr(plots, f"{kind}_figure")(histories, task))
    if name in ("loss", "median_loss"):
        return _plot(getattr(plots, f"{name}_figure")(histories, target_losses(tasks)))
    return _plot(getattr(plots, f"{name}_figure")(histories))


def tabulate_networks(
    checked: dict[str, Any], tasks: dict[str, Any], analysis: dict[str, Any], *histories: Any
) -> tuple[Any, ...]:
    """Return time to target, outcomes, costs, and the published tables of images and texts."""
    del checked
    histories = _non_empty(histories)
    from adaptive_opt.evidence import milestones
    from adaptive_opt.evidence import networks as evidence
    from adaptive_opt.evidence.tables import time_to_target_table

    return (
        time_to_target_table(histories, target_losses(tasks)),
        evidence.outcome_table(histories),
        evidence.cost_table(histories),
        milestones.image_table(histories, AnalysisParameters(**analysis).train_accuracy_level),
        milestones.text_table(histories, target_losses(tasks)),
    )


def report_networks(*tables_scale: Any) -> str:
    """Write the report of the tables in Markdown."""
    from adaptive_opt.evidence.networks import report

    *tables, scale = tables_scale
    return report(*tables, scale=scale)


def draw_networks(
    name: str, checked: dict[str, Any], tasks: dict[str, Any], *histories: Any
) -> tuple[Any, Any]:
    """Plot a figure of :mod:`adaptive_opt.plots.networks` with Plotly and Matplotlib."""
    del checked
    histories = _non_empty(histories)
    from adaptive_opt.plots import networks as plots

    if name in plots.CLOCKS:
        return _plot(plots.loss_figure(histories, target_losses(tasks), name))
    if name in plots.FIGURES:
        return _plot(plots.FIGURES[name](histories))
    return _plot(plots.optimizer_figure(histories, name))


def _non_empty(histories: Sequence[Any]) -> tuple[Any, ...]:
    """Return the histories of the arms that did not fail."""
    return tuple(history for history in histories if len(history))


def _plot(figure: Any) -> tuple[Any, Any]:
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly

    return to_plotly(figure), to_matplotlib(figure)
