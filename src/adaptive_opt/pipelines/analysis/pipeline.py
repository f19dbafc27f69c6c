"""Pipelines for the tables, figures and report of a set of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Run, get_task

from . import nodes

RUN_PARAMETERS = ("tasks", "arms", "training", "scale")
RR_FIGURES = ("loss", "median_loss", "spectral_norm", "clipped_fraction", "decades")
RR_TASK_FIGURES = ("spread", "hessian")
NETWORK_FIGURES = (
    *("training", "valid_loss", "valid_accuracy", "valid_perplexity"),
    *("clipped_fraction", "denominator_norm"),
)
CLOCKS = ("iteration", "gradient_equivalents", "device_seconds")


def create_pipeline(study: str, runs: Iterable[Run]) -> Pipeline:
    """Create the analysis of runs on Rahimi–Recht tasks; empty if there are none.

    Args:
        study: the outputs are in the namespace ``analysis.<study>``.
        runs: the (task, arm) pairs; network tasks are ignored.
    """
    runs = [run for run in runs if get_task(run[0]).half == "rahimi_recht"]
    tasks = list(dict.fromkeys(task for task, _ in runs))
    figures = {f: f for f in RR_FIGURES}
    figures |= {f"{f}_{t}": f"{f}.{t}" for f in RR_TASK_FIGURES for t in tasks}
    return _analysis_pipeline(
        study,
        runs,
        tables=["time_to_target", "convergence", "decades"],
        tabulate=(nodes.tabulate_rahimi_recht, ["params:tasks", "params:analysis"]),
        report=(nodes.report_rahimi_recht, ["params:analysis", "params:scale"]),
        draw=nodes.draw_rahimi_recht,
        figures=figures,
    )


def create_network_pipeline(study: str, runs: Iterable[Run]) -> Pipeline:
    """Create the analysis of runs on network tasks; see :func:`create_pipeline`."""
    runs = [run for run in runs if get_task(run[0]).half == "networks"]
    figures = {f"loss_by_{clock}": clock for clock in CLOCKS}
    figures |= {f: f for f in NETWORK_FIGURES}
    return _analysis_pipeline(
        study,
        runs,
        tables=["time_to_target", "outcomes", "costs", "images", "texts"],
        tabulate=(nodes.tabulate_networks, ["params:tasks", "params:analysis"]),
        report=(nodes.report_networks, ["params:scale"]),
        draw=nodes.draw_networks,
        figures=figures,
    )


def _analysis_pipeline(
    study: str,
    runs: Sequence[Run],
    *,
    tables: list[str],
    tabulate: tuple[Callable[..., Any], list[str]],
    report: tuple[Callable[..., Any], list[str]],
    draw: Callable[..., Any],
    figures: dict[str, str],
) -> Pipeline:
    """Create the nodes that check the runs and make tables, report and figures.

    ``tabulate`` and ``report`` are node functions with their further inputs. ``figures`` maps the
    name of an output to the first argument of ``draw``.
    """
    if not runs:
        return Pipeline([])
    tasks = [get_task(name) for name in dict.fromkeys(task for task, _ in runs)]
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
    used = {*parameters, *(n for _, inputs in (tabulate, report) for n in inputs)}
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
