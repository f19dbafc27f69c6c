"""Pipeline ``tuning``: the searches for each (task, arm), each in its own namespace."""

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
    """Create the nodes that search and plot each (task, arm)."""
    return Pipeline([_search_pipeline(task, arm) for task, arm in runs])


@cache  # several registered pipelines share it
def _search_pipeline(task: str, arm: str) -> Pipeline:
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
    """Create the node that compares the results and costs of searches.

    Args:
        name: the outputs are in the namespace ``tuning.<name>``.
        runs: the (task, arm) pairs to compare.
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
