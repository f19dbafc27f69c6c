"""``tuning``: one search for each (task, arm), each in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Run, get_task, run_tags

from . import nodes

FIGURES = ("history", "parallel_coordinates", "importances", "slice")
PARAMETERS = ["tasks", "arms", "training", "tuning", "analysis", "scale"]


def create_pipeline(runs: Iterable[Run]) -> Pipeline:
    """The searches for each (task, arm)."""
    return Pipeline([_one(task, arm) for task, arm in runs])


@cache  # in several of the registered pipelines
def _one(task: str, arm: str) -> Pipeline:
    parameters = [f"params:{name}" for name in PARAMETERS]
    search = bound(nodes.search, task, arm)
    figures = [f"{name}_figure" for name in FIGURES]
    return Pipeline(
        [
            Node(search, ["tensors", "storage", *parameters], ["trials", "best"], name="search"),
            Node(nodes.draw, ["trials", "best"], figures, name="draw"),
        ],
        namespace=f"tuning.{task}.{arm}",
        inputs={"tensors": get_task(task).dataset, "storage": "tuning_storage"},
        parameters=set(parameters),
        tags=run_tags(task, arm),
    )


def create_report(name: str, runs: Sequence[Run]) -> Pipeline:
    """What the searches found, and cost.

    Args:
        name: of the outputs, under the namespace ``tuning.<name>``.
        runs: (task, arm) to compare.
    """
    bests = {f"{t}__{a}__best": f"tuning.{t}.{a}.best" for t, a in runs}
    trials = {f"{t}__{a}__trials": f"tuning.{t}.{a}.trials" for t, a in runs}
    outputs = ["search", "report", "best_of_n_figure", "best_of_n_figure_png"]
    node = Node(nodes.compare, ["params:scale", *bests, *trials], outputs, name="compare")
    return Pipeline(
        [node],
        namespace=f"tuning.{name}",
        inputs={**bests, **trials},
        parameters={"params:scale"},
    )
