"""Pipeline ``analysis.sharpness``: top Hessian eigenvalues of networks during training."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Run, get_task

from . import sharpness_nodes as nodes

FIGURES = ("sharpness", "stability")


def create_sharpness_pipeline(runs: Iterable[Run], study: str = "sharpness") -> Pipeline:
    """Create the nodes for sharpness and stability during the first run of every arm.

    Args:
        runs: the (task, arm) pairs; Rahimi–Recht tasks are ignored.
        study: the outputs are in the namespace ``analysis.<study>``.
    """
    runs = [run for run in runs if get_task(run[0]).half == "networks"]
    tasks = [get_task(name) for name in dict.fromkeys(task for task, _ in runs)]
    arms = {task.name: [arm for t, arm in runs if t == task.name] for task in tasks}
    parameters = ["params:tasks", "params:arms", "params:training", "params:analysis"]
    inputs = {f"{t.name}__data": t.dataset for t in tasks}
    inputs |= {f"{t}__{a}__snapshots": f"training.{t}.{a}.snapshots" for t, a in runs}
    inputs |= {f"{t}__{a}__best": f"tuning.{t}.{a}.best" for t, a in runs}
    steps = [
        Node(
            bound(nodes.measure, task.name, arms[task.name]),
            [f"{task.name}__data", *parameters]
            + [
                f"{task.name}__{arm}__{part}"
                for part in ("snapshots", "best")
                for arm in arms[task.name]
            ],
            f"{task.name}_measures",
            name=f"measure_{task.name}",
            tags=[task.name],
        )
        for task in tasks
    ]
    steps.append(
        Node(
            nodes.draw,
            [f"{task.name}_measures" for task in tasks],
            ["table", *(f"{n}_figure{end}" for n in FIGURES for end in ("", "_png"))],
            name="draw",
        )
    )
    return Pipeline(
        steps,
        namespace=f"analysis.{study}",
        inputs=inputs,
        parameters={*parameters},
        tags=["networks"],
    )
