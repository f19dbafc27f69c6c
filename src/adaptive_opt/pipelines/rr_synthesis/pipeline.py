"""``rr_synthesis``: the functions to be learnt, one namespace a task."""

from __future__ import annotations

from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline import Node, Pipeline

from adaptive_opt.study import KINDS, TASKS, arm_names

from . import nodes


def create_pipeline() -> Pipeline:
    """Function, report and figure for every task."""
    return sum((_one(task.name) for task in TASKS), Pipeline([]))


def _one(task: str) -> Pipeline:
    # A function is needed by every part of the grid that its task is in.
    tags = [task, *KINDS, *arm_names()]

    def bound(function: Any) -> Any:
        return update_wrapper(partial(function, task), function)

    return Pipeline(
        [
            Node(bound(nodes.make_function), "params:rr_synthesis", "function", name="make"),
            Node(
                bound(nodes.describe_function),
                ["function", "params:tasks"],
                "report",
                name="describe",
            ),
            Node(nodes.draw_function, "report", ["figure", "figure_png"], name="draw"),
        ],
        namespace=f"rr_synthesis.{task}",
        parameters={"params:rr_synthesis", "params:tasks"},
        tags=tags,
    )
