"""``training``: one node for each (task, arm), each in a namespace of its own.

Every node is tagged with its task, its half of the study, its arm, its kind and its cell, so that
any part of the grid can be run by itself: ``kedro run --pipelines=training --tags=ladder``.
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
    """One node for each (task, arm)."""
    return Pipeline([_one(task, arm) for task, arm in runs])


@cache  # in several of the registered pipelines
def _one(task: str, arm: str) -> Pipeline:
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
