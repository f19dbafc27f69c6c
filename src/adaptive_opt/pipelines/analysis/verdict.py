"""``analysis.verdict``: targets from the baselines, times, the verdict and the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import TASKS, Task, arms_on, get_arm

from . import verdict_nodes as nodes

CLOCKS = ("iteration", "gradient_equivalents", "device_seconds")
FIGURES = (*(f"ratio_by_{clock}" for clock in CLOCKS), "ladder", "profiles")


def create_verdict_pipeline(
    study: str,
    arms: Iterable[str],
    tasks: Sequence[Task] = TASKS,
    figures: Sequence[str] = (),
    command: str = "kedro run",
) -> Pipeline:
    """The verdict on some arms.

    Args:
        study: names the outputs, under the namespace ``analysis.<study>``.
        arms: what to compare; baselines among them set the targets.
        tasks: what on.
        figures: names in the catalog of other Plotly figures that the report is to show.
        command: that makes all of it, for the report.
    """
    chosen = list(arms)
    runs = [(task.name, arm) for task in tasks for arm in arms_on(task, chosen)]
    histories = {f"{t}__{a}": f"training.{t}.{a}.history" for t, a in runs}
    summaries = {f"{t}__{a}__summary": f"training.{t}.{a}.summary" for t, a in runs}
    baselines = [f"{t}__{a}" for t, a in runs if get_arm(a).is_baseline]
    shown = {name.replace(".", "__"): name for name in figures}
    parameters = ["params:analysis", "params:scale"]
    own = [f"{name}_figure" for name in FIGURES]
    drawn = [name for figure in own for name in (figure, f"{figure}_png")]
    nodes_ = [
        Node(
            nodes.fix_targets,
            ["params:tasks", "params:analysis", *baselines],
            "target_levels",
            name="fix_targets",
        ),
        Node(nodes.measure_times, ["target_levels", *histories], "times", name="measure_times"),
        Node(
            bound(nodes.decide, command),
            ["times", "target_levels", *parameters, *summaries],
            ["document", "comparisons", "profiles"],
            name="decide",
        ),
        Node(nodes.draw, ["document", "profiles"], drawn, name="draw_verdict"),
        Node(
            bound(nodes.report, (*FIGURES, *shown.values())),
            ["document", *own, *shown],
            ["page", "summary"],
            name="report",
        ),
    ]
    return Pipeline(
        nodes_,
        namespace=f"analysis.{study}",
        inputs={**histories, **summaries, **shown},
        parameters={*parameters, "params:tasks"},
    )
