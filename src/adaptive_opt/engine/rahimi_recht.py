"""One (Rahimi–Recht task, arm): train all seeds, then the exact Hessians on the way."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from adaptive_opt.curvature.statistics import (
    COLUMNS,
    PRECISION_COLUMNS,
    TrajectoryStatistics,
    precision_statistics,
)
from adaptive_opt.optim import EnsembleOptimizer, Memberwise
from adaptive_opt.parameters import TaskParameters, TrainingParameters
from adaptive_opt.tasks.rahimi_recht import RahimiRecht
from adaptive_opt.tasks.rr_functions import RRFunction, global_minimum

from .checkpoint import Checkpoint
from .contract import EnsembleResult, HistoryBlock, Observer, Plan, ignore
from .device import resolve_device
from .optimizers import build_optimizer
from .results import Progress, label_history, summarise
from .seeds import derive_seed, random_stream
from .snapshots import Snapshots
from .train import train_ensemble

__all__ = [
    "build_rahimi_recht_task",
    "hessian_precision",
    "prepare_rahimi_recht",
    "run_rahimi_recht",
    "small_kernels",
    "training_plan",
]

logger = logging.getLogger(__name__)


def run_rahimi_recht(
    function: RRFunction,
    *,
    task: str,
    arm: str,
    optimizer: str,
    hyperparameters: dict[str, Any],
    task_parameters: TaskParameters,
    training: TrainingParameters,
    checkpoint: Checkpoint | None = None,
    seeds: Sequence[int] | None = None,
    observer: Observer = ignore,
    snapshots: Snapshots | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """Train every seed of an arm as one ensemble and measure its Hessians.

    Args:
        function: what is learnt.
        task, arm: names, from which all seeds are derived.
        optimizer, hyperparameters: see :func:`.optimizers.build_optimizer`.
        task_parameters, training: see :mod:`adaptive_opt.parameters`.
        checkpoint: where the state is kept; a run that was broken off is taken up there.
        seeds: the runs; default 0 … ``task_parameters.seeds`` − 1.
        observer: told of the history while it grows.
        snapshots: where weights after chosen epochs are put.

    Returns:
        The history (one row for each seed and logged iteration, Hessian columns where one
        was taken), the final weights ``W1``, ``W2``, … ``[members, ...]``, and a summary.
    """
    seeds = list(range(task_parameters.seeds)) if seeds is None else list(seeds)
    device = resolve_device(training.device)
    problem, params, optim, latest = prepare_rahimi_recht(
        function, task, arm, optimizer, hyperparameters, seeds, task_parameters, training, device
    )
    plan = training_plan(task_parameters, training)
    statistics = TrajectoryStatistics(problem.hessian, device)
    kept, names = snapshots or Snapshots(()), [f"W{i}" for i in range(1, 1 + len(params))]
    saved = None if checkpoint is None else checkpoint.load()
    if saved is not None:
        logger.info("%s, %s: going on from its checkpoint", task, arm)
        statistics.restore(saved["hessians"].numpy())
        kept.restore(saved["snapshots"])
    iterations = plan.epochs * problem.batches_per_epoch
    with small_kernels(device), random_stream(device, task, *seeds):
        with Progress(f"{task} {arm}", iterations, "iterations") as progress:
            result = train_ensemble(
                problem,
                params,
                optim,
                plan,
                on_batch=latest.append,
                on_snapshot=statistics.submit,
                progress=progress.update,
                skip=progress.skip,
                start=None if saved is None else saved["state"],
                checkpoint=checkpoint,
                enclose=lambda state: {
                    "state": state,
                    "hessians": torch.from_numpy(statistics.wait()),
                    "snapshots": kept.tensors,
                },
                on_rows=lambda rows, diverged_at: observer(
                    HistoryBlock(seeds, iterations, rows, diverged_at)
                ),
                keep=lambda epoch: kept.take(epoch, seeds, names, params, {}, optim),
            )
        with Progress(f"{task} {arm} Hessians", statistics.pending, "chunks") as progress:
            hessians = statistics.result(progress.update)
    history = _join(result, hessians, task, arm, seeds, problem.batches_per_epoch)
    summary = summarise([result], history, seeds, iterations)
    summary |= {"task": task, "arm": arm, "optimizer": optimizer, "device": str(device)}
    summary["hyperparameters"] = hyperparameters
    logger.info(
        "%s, %s: %d runs of %s iterations in %.1f s (%.1f µs a run-iteration)",
        task, arm, len(seeds), f"{iterations:,}", result.seconds,
        summary["microseconds_per_run_iteration"],
    )  # fmt: skip
    return history, dict(zip(names, result.weights, strict=True)), summary


def prepare_rahimi_recht(
    function: RRFunction,
    task: str,
    arm: str,
    optimizer: str,
    hyperparameters: dict[str, Any],
    seeds: Sequence[int],
    settings: TaskParameters,
    training: TrainingParameters,
    device: torch.device,
) -> tuple[RahimiRecht, list[Tensor], EnsembleOptimizer | Memberwise, deque[Tensor]]:
    """Task, parameters and optimizer of a run, and where it wants to be told each batch."""
    problem = build_rahimi_recht_task(function, task, seeds, settings, device)
    params = problem.initial_parameters()
    latest: deque[Tensor] = deque(maxlen=1)
    optim = build_optimizer(
        optimizer,
        hyperparameters,
        params,
        probe_seeds=[derive_seed(task, arm, s, "probe") for s in seeds],
        max_grad_norm=settings.max_grad_norm,
        clip_curvature=training.clip_curvature,
        hidden=problem.hidden,
        diagonal_fn=lambda: problem.hessian_diagonal(params, latest[0]),
    )
    return problem, params, optim, latest


def training_plan(settings: TaskParameters, training: TrainingParameters) -> Plan:
    """Length of a run and what is noted on the way, as the parameters want it."""
    return Plan(
        epochs=settings.epochs,
        schedule=training.schedule,
        floor=training.schedule_floor,
        log_every=training.log_every,
        statistics_every=training.statistics_every,
        snapshot_every=training.hessian_every,
        diverged_above=training.diverged_above,
    )


def build_rahimi_recht_task(
    function: RRFunction,
    task: str,
    seeds: Sequence[int],
    settings: TaskParameters,
    device: torch.device,
) -> RahimiRecht:
    """The task of some seeds, as the parameters want it."""
    shared = settings.initialisation == "shared"
    return RahimiRecht(
        function,
        loss=settings.loss,
        batch_size=settings.batch_size,
        weight_seeds=None if shared else [derive_seed(task, s, "weights") for s in seeds],
        order_seeds=[derive_seed(task, s, "order") for s in seeds],
        device=device,
    )


def hessian_precision(
    function: RRFunction, weights: Sequence[Tensor] | None, loss: str
) -> pd.DataFrame:
    """Eigenvalues of exact Hessians in float64, and what float32 makes of them.

    Args:
        function: what is learnt.
        weights: of every layer, ``[members, ...]``; None: of a global minimum.
        loss: ``rmse`` or ``mse``; at a global minimum that of the former has no Hessian.

    Returns:
        A row for each member, the columns
        :data:`adaptive_opt.curvature.statistics.PRECISION_COLUMNS`.
    """
    layers = [w[None] for w in global_minimum(function)] if weights is None else weights
    problem = RahimiRecht(
        function,
        loss=loss,
        batch_size=len(function.inputs),
        weight_seeds=None,
        order_seeds=[0],
        device=torch.device("cpu"),
    )
    points = torch.cat([w.detach().double().flatten(1) for w in layers], dim=1)
    double, single = problem.hessian(points)[0], problem.hessian(points.float())[0]
    finite = torch.linalg.vector_norm(single, dim=(-2, -1)).isfinite()
    rows = precision_statistics(double[finite], single[finite])
    return pd.DataFrame(rows.numpy(), columns=list(PRECISION_COLUMNS))


@contextmanager
def small_kernels(device: torch.device) -> Iterator[None]:
    """One thread on the CPU: the tensors of an RR ensemble are too small to share."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _join(
    result: EnsembleResult,
    hessians: np.ndarray[Any, Any],
    task: str,
    arm: str,
    seeds: Sequence[int],
    batches_per_epoch: int,
) -> pd.DataFrame:
    """History with names, epochs and the Hessian columns, members turned into seeds."""
    frame = result.history
    if result.snapshots:
        members = len(seeds)
        table = pd.DataFrame(hessians.astype(np.float64), columns=list(COLUMNS))
        table["iteration"] = np.repeat(result.snapshots, members)
        table["member"] = np.tile(np.arange(members), len(result.snapshots))
        frame = frame.merge(table, on=["member", "iteration"], how="left", validate="1:1")
        for member, start in enumerate(result.diverged_at):
            if start is not None:
                frozen = (frame["member"] == member) & (frame["iteration"] >= start)
                frame.loc[frozen, list(COLUMNS)] = np.nan
    return label_history(frame, task, arm, seeds, batches_per_epoch)
