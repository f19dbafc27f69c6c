"""``tuning``: one search for each (task, arm), each in a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import TASKS, Task, arms_on, get_arm

from . import nodes

FIGURES = ("history", "parallel_coordinates", "importances", "slice")
PARAMETERS = ["tasks", "arms", "training", "tuning", "scale"]


def create_pipeline(arms: Iterable[str], tasks: Sequence[Task] = TASKS) -> Pipeline:
    """The search for some arms on those of some tasks that they can be trained on."""
    chosen = list(arms)
    runs = [(task, arm) for task in tasks for arm in arms_on(task, chosen)]
    return Pipeline([_one(task, arm) for task, arm in runs])


@cache  # in several of the registered pipelines
def _one(task: Task, arm: str) -> Pipeline:
    parameters = [f"params:{name}" for name in PARAMETERS]
    search = bound(nodes.search, task.name, arm)
    figures = [f"{name}_figure" for name in FIGURES]
    return Pipeline(
        [
            Node(search, ["tensors", "storage", *parameters], ["trials", "best"], name="search"),
            Node(nodes.draw, ["trials", "best"], figures, name="draw"),
        ],
        namespace=f"tuning.{task.name}.{arm}",
        inputs={"tensors": task.dataset, "storage": "tuning_storage"},
        parameters=set(parameters),
        tags=[task.name, task.half, arm, get_arm(arm).kind],
    )


def create_report(name: str, arms: Iterable[str], tasks: Sequence[Task] = TASKS) -> Pipeline:
    """What the searches for some arms found, and cost.

    Args:
        name: of the outputs, under the namespace ``tuning.<name>``.
        arms: to compare.
        tasks: what on.
    """
    chosen = list(arms)
    runs = [f"{task.name}.{arm}" for task in tasks for arm in arms_on(task, chosen)]
    bests = {f"{run.replace('.', '__')}__best": f"tuning.{run}.best" for run in runs}
    trials = {f"{run.replace('.', '__')}__trials": f"tuning.{run}.trials" for run in runs}
    outputs = ["search", "report", "best_of_n_figure", "best_of_n_figure_png"]
    node = Node(nodes.compare, ["params:scale", *bests, *trials], outputs, name="compare")
    return Pipeline(
        [node],
        namespace=f"tuning.{name}",
        inputs={**bests, **trials},
        parameters={"params:scale"},
    )
