"""Pipeline ``data``: data of the network tasks, one namespace a task."""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import KINDS, Task, arm_names, tasks_of

from . import nodes


def create_pipeline() -> Pipeline:
    """Create the nodes that load and summarise the data of every network task."""
    return sum((_load_pipeline(task) for task in tasks_of("images", "text")), Pipeline([]))


def _load_pipeline(task: Task) -> Pipeline:
    if task.family == "images":
        load: Any = nodes.load_images
        outputs = ["tensors", "classes"]
        summarise = Node(nodes.summarise_images, outputs, "summary", name="summarise")
    else:
        load = nodes.load_text
        outputs = ["tensors", "vocabulary"]
        summarise = Node(nodes.summarise_text, "tensors", "summary", name="summarise")
    return Pipeline(
        [Node(bound(load, task.name), "params:data", outputs, name="load"), summarise],
        namespace=f"data.{task.name}",
        parameters={"params:data"},
        # Every selection of arms needs the data.
        tags=[task.name, task.half, *KINDS, *arm_names()],
    )
