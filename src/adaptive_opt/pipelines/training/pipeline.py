"""Pipeline ``training``: one node and namespace for each (task, arm).

A node's tags are its task, half, arm, kind and ``task.arm``. They select parts of the grid:
``kedro run --pipelines=training --tags=ladder``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Run, get_task, run_tags

from . import nodes

PARAMETERS = {"params:tasks", "params:arms", "params:training"}


def create_pipeline(runs: Iterable[Run]) -> Pipeline:
    """Create the training node of each (task, arm)."""
    return Pipeline([_train_pipeline(task, arm) for task, arm in runs])


@cache  # several registered pipelines share it
def _train_pipeline(task: str, arm: str) -> Pipeline:
    node = Node(
        bound(nodes.train, task, arm),
        ["tensors", "folder", "best", "params:tasks", "params:arms", "params:training"],
        ["history", "weights", "snapshots", "lengths", "summary"],
        name="train",
        tags=run_tags(task, arm),
    )
    return Pipeline(
        [node],
        namespace=f"training.{task}.{arm}",
        inputs={"tensors": get_task(task).dataset, "best": f"tuning.{task}.{arm}.best"},
        parameters=PARAMETERS,
    )
