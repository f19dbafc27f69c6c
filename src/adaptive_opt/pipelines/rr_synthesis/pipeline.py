"""Pipeline ``rr_synthesis``: functions of the Rahimi–Recht tasks, one namespace a task."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import KINDS, Task, arm_names, tasks_of

from . import nodes


def create_pipeline() -> Pipeline:
    """Create the nodes for function, report and figure of every Rahimi–Recht task."""
    return sum((_function_pipeline(task) for task in tasks_of("rahimi_recht")), Pipeline([]))


def _function_pipeline(task: Task) -> Pipeline:
    # Every selection of arms needs the function.
    tags = [task.name, task.half, *KINDS, *arm_names()]

    return Pipeline(
        [
            Node(
                bound(nodes.make_function, task.name),
                "params:rr_synthesis",
                "function",
                name="make",
            ),
            Node(
                bound(nodes.describe_function, task.name),
                ["function", "params:tasks", "params:rr_synthesis"],
                "report",
                name="describe",
            ),
            Node(nodes.draw_function, "report", ["figure", "figure_png"], name="draw"),
        ],
        namespace=f"rr_synthesis.{task.name}",
        parameters={"params:rr_synthesis", "params:tasks"},
        tags=tags,
    )
