"""Pipeline ``analysis.fidelity``: errors of curvature estimates on Rahimi–Recht tasks."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import tasks_of

from . import fidelity_nodes as nodes

PARAMETERS = ("tasks", "arms", "training", "analysis")


def create_fidelity_pipeline(study: str = "fidelity", arm: str = "ssdh") -> Pipeline:
    """Train one arm again on every Rahimi–Recht task and measure all estimates along its runs.

    Args:
        study: the outputs are in the namespace ``analysis.<study>``.
        arm: a second-order arm, trained with its best configuration.
    """
    tasks = [task.name for task in tasks_of("rahimi_recht")]
    parameters = [f"params:{p}" for p in PARAMETERS]
    functions = {f"{t}__function": f"rr_synthesis.{t}.function" for t in tasks}
    bests = {f"{t}__best": f"tuning.{t}.{arm}.best" for t in tasks}
    measures = [f"{t}_measures" for t in tasks]

    each = [
        node
        for t, output in zip(tasks, measures, strict=True)
        for inputs in [[f"{t}__function", f"{t}__best", *parameters]]
        for node in (
            Node(bound(nodes.trace, t, arm), inputs, f"{t}_trajectory", name=f"trace_{t}"),
            Node(
                bound(nodes.measure, t, arm),
                [f"{t}_trajectory", *inputs],
                output,
                name=f"measure_{t}",
            ),
        )
    ]
    outputs = ["estimates", "report", "estimates_figure", "estimates_figure_png"]
    compare = Node(bound(nodes.compare, arm), ["params:scale", *measures], outputs, name="compare")
    return Pipeline(
        [*each, compare],
        namespace=f"analysis.{study}",
        inputs={**functions, **bests},
        parameters={*parameters, "params:scale"},
        tags=["rahimi_recht"],
    )
