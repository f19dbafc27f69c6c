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
    """Train the published arms with a variant's switches; return histories, weights, summary.

    A finished run with the same parameters, data and code is loaded from ``folder`` instead.
    ``bests`` are the search records for the variant with searched configurations.
    """
    import pandas as pd

    from adaptive_opt.engine.provenance import identify_run
    from adaptive_opt.tasks.digest import data_digest

    given = {"tasks": tasks, "arms": arms, "training": training}
    parameters = with_switches(variant, task, given)
    for best in bests:
        parameters["arms"] = with_values(parameters["arms"], task, best["arm"], best["values"])
    data = data_digest(task, tensors)
    identities = {arm: identify_run(task, arm, data, parameters) for arm in published_arms()}
    digest = configuration_digest({arm: one.digest for arm, one in identities.items()})
    settings = TrainingParameters(**parameters["training"])
    if settings.resume and (finished := folder.finished(digest)) is not None:
        logger.info("ledger, %s, %s: finished before, nothing has changed", variant, task)
        results: tuple[Any, dict[str, Any], dict[str, Any]] = finished
        return results
    logger.info("ledger, %s, %s", get_variant(variant).label, task)
    histories = []
    weights: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for arm, identity in identities.items():
        history, final, run = _train_arm(task, arm, tensors, identity.optimizer, parameters)
        histories.append(history)
        weights |= {f"{arm}.{name}": w for name, w in final.items()}
        runs[arm] = {**run, "configuration": identity.configuration}
    folder.forget()
    sources = {best["source"] for best in bests}
    summary = {"variant": variant, "task": task, "runs": runs, "digest": digest}
    return (
        pd.concat(histories, ignore_index=True),
        weights,
        {**summary, "searched": sources == {"search"}},
    )


def _train_arm(
    task: str, arm: str, tensors: dict[str, Any], resolved: Any, parameters: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Train one arm; its history has only the columns that the ledger uses."""
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
    columns = ["task", "arm", "seed", "iteration", "train_loss", "gradient_norm"]
    return history[columns].astype({"task": str, "arm": str}), weights, summary


def tabulate(
    names: Sequence[str], tasks: dict[str, Any], analysis: dict[str, Any], *histories: Any
) -> tuple[Any, Any]:
    """Return the replication ledger, and a table of each arm's own target next to the common one.

    The ledger shows how each defect of the original study changes the time to target.

    ``histories`` has, for every variant, the history of each of the tasks ``names``.
    """
    from adaptive_opt.evidence.ledger import ledger_table, target_table

    keys = [(v.name, task) for v in VARIANTS for task in names]
    targets = {task: TaskParameters(**tasks[task]).target for task in names}
    within = AnalysisParameters(**analysis).settled_within
    ledger = ledger_table(dict(zip(keys, histories, strict=True)), targets, within)
    return ledger, target_table(ledger)


def compare_precisions(names: Sequence[str], *functions_and_weights: dict[str, Any]) -> Any:
    """Compare Hessians in float32 and float64, at the baseline's final weights and at a minimum.

    The last arguments are the function of each of the tasks ``names``, then the final weights.
    """
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
    """Write the report of the ledger in Markdown."""
    from adaptive_opt.evidence.ledger_report import report

    all_searched = all(summary["searched"] for summary in searched)
    return report(ledger, targets, precision, step_costs, scale=scale, searched=all_searched)


def draw(ledger: Any) -> tuple[Any, Any]:
    """Plot the ledger with Plotly and Matplotlib."""
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly
    from adaptive_opt.plots.ledger import ledger_figure

    figure = ledger_figure(ledger)
    return to_plotly(figure), to_matplotlib(figure)
