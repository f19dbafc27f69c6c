"""Pipeline ``analysis.verdict``: step costs, the verdict, its figures and the report."""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Run, get_task

from . import verdict_nodes as nodes

FIGURES = (
    *("loss_by_length", "valid_loss_by_length", "speedup_in_iterations", "speedup_in_seconds"),
    *("speedup_by_valid_loss", "ladder"),
)


def create_verdict_pipeline(
    study: str,
    runs: Sequence[Run],
    figures: Sequence[str] = (),
    command: str = "kedro run",
    *,
    upward: bool = False,
) -> Pipeline:
    """Create the nodes for the verdict on some runs.

    Args:
        study: the outputs are in the namespace ``analysis.<study>``.
        runs: the (task, arm) pairs to compare.
        figures: other Plotly figures for the report, by their names in the catalog.
        command: the command that runs the study, for the report.
        upward: whether to compare the diagonal with whole matrices, and speed-ups with prices.
    """
    tasks = list(dict.fromkeys(task for task, _ in runs))
    lengths = {f"{t}__{a}__lengths": f"training.{t}.{a}.lengths" for t, a in runs}
    bests = {f"{t}__{a}__best": f"tuning.{t}.{a}.best" for t, a in runs}
    summaries = {f"{t}__{a}__summary": f"training.{t}.{a}.summary" for t, a in runs}
    data = {f"{t}__data": get_task(t).dataset for t in tasks}
    shown = {name.replace(".", "__"): name for name in figures}
    training_parameters = ["params:tasks", "params:arms", "params:training", "params:analysis"]
    verdict_parameters = ["params:tasks", "params:analysis", "params:scale"]
    drawn = [f"{name}_figure" for name in FIGURES]
    outputs = [name for figure in drawn for name in (figure, f"{figure}_png")]
    names = (*FIGURES, *(["frontier"] if upward else []))
    own_figures = [f"{name}_figure" for name in names]
    calibrations = [
        Node(
            bound(nodes.calibrate, task, [a for t, a in runs if t == task]),
            [f"{task}__data", *training_parameters]
            + [f"{t}__{a}__best" for t, a in runs if t == task],
            f"{task}_prices",
            name=f"calibrate_{task}",
        )
        for task in tasks
    ]
    prices = [f"{task}_prices" for task in tasks]
    steps = [
        *calibrations,
        Node(
            bound(nodes.judge, command, list(runs)),
            [*verdict_parameters, *lengths, *bests, *summaries, *prices],
            ["document", "comparisons"],
            name="judge",
        ),
        Node(nodes.draw, ["document", *lengths], outputs, name="draw_verdict"),
        Node(
            bound(nodes.report, (*names, *shown.values()), len(lengths)),
            ["document", *lengths, *own_figures, *shown],
            ["page", "summary"],
            name="report",
        ),
    ]
    if upward:
        steps += [
            Node(
                bound(nodes.measure_shares, list(runs)),
                ["params:tasks", "params:analysis", *lengths, *bests, *summaries, *prices],
                "shares",
                name="measure_shares",
            ),
            Node(
                nodes.draw_frontier,
                ["document", "shares"],
                ["frontier_figure", "frontier_figure_png", "upward"],
                name="draw_frontier",
            ),
        ]
    return Pipeline(
        steps,
        namespace=f"analysis.{study}",
        inputs={**lengths, **bests, **summaries, **data, **shown},
        parameters={*training_parameters, *verdict_parameters},
    )
