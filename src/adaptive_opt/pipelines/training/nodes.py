"""Nodes of ``training``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

import logging
import time
from typing import Any

from adaptive_opt.parameters import task_parameters, training_parameters, with_values
from adaptive_opt.study import get_task

logger = logging.getLogger(__name__)


def train(
    task: str,
    arm: str,
    tensors: dict[str, Any],
    folder: Any,
    best: dict[str, Any],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Train all seeds of an arm, with the best configuration: history, final weights, summary.

    A run that ``folder`` has already, of the same configuration on the same data, is taken
    from there; one that was broken off goes on.
    """
    from adaptive_opt.engine.checkpoint import Checkpoint
    from adaptive_opt.engine.provenance import identify_run
    from adaptive_opt.tasks.digest import data_digest
    from adaptive_opt.tasks.load import task_data

    settings = training_parameters(arm, training)
    arms = with_values(arms, task, arm, best["values"])
    parameters = {"tasks": tasks, "arms": arms, "training": training}
    identity = identify_run(task, arm, data_digest(task, tensors), parameters)
    digest, begun = identity.digest, time.perf_counter()
    checkpoint = Checkpoint(folder.checkpoint, digest, settings.checkpoint_seconds)
    if not settings.resume:
        checkpoint.remove()
    elif (finished := folder.finished(digest)) is not None:
        logger.info("%s, %s: finished before, nothing has changed", task, arm)
        kept: tuple[Any, dict[str, Any], dict[str, Any]] = finished
        return kept
    resumed = checkpoint.path is not None and checkpoint.path.is_file()
    history, weights, summary = _runner(task)(
        task_data(task, tensors),
        task=task,
        arm=arm,
        **identity.optimizer,
        task_parameters=task_parameters(task, tasks),
        training=settings,
        checkpoint=checkpoint,
    )
    folder.forget()
    seconds = None if resumed else time.perf_counter() - begun
    return history, weights, {**summary, "seconds": seconds, **identity.record()}


def _runner(task: str) -> Any:
    if get_task(task).family == "rahimi_recht":
        from adaptive_opt.engine.rahimi_recht import run_rahimi_recht

        return run_rahimi_recht
    from adaptive_opt.engine.network import run_network

    return run_network
