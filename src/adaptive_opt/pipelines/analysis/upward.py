"""Pipeline ``analysis.upward``: shares of the whole matrix, and the frontier of speed-up and price.

It takes the record and the calibrations of a verdict (:mod:`.verdict`).
"""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Run

from . import verdict_nodes as nodes


def create_upward_pipeline(study: str, verdict: str, runs: Sequence[Run]) -> Pipeline:
    """Create the nodes for the ladder upwards.

    Args:
        study: the outputs are in the namespace ``analysis.<study>``.
        verdict: name of the study with the verdict on the same runs.
        runs: its (task, arm) pairs.
    """
    lengths = {f"{t}__{a}__lengths": f"training.{t}.{a}.lengths" for t, a in runs}
    bests = {f"{t}__{a}__best": f"tuning.{t}.{a}.best" for t, a in runs}
    summaries = {f"{t}__{a}__summary": f"training.{t}.{a}.summary" for t, a in runs}
    tasks = list(dict.fromkeys(task for task, _ in runs))
    prices = {f"{task}_prices": f"analysis.{verdict}.{task}_prices" for task in tasks}
    document = {"document": f"analysis.{verdict}.document"}
    parameters = ["params:tasks", "params:analysis"]
    return Pipeline(
        [
            Node(
                bound(nodes.measure_shares, list(runs)),
                [*parameters, *lengths, *bests, *summaries, *prices],
                "shares",
                name="measure_shares",
            ),
            Node(
                nodes.draw_frontier,
                ["document", "shares"],
                ["frontier_figure", "frontier_figure_png", "report"],
                name="draw_frontier",
            ),
        ],
        namespace=f"analysis.{study}",
        inputs={**lengths, **bests, **summaries, **prices, **document},
        parameters=set(parameters),
    )
