"""Nodes of ``training``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from adaptive_opt.parameters import (
    lengths_of,
    studies_of,
    task_parameters,
    training_parameters,
)
from adaptive_opt.study import get_task

logger = logging.getLogger(__name__)


def _one_process_at_a_time(train: Callable[..., Any]) -> Callable[..., Any]:
    """Lock the folder of the run while a process trains in it and saves the results."""

    @wraps(train)
    def locked(task: str, arm: str, tensors: dict[str, Any], folder: Any, *parameters: Any) -> Any:
        with folder.locked():
            return train(task, arm, tensors, folder, *parameters)

    return locked


@_one_process_at_a_time
def train(
    task: str,
    arm: str,
    tensors: dict[str, Any],
    folder: Any,
    best: dict[str, Any],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
) -> tuple[Any, dict[str, Any], dict[str, Any], Any, dict[str, Any]]:
    """Train all seeds of an arm at every length, each with its search's configuration.

    A finished run with the same parameters, data and code is loaded from ``folder``; an
    interrupted one resumes from its checkpoint. One process at a time trains in a folder. An error
    in the training fails this arm only: the summary then has the reason in ``failed``, and the
    tables are empty.

    Returns:
        History, final weights and weight snapshots of the runs of full length; final losses at
        every length; summary.
    """
    from adaptive_opt.engine.checkpoint import Checkpoint
    from adaptive_opt.engine.failures import failed_run, reason_of
    from adaptive_opt.engine.lengths import Lengths
    from adaptive_opt.engine.provenance import identify_run
    from adaptive_opt.engine.snapshots import Snapshots
    from adaptive_opt.io.tracking.training import track_training
    from adaptive_opt.tasks.digest import data_digest
    from adaptive_opt.tasks.load import task_data

    settings = training_parameters(arm, training)
    studies = studies_of(best)
    parameters = {"tasks": tasks, "arms": arms, "training": training}
    identity = identify_run(task, arm, data_digest(task, tensors), parameters, studies)
    digest, begun = identity.digest, time.perf_counter()
    checkpoint = Checkpoint(folder.checkpoint, digest, settings.checkpoint_seconds)
    if not settings.resume:
        checkpoint.remove()
    elif (finished := folder.finished(digest, ("weights", "snapshots"), ("lengths",))) is not None:
        logger.info("%s, %s: finished before, nothing has changed", task, arm)
        with track_training(task, arm, digest, identity.optimizer, kept=True) as tracked:
            tracked.finish(finished[0], finished[-1])
        return finished  # type: ignore[no-any-return]
    resumed = checkpoint.path is not None and checkpoint.path.is_file()
    task_settings = task_parameters(task, tasks)
    snapshots = Snapshots(task_settings.snapshot_epochs, range(task_settings.snapshot_seeds))
    lengths = Lengths(lengths_of(task, arm, settings))
    seeds = [s for s in range(task_settings.seeds) if studies[s % len(studies)] is not None]
    try:
        if not seeds:
            raise ValueError(f"no search found a configuration: {best['failed']}")
        with track_training(task, arm, digest, identity.optimizer) as tracked:
            history, weights, summary = _training_function(task)(
                task_data(task, tensors),
                task=task,
                arm=arm,
                optimizer=identity.optimizer["optimizer"],
                hyperparameters=identity.studies,
                task_parameters=task_settings,
                training=settings,
                checkpoint=checkpoint,
                seeds=seeds,
                snapshots=snapshots,
                observer=tracked.observe,
                lengths=lengths,
            )
            tracked.finish(history, summary)
    except Exception as error:
        if (reason := reason_of(error)) is None:
            raise
        logger.warning("%s, %s: the arm failed: %s", task, arm, reason)
        folder.forget()
        return failed_run(task, arm, reason)
    folder.forget()
    seconds = None if resumed else time.perf_counter() - begun
    record = {"seconds": seconds, "failed": "", **identity.record()}
    return history, weights, snapshots.tensors, lengths.table(), {**summary, **record}


def _training_function(task: str) -> Any:
    if get_task(task).family == "rahimi_recht":
        from adaptive_opt.engine.rahimi_recht import run_rahimi_recht

        return run_rahimi_recht
    from adaptive_opt.engine.network import run_network

    return run_network
