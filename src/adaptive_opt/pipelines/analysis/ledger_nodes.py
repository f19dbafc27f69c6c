"""Nodes of the replication ledger; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from adaptive_opt.parameters import (
    AnalysisParameters,
    TaskParameters,
    TrainingParameters,
    configuration_digest,
    with_values,
)
from adaptive_opt.study import published_arms
from adaptive_opt.switches import CORRECTED, VARIANTS, get_variant, with_switches

logger = logging.getLogger(__name__)


def train(
    variant: str,
    task: str,
    tensors: dict[str, Any],
    folder: Any,
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    *bests: dict[str, Any],
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Train the published arms with a variant's switches: histories, final weights, summary.

    ``folder`` is looked at first: what is there of the same configurations, on the same data
    and by the same code, is left as it is.
    """
    import pandas as pd

    from adaptive_opt.engine.provenance import identify_run
    from adaptive_opt.tasks.digest import data_digest

    given = {"tasks": tasks, "arms": arms, "training": training}
    parameters = with_switches(variant, task, given)
    for best in bests:
        parameters["arms"] = with_values(parameters["arms"], task, best["arm"], best["values"])
    data = data_digest(task, tensors)
    identified = {arm: identify_run(task, arm, data, parameters) for arm in published_arms()}
    digest = configuration_digest({arm: made.digest for arm, made in identified.items()})
    settings = TrainingParameters(**parameters["training"])
    if settings.resume and (finished := folder.finished(digest)) is not None:
        logger.info("ledger, %s, %s: finished before, nothing has changed", variant, task)
        kept: tuple[Any, dict[str, Any], dict[str, Any]] = finished
        return kept
    logger.info("ledger, %s, %s", get_variant(variant).label, task)
    histories = []
    weights: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for arm, made in identified.items():
        history, final, run = _run(task, arm, tensors, made.optimizer, parameters)
        histories.append(history)
        weights |= {f"{arm}.{name}": w for name, w in final.items()}
        runs[arm] = {**run, "configuration": made.configuration}
    folder.forget()
    source = {best["source"] for best in bests}
    found = {"variant": variant, "task": task, "runs": runs, "digest": digest}
    return (
        pd.concat(histories, ignore_index=True),
        weights,
        {**found, "searched": source == {"search"}},
    )


def _run(
    task: str, arm: str, tensors: dict[str, Any], resolved: Any, parameters: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """One arm; of its history what the ledger is made from."""
    from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
    from adaptive_opt.tasks.load import task_data

    history, weights, summary = run_rahimi_recht(
        task_data(task, tensors),
        task=task,
        arm=arm,
        **resolved,
        task_parameters=TaskParameters(**parameters["tasks"][task]),
        training=TrainingParameters(**parameters["training"]),
    )
    kept = ["task", "arm", "seed", "iteration", "train_loss", "gradient_norm"]
    return history[kept].astype({"task": str, "arm": str}), weights, summary


def tabulate(
    names: Sequence[str], tasks: dict[str, Any], analysis: dict[str, Any], *histories: Any
) -> tuple[Any, Any]:
    """The ledger, and each arm's own target beside the one for all.

    The histories are those of every variant, of each of the tasks ``names`` in turn.
    """
    from adaptive_opt.evidence.ledger import ledger_table, target_table

    keys = [(v.name, task) for v in VARIANTS for task in names]
    targets = {task: TaskParameters(**tasks[task]).target for task in names}
    within = AnalysisParameters(**analysis).settled_within
    ledger = ledger_table(dict(zip(keys, histories, strict=True)), targets, within)
    return ledger, target_table(ledger)


def compare_precisions(names: Sequence[str], *functions_and_weights: dict[str, Any]) -> Any:
    """Hessians at the baseline's final weights and at a global minimum, in both precisions."""
    from adaptive_opt.engine.rahimi_recht import hessian_precision
    from adaptive_opt.evidence.ledger import precision_table
    from adaptive_opt.tasks.load import task_data

    found = {}
    halves = functions_and_weights[: len(names)], functions_and_weights[len(names) :]
    for task, tensors, weights in zip(names, *halves, strict=True):
        function = task_data(task, tensors)
        for arm in published_arms():
            layers = [weights[f"{arm}.W{i}"] for i in range(1, 1 + len(function.weights))]
            found[task, arm] = hessian_precision(function, layers, CORRECTED.task["loss"])
        found[task, "minimum"] = hessian_precision(function, None, "mse")
    return precision_table(found)


def report(
    ledger: Any,
    targets: Any,
    precision: Any,
    step_costs: dict[str, Any],
    scale: str,
    *searched: dict[str, Any],
) -> str:
    """The tables in words and Markdown."""
    from adaptive_opt.evidence.ledger_report import report

    found = all(summary["searched"] for summary in searched)
    return report(ledger, targets, precision, step_costs, scale=scale, searched=found)


def draw(ledger: Any) -> tuple[Any, Any]:
    """The figure of the ledger, for the browser and as PNG."""
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly
    from adaptive_opt.plots.ledger import ledger_figure

    figure = ledger_figure(ledger)
    return to_plotly(figure), to_matplotlib(figure)
