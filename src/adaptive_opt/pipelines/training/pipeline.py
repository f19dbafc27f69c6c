"""``training``: one node for each (task, arm), each in a namespace of its own.

Every node is tagged with its task, its half of the study, its arm and its kind, so that any part
of the grid can be run by itself: ``kedro run --pipelines=training --tags=ladder``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import TASKS, Task, arms_on, get_arm

from . import nodes

PARAMETERS = {"params:tasks", "params:arms", "params:training"}


def create_pipeline(arms: Iterable[str], tasks: Sequence[Task] = TASKS) -> Pipeline:
    """Some arms on those of some tasks that they can be trained on."""
    chosen = list(arms)
    runs = [(task, arm) for task in tasks for arm in arms_on(task, chosen)]
    return Pipeline([_one(task, arm) for task, arm in runs])


@cache  # in several of the registered pipelines
def _one(task: Task, arm: str) -> Pipeline:
    node = Node(
        bound(nodes.train, task.name, arm),
        ["tensors", "folder", "best", "params:tasks", "params:arms", "params:training"],
        ["history", "weights", "snapshots", "summary"],
        name="train",
        tags=[task.name, task.half, arm, get_arm(arm).kind],
    )
    return Pipeline(
        [node],
        namespace=f"training.{task.name}.{arm}",
        inputs={"tensors": task.dataset, "best": f"tuning.{task.name}.{arm}.best"},
        parameters=PARAMETERS,
    )
