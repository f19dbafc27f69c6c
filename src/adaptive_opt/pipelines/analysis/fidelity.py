"""``analysis.fidelity``: curvature estimates against the exact diagonal, on Rahimi–Recht."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import tasks_of

from . import fidelity_nodes as nodes

PARAMETERS = ("tasks", "arms", "training", "analysis")


def create_fidelity_pipeline(study: str = "fidelity", arm: str = "ssdh") -> Pipeline:
    """Follow one arm on every Rahimi–Recht task and measure each probe's estimates there.

    Args:
        study: names the outputs, under the namespace ``analysis.<study>``.
        arm: whose best configuration is trained anew; a second-order one.
    """
    tasks = [task.name for task in tasks_of("rahimi_recht")]
    parameters = [f"params:{p}" for p in PARAMETERS]
    functions = {f"{t}__function": f"rr_synthesis.{t}.function" for t in tasks}
    bests = {f"{t}__best": f"tuning.{t}.{arm}.best" for t in tasks}
    measures = [f"{t}_measures" for t in tasks]

    each = [
        node
        for t, measured in zip(tasks, measures, strict=True)
        for given in [[f"{t}__function", f"{t}__best", *parameters]]
        for node in (
            Node(bound(nodes.trace, t, arm), given, f"{t}_trajectory", name=f"trace_{t}"),
            Node(
                bound(nodes.measure, t, arm),
                [f"{t}_trajectory", *given],
                measured,
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
