"""``training``: one node for each (task, arm), each in a namespace of its own.

Every node is tagged with its task, its arm and its kind, so that any part of the grid can
be run by itself: ``kedro run --pipelines=training --tags=ladder``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline

from adaptive_opt.study import TASKS, arm_names, get_arm

from . import nodes

PARAMETERS = {"params:tasks", "params:arms", "params:training"}


def create_pipeline(arms: Iterable[str] | None = None) -> Pipeline:
    """The grid, or some arms of it on every task."""
    chosen = arm_names() if arms is None else list(arms)
    return sum((_one(task.name, arm) for task in TASKS for arm in chosen), Pipeline([]))


def _one(task: str, arm: str) -> Pipeline:
    function = partial(nodes.train_rahimi_recht, task, arm)
    node = Node(
        update_wrapper(function, nodes.train_rahimi_recht),
        ["function", "params:tasks", "params:arms", "params:training"],
        ["history", "weights", "summary"],
        name="train",
        tags=[task, arm, get_arm(arm).kind],
    )
    return Pipeline(
        [node],
        namespace=f"training.{task}.{arm}",
        inputs={"function": f"rr_synthesis.{task}.function"},
        parameters=PARAMETERS,
    )
