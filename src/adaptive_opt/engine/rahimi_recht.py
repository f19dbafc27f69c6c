"""Train all seeds of an arm on a Rahimi–Recht task, and measure exact Hessians."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from .contract import EnsembleResult, HistoryBlock, Observer, Plan, Rows, ignore_block
from .device import resolve_device
from .lengths import Lengths, TrainingJob, plan_jobs, train_jobs
from .optimizers import build_optimizer, cost_of_run, takes_member_hyperparameters
from .results import Progress, join_histories, summarise_runs, unpack_result
from .seeds import derive_seed, seeded_rng
from .snapshots import Snapshots
from .train import train_ensemble

__all__ = [
    "build_rahimi_recht_task",
    "hessian_precision",
    "prepare_rahimi_recht",
    "run_rahimi_recht",
    "single_threaded",
    "training_plan",
]

logger = logging.getLogger(__name__)

SHORT_LOG_EVERY = 50
"""Iterations between checks for divergence in runs whose history is not kept."""


def run_rahimi_recht(
    function: RRFunction,
    *,
    task: str,
    arm: str,
    optimizer: str,
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None],
    task_parameters: TaskParameters,
    training: TrainingParameters,
    checkpoint: Checkpoint | None = None,
    seeds: Sequence[int] | None = None,
    observer: Observer = ignore_block,
    snapshots: Snapshots | None = None,
    lengths: Lengths | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """Train every seed of an arm as one ensemble and measure its Hessians.

    An interrupted run continues from its checkpoint.

    Args:
        function: the function to learn.
        task, arm: names, from which all seeds are derived.
        optimizer, hyperparameters: see :func:`.optimizers.build_optimizer`. With several sets of
            hyperparameters, seed s uses number s mod their count; None if no seed uses it.
        task_parameters, training: see :mod:`adaptive_opt.parameters`.
        checkpoint: where the state is saved; default: nowhere.
        seeds: of the runs; default 0 … ``task_parameters.seeds`` − 1.
        observer: called with new rows of the history.
        snapshots: collects weights after chosen epochs.
        lengths: other lengths to train; collects final losses.

    Returns:
        The history (one row per seed and logged iteration, with Hessian columns where one was
        measured), the final weights ``W1``, ``W2``, … ``[seeds, ...]``, and a summary.
    """
    seeds = list(range(task_parameters.seeds)) if seeds is None else sorted(seeds)
    given = hyperparameters
    configurations = [dict(given)] if isinstance(given, dict) else list(given)
    lengths = lengths or Lengths()
    jobs = plan_jobs(
        lengths.shares,
        seeds,
        configurations,
        together=True,
        per_member=takes_member_hyperparameters(optimizer),
    )
    trainer = _RahimiRechtTrainer(function, task, arm, optimizer, task_parameters, training)
    trainer.snapshots, trainer.observer = snapshots or Snapshots(()), observer
    with single_threaded(trainer.device):
        done = trainer.train(jobs, checkpoint or Checkpoint(None))
    used = next(c for c in configurations if c is not None)
    if used.get("curvature") == "exact" or "matrix" in used:  # they cost as much as the estimate
        for record in done:
            length = max(1, round(record["share"] * trainer.iterations))
            record["gradient_equivalents"] = cost_of_run(optimizer, used, length)
    lengths.add(task, arm, len(configurations), trainer.iterations, done)
    full = [record for record in done if record["share"] == 1]
    results = [unpack_result(record["result"]) for record in full]
    trained = [seed for record in full for seed in record["seeds"]]
    order = [trained.index(seed) for seed in seeds]
    history = join_histories(results, task, arm, trained, trainer.batches_per_epoch)
    layers = zip(*(r.weights for r in results), strict=True)
    weights = {f"W{i}": torch.cat(layer)[order] for i, layer in enumerate(layers, 1)}
    summary = summarise_runs(results, history, seeds, trainer.iterations)
    summary["diverged_at"] = [summary["diverged_at"][i] for i in order]
    summary |= {"task": task, "arm": arm, "optimizer": optimizer, "device": str(trainer.device)}
    summary["hyperparameters"] = configurations[0] if len(configurations) == 1 else configurations
    logger.info(
        "%s, %s: %d runs of %s iterations in %.1f s (%.1f µs a run-iteration)",
        task, arm, len(seeds), f"{trainer.iterations:,}", summary["device_seconds"],
        summary["microseconds_per_run_iteration"],
    )  # fmt: skip
    return history, weights, summary


class _RahimiRechtTrainer:
    """Trains the jobs of an arm on the same function."""

    def __init__(
        self,
        function: RRFunction,
        task: str,
        arm: str,
        optimizer: str,
        settings: TaskParameters,
        training: TrainingParameters,
    ) -> None:
        self.function, self.task, self.arm, self.optimizer = function, task, arm, optimizer
        self.settings, self.training = settings, training
        self.device = resolve_device(training.device)
        samples = len(function.inputs)
        self.batches_per_epoch = -(-samples // min(settings.batch_size, samples))
        self.iterations = settings.epochs * self.batches_per_epoch
        self.snapshots = Snapshots(())
        self.observer: Observer = ignore_block
        self._progress: Progress
        self._hessians = torch.empty(0, len(COLUMNS), dtype=torch.float64)
        self._statistics: TrajectoryStatistics | None = None

    def train(self, jobs: Sequence[TrainingJob], checkpoint: Checkpoint) -> list[dict[str, Any]]:
        """Train all jobs, continuing from the checkpoint; see :func:`.lengths.train_jobs`."""
        saved = checkpoint.load() or {"done": [], "state": None, "snapshots": {}}
        self.snapshots.restore(saved["snapshots"])
        if saved["done"] or saved["state"]:
            logger.info("%s, %s: resuming from its checkpoint", self.task, self.arm)
            self._hessians = saved["hessians"]

        def extra() -> dict[str, Any]:
            if self._statistics is not None:
                self._hessians = torch.from_numpy(self._statistics.wait())
            return {"hessians": self._hessians, "snapshots": self.snapshots.tensors}

        lengths = [max(1, round(job.share * self.iterations)) for job in jobs]
        with Progress(f"{self.task} {self.arm}", sum(lengths), "iterations") as self._progress:
            self._progress.skip(sum(lengths[: len(saved["done"])]))
            return train_jobs(
                jobs,
                lambda job, state, enclose: self._train_job(job, state, enclose, checkpoint),
                checkpoint,
                saved,
                extra,
            )

    def _train_job(
        self,
        job: TrainingJob,
        state: dict[str, Any] | None,
        enclose: Callable[[dict[str, Any]], dict[str, Any]],
        checkpoint: Checkpoint,
    ) -> EnsembleResult:
        """Train one job; the history of a full-length job includes its Hessians."""
        task, arm, seeds = self.task, self.arm, job.seeds
        problem, params, optim, latest = prepare_rahimi_recht(
            self.function, task, arm, self.optimizer, job.hyperparameters, seeds,
            self.settings, self.training, self.device,
        )  # fmt: skip
        plan = training_plan(self.settings, self.training, job.share)
        statistics = TrajectoryStatistics(problem.hessian, self.device)
        if state is not None:
            statistics.restore(self._hessians.numpy())
        self._statistics = statistics
        names = [f"W{i}" for i in range(1, 1 + len(params))]
        total = plan.iterations(self.batches_per_epoch)

        def take_snapshot(epoch: int) -> None:
            if job.is_full:
                self.snapshots.take(epoch, seeds, names, params, {}, optim)

        def on_rows(rows: Rows, diverged_at: Sequence[int | None]) -> None:
            if job.is_full:
                self.observer(HistoryBlock(seeds, total, rows, diverged_at))

        with seeded_rng(self.device, task, *seeds):
            result = train_ensemble(
                problem,
                params,
                optim,
                plan,
                on_batch=latest.append,
                on_snapshot=statistics.submit,
                progress=self._progress.update,
                skip=self._progress.skip,
                start=state,
                checkpoint=checkpoint,
                enclose=enclose,
                on_rows=on_rows,
                keep=take_snapshot,
            )
        with Progress(f"{task} {arm} Hessians", statistics.pending, "chunks") as progress:
            hessians = statistics.result(progress.update)
        self._statistics = None
        return replace(result, history=_add_hessian_columns(result, hessians))


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
    """Build what training an ensemble needs.

    Returns:
        The task, its parameters, the optimizer, and a deque. Append each batch to the deque before
        its use: the exact Hessian and its diagonal are computed on it.
    """
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
        matrix_fn=lambda kind: problem.curvature_matrix(params, latest[0], kind),
    )
    return problem, params, optim, latest


def training_plan(
    settings: TaskParameters, training: TrainingParameters, share: float = 1.0
) -> Plan:
    """Plan of a run at a fraction of its full length."""
    full = share == 1
    return Plan(
        epochs=settings.epochs,
        share=share,
        schedule=training.schedule,
        floor=training.schedule_floor,
        log_every=training.log_every if full else max(training.log_every, SHORT_LOG_EVERY),
        statistics_every=training.statistics_every if full else sys.maxsize,
        snapshot_every=training.hessian_every if full else 0,
        measure_end=True,
        diverged_above=training.diverged_above,
    )


def build_rahimi_recht_task(
    function: RRFunction,
    task: str,
    seeds: Sequence[int],
    settings: TaskParameters,
    device: torch.device,
) -> RahimiRecht:
    """Build the Rahimi–Recht task of some seeds."""
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
    """Compare the eigenvalues of exact Hessians in float64 and in float32.

    Args:
        function: the learnt function.
        weights: of each layer, ``[members, ...]``; None: of a global minimum.
        loss: ``rmse`` or ``mse``; ``rmse`` has no Hessian at a global minimum.

    Returns:
        One row per member with a finite Hessian, with the columns
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
def single_threaded(device: torch.device) -> Iterator[None]:
    """Use one CPU thread: the tensors of these ensembles are too small for several."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _add_hessian_columns(result: EnsembleResult, hessians: np.ndarray[Any, Any]) -> pd.DataFrame:
    """History with Hessian columns added."""
    frame = result.history
    if result.snapshots:
        members = len(result.diverged_at)
        table = pd.DataFrame(hessians.astype(np.float64), columns=list(COLUMNS))
        table["iteration"] = np.repeat(result.snapshots, members)
        table["member"] = np.tile(np.arange(members), len(result.snapshots))
        frame = frame.merge(table, on=["member", "iteration"], how="left", validate="1:1")
        for member, start in enumerate(result.diverged_at):
            if start is not None:
                frozen = (frame["member"] == member) & (frame["iteration"] >= start)
                frame.loc[frozen, list(COLUMNS)] = np.nan
    return frame
