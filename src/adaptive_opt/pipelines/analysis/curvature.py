"""``analysis.curvature``: spectra of Hessians at the weights that training left on the way."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Task, arms_on, tasks_of

from . import curvature_nodes as nodes

NAMESPACE = "analysis.curvature"
LINES = ("sharpness", "stability")


def create_curvature_pipeline(
    arms: Iterable[str], around: str = "ssdh", pair: tuple[str, str] = ("adam", "ssdh")
) -> Pipeline:
    """Networks by products with vectors, Rahimi–Recht by exact Hessians.

    Args:
        arms: whose runs are looked at.
        around: the arm around whose solution the loss is drawn.
        pair: the arms between whose solutions it is.
    """
    arms = list(arms)
    networks = _networks(tasks_of("images", "text"), arms, around, pair)
    exact = [_spectra(task, arms_on(task, arms)) for task in tasks_of("rahimi_recht")]
    return Pipeline([networks, *exact])


def _networks(tasks: list[Task], arms: list[str], around: str, pair: tuple[str, str]) -> Pipeline:
    runs = [(task, arm) for task in tasks for arm in arms_on(task, arms)]
    parameters = ["params:tasks", "params:arms", "params:training", "params:analysis"]
    parts = {
        p: [f"{t.name}__{a}__{p}" for t, a in runs] for p in ("measures", "densities", "estimates")
    }
    given = {f"{t.name}__data": t.dataset for t in tasks}
    given |= {f"{t.name}__{a}__snapshots": f"training.{t.name}.{a}.snapshots" for t, a in runs}
    given |= {f"{t.name}__{a}__best": f"tuning.{t.name}.{a}.best" for t, a in runs}
    made = [
        Node(
            bound(nodes.measure, task.name, arm),
            [f"{task.name}__data"]
            + [f"{task.name}__{arm}__{part}" for part in ("snapshots", "best")]
            + parameters,
            [f"{task.name}__{arm}__{part}" for part in parts],
            name=f"measure_{task.name}_{arm}",
            tags=[task.name, arm],
        )
        for task, arm in runs
    ]
    names = [task.name for task in tasks]
    made += [
        Node(
            bound(nodes.look_around, name, around, pair),
            [f"{name}__data"]
            + [f"{name}__{arm}__snapshots" for arm in (around, *pair)]
            + [p for p in parameters if p != "params:arms"],
            [f"{name}_surface", f"{name}_line"],
            name=f"look_around_{name}",
        )
        for name in names
    ]
    tables = ["spectra", "estimates"]
    made.append(
        Node(
            bound(nodes.tabulate),
            ["params:scale", *parts["measures"], *parts["estimates"]],
            [*tables, "report"],
            name="tabulate",
        )
    )
    drawn = {name: ["spectra"] for name in LINES}
    drawn |= {"density": parts["densities"], "estimate": ["estimates"]}
    made += [
        Node(
            bound(nodes.draw, name),
            inputs,
            [f"{name}_figure", f"{name}_figure_png"],
            name=f"draw_{name}",
        )
        for name, inputs in drawn.items()
    ]
    surroundings = [f"{name}_{part}" for part in ("surface", "line") for name in names]
    made.append(
        Node(
            bound(nodes.draw_surroundings, names, around, pair),
            surroundings,
            [f"{n}_figure{end}" for n in ("surface", "line") for end in ("", "_png")],
            name="draw_surroundings",
        )
    )
    return Pipeline(
        made,
        namespace=NAMESPACE,
        inputs=given,
        parameters={*parameters, "params:scale"},
        tags=["networks"],
    )


def _spectra(task: Task, arms: list[str]) -> Pipeline:
    name = task.name
    kept = {f"{name}__{a}__snapshots": f"training.{name}.{a}.snapshots" for a in arms}
    return Pipeline(
        [
            Node(
                bound(nodes.find_spectra, name, arms),
                [f"{name}__function", "params:tasks", *kept],
                f"{name}_spectra",
                name=f"find_spectra_{name}",
            ),
            Node(
                bound(nodes.draw_spectra, name),
                f"{name}_spectra",
                [f"{name}_spectra_figure", f"{name}_spectra_figure_png"],
                name=f"draw_spectra_{name}",
            ),
        ],
        namespace=NAMESPACE,
        inputs={f"{name}__function": task.dataset, **kept},
        parameters={"params:tasks"},
        tags=["rahimi_recht", name],
    )
