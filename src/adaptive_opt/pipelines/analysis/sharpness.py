"""``analysis.sharpness``: the top eigenvalues of networks along training, of the default study."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import arms_on, tasks_of

from . import sharpness_nodes as nodes

NAMESPACE = "analysis.sharpness"
FIGURES = ("sharpness", "stability")


def create_sharpness_pipeline(arms: Iterable[str]) -> Pipeline:
    """Sharpness, and the edge of stability, along the first run of every arm.

    Args:
        arms: whose runs are looked at.
    """
    tasks, arms = tasks_of("images", "text"), list(arms)
    runs = [(task.name, arm) for task in tasks for arm in arms_on(task, arms)]
    parameters = ["params:tasks", "params:arms", "params:training", "params:analysis"]
    given = {f"{t.name}__data": t.dataset for t in tasks}
    given |= {f"{t}__{a}__snapshots": f"training.{t}.{a}.snapshots" for t, a in runs}
    given |= {f"{t}__{a}__best": f"tuning.{t}.{a}.best" for t, a in runs}
    made = [
        Node(
            bound(nodes.measure, task.name, arms_on(task, arms)),
            [f"{task.name}__data", *parameters]
            + [
                f"{task.name}__{arm}__{part}"
                for part in ("snapshots", "best")
                for arm in arms_on(task, arms)
            ],
            f"{task.name}_measures",
            name=f"measure_{task.name}",
            tags=[task.name],
        )
        for task in tasks
    ]
    made.append(
        Node(
            nodes.draw,
            [f"{task.name}_measures" for task in tasks],
            ["table", *(f"{n}_figure{end}" for n in FIGURES for end in ("", "_png"))],
            name="draw",
        )
    )
    return Pipeline(
        made, namespace=NAMESPACE, inputs=given, parameters={*parameters}, tags=["networks"]
    )
