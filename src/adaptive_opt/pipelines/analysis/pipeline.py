"""``analysis``: tables, figures and the report of a set of arms."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline

from adaptive_opt.study import TASKS

from . import nodes

RUN_PARAMETERS = ("tasks", "arms", "training", "scale")
FIGURES = ("loss", "median_loss", "spectral_norm", "clipped_fraction")


def create_pipeline(study: str, arms: Iterable[str]) -> Pipeline:
    """Compare some arms on every task.

    Args:
        study: names the outputs, under the namespace ``analysis.<study>``.
        arms: what to compare.
    """
    runs = [(task.name, arm) for task in TASKS for arm in arms]
    histories = {f"{t}__{a}": f"training.{t}.{a}.history" for t, a in runs}
    functions = {f"{t.name}__function": f"rr_synthesis.{t.name}.function" for t in TASKS}
    summaries = {f"{t}__{a}__summary": f"training.{t}.{a}.summary" for t, a in runs}
    # One figure for each of the first names over all tasks, and one for each task by itself.
    figures = [
        Node(
            update_wrapper(partial(nodes.draw, name), nodes.draw),
            ["runs", "params:tasks", *histories],
            [f"{output}_figure", f"{output}_figure_png"],
            name=f"draw_{output}",
        )
        for name, output in [
            *((f, f) for f in FIGURES),
            *((t.name, f"spread_{t.name}") for t in TASKS),
        ]
    ]
    tables = ["time_to_target", "convergence", "decades"]
    return Pipeline(
        [
            Node(
                nodes.check_runs,
                [*(f"params:{p}" for p in RUN_PARAMETERS), *functions, *summaries],
                "runs",
                name="check",
            ),
            Node(
                nodes.tabulate,
                ["runs", "params:tasks", "params:analysis", *histories],
                tables,
                name="tabulate",
            ),
            Node(
                nodes.write_report,
                [*tables, "params:analysis", "params:scale"],
                "report",
                name="report",
            ),
            *figures,
        ],
        namespace=f"analysis.{study}",
        inputs={**histories, **functions, **summaries},
        parameters={f"params:{p}" for p in (*RUN_PARAMETERS, "analysis")},
    )
