"""Nodes of the replication ledger; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

import logging
from typing import Any

from adaptive_opt.parameters import TaskParameters, TrainingParameters, with_values
from adaptive_opt.study import published_arms
from adaptive_opt.switches import get_variant, with_switches

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

    from adaptive_opt.engine.checkpoint import configuration_digest
    from adaptive_opt.engine.provenance import identify_run

    given = {"tasks": tasks, "arms": arms, "training": training}
    parameters = with_switches(variant, task, given)
    for best in bests:
        parameters["arms"] = with_values(parameters["arms"], task, best["arm"], best["values"])
    identified = {arm: identify_run(task, arm, tensors, parameters) for arm in published_arms()}
    digest = configuration_digest({arm: made for arm, (_, _, made) in identified.items()})
    settings = TrainingParameters(**parameters["training"])
    if settings.resume and (finished := folder.finished(digest)) is not None:
        logger.info("ledger, %s, %s: finished before, nothing has changed", variant, task)
        kept: tuple[Any, dict[str, Any], dict[str, Any]] = finished
        return kept
    logger.info("ledger, %s, %s", get_variant(variant).label, task)
    histories, weights, runs = [], {}, {}
    for arm, (resolved, config, _) in identified.items():
        history, final, run = _run(task, arm, tensors, resolved, parameters)
        histories.append(history)
        weights |= {f"{arm}.{name}": w for name, w in final.items()}
        runs[arm] = {**run, "configuration": config}
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
