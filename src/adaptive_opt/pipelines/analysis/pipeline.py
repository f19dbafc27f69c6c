"""``analysis``: tables, figures and the report of a set of arms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Task, arms_on, tasks_of

from . import nodes

RUN_PARAMETERS = ("tasks", "arms", "training", "scale")
RR_FIGURES = ("loss", "median_loss", "spectral_norm", "clipped_fraction", "decades")
RR_TASK_FIGURES = ("spread", "hessian")
NETWORK_FIGURES = (
    *("training", "valid_loss", "valid_accuracy", "valid_perplexity"),
    *("clipped_fraction", "denominator_norm"),
)
CLOCKS = ("iteration", "gradient_equivalents", "device_seconds")


def create_pipeline(study: str, arms: Iterable[str]) -> Pipeline:
    """Compare some arms on every Rahimi–Recht task.

    Args:
        study: names the outputs, under the namespace ``analysis.<study>``.
        arms: what to compare.
    """
    tasks = tasks_of("rahimi_recht")
    figures = {f: f for f in RR_FIGURES}
    figures |= {f"{f}_{t.name}": f"{f}.{t.name}" for f in RR_TASK_FIGURES for t in tasks}
    return _study(
        study,
        tasks,
        list(arms),
        tables=["time_to_target", "convergence", "decades"],
        tabulate=(nodes.tabulate_rahimi_recht, ["params:tasks", "params:analysis"]),
        report=(nodes.report_rahimi_recht, ["params:analysis", "params:scale"]),
        draw=nodes.draw_rahimi_recht,
        figures=figures,
    )


def create_network_pipeline(study: str, arms: Iterable[str]) -> Pipeline:
    """The same on every task with a network."""
    figures = {f"loss_by_{clock}": clock for clock in CLOCKS}
    figures |= {f: f for f in NETWORK_FIGURES}
    return _study(
        study,
        tasks_of("images", "text"),
        list(arms),
        tables=["time_to_target", "outcomes", "costs", "images", "texts"],
        tabulate=(nodes.tabulate_networks, ["params:tasks", "params:analysis"]),
        report=(nodes.report_networks, ["params:scale"]),
        draw=nodes.draw_networks,
        figures=figures,
    )


def _study(
    study: str,
    tasks: Sequence[Task],
    arms: Sequence[str],
    *,
    tables: list[str],
    tabulate: tuple[Callable[..., Any], list[str]],
    report: tuple[Callable[..., Any], list[str]],
    draw: Callable[..., Any],
    figures: dict[str, str],
) -> Pipeline:
    """Check the runs, then tables, the report of the tables, and figures by output name."""
    runs = [(task.name, arm) for task in tasks for arm in arms_on(task, arms)]
    histories = {f"{t}__{a}": f"training.{t}.{a}.history" for t, a in runs}
    summaries = {f"{t}__{a}__summary": f"training.{t}.{a}.summary" for t, a in runs}
    bests = {f"{t}__{a}__best": f"tuning.{t}.{a}.best" for t, a in runs}
    data = {f"{t.name}__data": t.dataset for t in tasks}
    check = bound(nodes.check_runs, [t.name for t in tasks])
    parameters = [f"params:{p}" for p in RUN_PARAMETERS]
    drawings = [
        Node(
            bound(draw, name),
            ["runs", "params:tasks", *histories],
            [f"{output}_figure", f"{output}_figure_png"],
            name=f"draw_{output}",
        )
        for output, name in figures.items()
    ]
    used = {*parameters, *(n for _, given in (tabulate, report) for n in given)}
    return Pipeline(
        [
            Node(check, [*parameters, *data, *bests, *summaries], "runs", name="check"),
            Node(tabulate[0], ["runs", *tabulate[1], *histories], tables, name="tabulate"),
            Node(report[0], [*tables, *report[1]], "report", name="report"),
            *drawings,
        ],
        namespace=f"analysis.{study}",
        inputs={**histories, **data, **bests, **summaries},
        parameters=used,
        tags=[tasks[0].half],
    )
