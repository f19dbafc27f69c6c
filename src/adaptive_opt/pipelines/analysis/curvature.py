"""Pipeline ``analysis.curvature``: Hessian spectra at weight snapshots."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Task, arms_on, tasks_of

from . import curvature_nodes as nodes

NAMESPACE = "analysis.curvature"
LINE_FIGURES = ("sharpness", "stability")


def create_curvature_pipeline(
    arms: Iterable[str], around: str = "ssdh", pair: tuple[str, str] = ("adam", "ssdh")
) -> Pipeline:
    """Create the curvature analysis of some arms on every task.

    Networks use Hessian-vector products, Rahimi–Recht tasks use exact Hessians.

    Args:
        arms: arms to analyse.
        around: the loss surface is plotted around this arm's solution.
        pair: the loss is plotted on the line between the solutions of these two arms.
    """
    arms = list(arms)
    networks = _network_pipeline(tasks_of("images", "text"), arms, around, pair)
    exact = [_spectra_pipeline(task, arms_on(task, arms)) for task in tasks_of("rahimi_recht")]
    return Pipeline([networks, *exact])


def _network_pipeline(
    tasks: list[Task], arms: list[str], around: str, pair: tuple[str, str]
) -> Pipeline:
    runs = [(task, arm) for task in tasks for arm in arms_on(task, arms)]
    parameters = ["params:tasks", "params:arms", "params:training", "params:analysis"]
    parts = {
        p: [f"{t.name}__{a}__{p}" for t, a in runs] for p in ("measures", "densities", "estimates")
    }
    inputs = {f"{t.name}__data": t.dataset for t in tasks}
    inputs |= {f"{t.name}__{a}__snapshots": f"training.{t.name}.{a}.snapshots" for t, a in runs}
    inputs |= {f"{t.name}__{a}__best": f"tuning.{t.name}.{a}.best" for t, a in runs}
    steps = [
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
    steps += [
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
    steps.append(
        Node(
            bound(nodes.tabulate),
            ["params:scale", *parts["measures"], *parts["estimates"]],
            [*tables, "report"],
            name="tabulate",
        )
    )
    figures = {name: ["spectra"] for name in LINE_FIGURES}
    figures |= {"density": parts["densities"], "estimate": ["estimates"]}
    steps += [
        Node(
            bound(nodes.draw, name),
            tables_of_figure,
            [f"{name}_figure", f"{name}_figure_png"],
            name=f"draw_{name}",
        )
        for name, tables_of_figure in figures.items()
    ]
    surroundings = [f"{name}_{part}" for part in ("surface", "line") for name in names]
    steps.append(
        Node(
            bound(nodes.draw_surroundings, names, around, pair),
            surroundings,
            [f"{n}_figure{end}" for n in ("surface", "line") for end in ("", "_png")],
            name="draw_surroundings",
        )
    )
    return Pipeline(
        steps,
        namespace=NAMESPACE,
        inputs=inputs,
        parameters={*parameters, "params:scale"},
        tags=["networks"],
    )


def _spectra_pipeline(task: Task, arms: list[str]) -> Pipeline:
    name = task.name
    snapshots = {f"{name}__{a}__snapshots": f"training.{name}.{a}.snapshots" for a in arms}
    return Pipeline(
        [
            Node(
                bound(nodes.find_spectra, name, arms),
                [f"{name}__function", "params:tasks", *snapshots],
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
        inputs={f"{name}__function": task.dataset, **snapshots},
        parameters={"params:tasks"},
        tags=["rahimi_recht", name],
    )
