"""Pipeline ``analysis.ledger``: effect of each defect of the original study."""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from adaptive_opt.pipelines.bound import bound
from adaptive_opt.study import Task, published_arms, tasks_of
from adaptive_opt.switches import BASELINE, VARIANTS, Variant

from . import ledger_nodes

SECTIONS = ["params:tasks", "params:arms", "params:training"]


def create_ledger_pipeline() -> Pipeline:
    """Create the nodes that train the published arms with every variant, and compare them."""
    tasks = tasks_of("rahimi_recht")
    runs = [_train_pipeline(v, t) for v in VARIANTS for t in tasks]
    return Pipeline([*runs, _compare_pipeline(tasks)])


def searched_configurations() -> set[str]:
    """Return the names of the search results that the ledger needs, as in the catalog."""
    return {f"tuning.{t.name}.{a}.best" for t in tasks_of("rahimi_recht") for a in published_arms()}


def _train_pipeline(variant: Variant, task: Task) -> Pipeline:
    arms = published_arms() if variant.searched else []
    bests = {f"{arm}__best": f"tuning.{task.name}.{arm}.best" for arm in arms}
    node = Node(
        bound(ledger_nodes.train, variant.name, task.name),
        ["tensors", "folder", *SECTIONS, *bests],
        ["history", "weights", "summary"],
        name="train",
    )
    return Pipeline(
        [node],
        namespace=f"analysis.ledger.{variant.name}.{task.name}",
        inputs={"tensors": task.dataset, **bests},
        parameters=set(SECTIONS),
        tags=[task.name, task.half],
    )


def _compare_pipeline(tasks: Sequence[Task]) -> Pipeline:
    names = [t.name for t in tasks]
    searched = next(v.name for v in VARIANTS if v.searched)

    def outputs(variant: str, part: str) -> dict[str, str]:
        return {f"{variant}__{t}__{part}": f"analysis.ledger.{variant}.{t}.{part}" for t in names}

    histories = {k: n for v in VARIANTS for k, n in outputs(v.name, "history").items()}
    weights, summaries = outputs(BASELINE, "weights"), outputs(searched, "summary")
    data = {f"{t.name}__data": t.dataset for t in tasks}
    tables = ["ledger", "targets", "precision"]
    report_inputs = [*tables, "step_costs", "params:scale", *summaries]
    return Pipeline(
        [
            Node(
                bound(ledger_nodes.tabulate, names),
                ["params:tasks", "params:analysis", *histories],
                tables[:2],
                name="tabulate",
            ),
            Node(
                bound(ledger_nodes.compare_precisions, names),
                [*data, *weights],
                "precision",
                name="compare_precisions",
            ),
            Node(ledger_nodes.report, report_inputs, "report", name="report"),
            Node(
                ledger_nodes.draw,
                "ledger",
                ["iterations_figure", "iterations_figure_png"],
                name="draw",
            ),
        ],
        namespace="analysis.ledger",
        inputs={**histories, **weights, **summaries, **data, "step_costs": "step_costs"},
        parameters={"params:tasks", "params:analysis", "params:scale"},
        tags=[tasks[0].half],
    )
