"""Train all seeds of an arm on a network task."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from adaptive_opt.parameters import (
    ImageTaskParameters,
    TextTaskParameters,
    TrainingParameters,
)
from adaptive_opt.tasks.image_classification import ImageClassification
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.language_modelling import LanguageModelling
from adaptive_opt.tasks.networks import Execution, NetworkTask
from adaptive_opt.tasks.text import TextData

from .checkpoint import Checkpoint
from .contract import EnsembleResult, HistoryBlock, Observer, Plan, Rows, ignore_block
from .device import resolve_device
from .lengths import Lengths, TrainingJob, plan_jobs, train_jobs
from .optimizers import build_optimizer, takes_member_hyperparameters
from .results import Progress, join_histories, summarise_runs, unpack_result
from .seeds import derive_seed, seeded_rng
from .snapshots import Snapshots
from .train import train_ensemble

__all__ = ["build_network_task", "run_network"]

logger = logging.getLogger(__name__)

SMALL_NETWORK = 1_000_000
"""Number of parameters below which launching operations takes much of the time. An ensemble
launches them once for all seeds (docs/step_cost.md)."""


def run_network(
    data: ImageData | TextData,
    *,
    task: str,
    arm: str,
    optimizer: str,
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None],
    task_parameters: ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    checkpoint: Checkpoint | None = None,
    seeds: Sequence[int] | None = None,
    observer: Observer = ignore_block,
    snapshots: Snapshots | None = None,
    lengths: Lengths | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """Train every seed of an arm on a network.

    Depending on ``training.ensemble``, seeds train as one ensemble or one after the other. An
    interrupted run continues from its checkpoint.

    Args:
        data: the task's data.
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
        The history (one row per seed and logged iteration), final parameters and buffers
        ``[seeds, ...]`` by name, and a summary.
    """
    seeds = list(range(task_parameters.seeds)) if seeds is None else sorted(seeds)
    device = resolve_device(training.device)
    problem = build_network_task(data, task, seeds[:1], task_parameters, training)
    small = sum(p.numel() for p in problem.initial_parameters()) < SMALL_NETWORK
    together = training.ensemble == "together" or (training.ensemble == "auto" and small)
    checkpoint = checkpoint or Checkpoint(None)
    snapshots, lengths = snapshots or Snapshots(()), lengths or Lengths()
    given = hyperparameters
    configurations = [dict(given)] if isinstance(given, dict) else list(given)
    jobs = plan_jobs(
        lengths.shares,
        seeds,
        configurations,
        together=together,
        per_member=takes_member_hyperparameters(optimizer),
    )
    saved = checkpoint.load() or {"done": [], "state": None, "snapshots": {}}
    snapshots.restore(saved["snapshots"])
    if saved["done"] or saved["state"]:
        logger.info("%s, %s: resuming from %s", task, arm, checkpoint.path)
    length = task_parameters.epochs * problem.batches_per_epoch
    total = sum(max(1, round(job.share * length)) for job in jobs)
    with Progress(f"{task} {arm}", total, "iterations") as progress:
        for finished in saved["done"]:
            progress.skip(max(1, round(finished["share"] * length)))
        trainer = _NetworkTrainer(data, task, arm, optimizer, task_parameters, training, checkpoint)
        done = train_jobs(
            jobs,
            lambda job, state, enclose: trainer.train(
                job, state, enclose, progress, observer, snapshots
            ),
            checkpoint,
            saved,
            lambda: {"snapshots": snapshots.tensors},
        )
    lengths.add(task, arm, len(configurations), length, done)
    full = [record for record in done if record["share"] == 1]
    results = [unpack_result(record["result"]) for record in full]
    trained = [seed for record in full for seed in record["seeds"]]
    history = join_histories(results, task, arm, trained, problem.batches_per_epoch)
    order = [trained.index(seed) for seed in seeds]
    names = problem.names
    weights = {n: torch.cat([r.weights[j] for r in results])[order] for j, n in enumerate(names)}
    for name in problem.buffers:
        weights[name] = torch.cat([r.task_state["buffers"][name] for r in results])[order]
    summary = summarise_runs(results, history, seeds, length)
    summary["diverged_at"] = [summary["diverged_at"][i] for i in order]
    summary |= {"task": task, "arm": arm, "optimizer": optimizer, "device": str(device)}
    summary["hyperparameters"] = configurations[0] if len(configurations) == 1 else configurations
    summary |= {"ensemble": "together" if together else "apart"}
    logger.info(
        "%s, %s: %d runs of %s iterations in %.1f s (%.1f ms a run-iteration)",
        task, arm, len(seeds), f"{length:,}", summary["device_seconds"],
        summary["microseconds_per_run_iteration"] / 1e3,
    )  # fmt: skip
    return history, weights, summary


class _NetworkTrainer:
    """Trains the jobs of an arm on the same data."""

    def __init__(
        self,
        data: ImageData | TextData,
        task: str,
        arm: str,
        optimizer: str,
        settings: ImageTaskParameters | TextTaskParameters,
        training: TrainingParameters,
        checkpoint: Checkpoint,
    ) -> None:
        self.data, self.task, self.arm, self.optimizer = data, task, arm, optimizer
        self.settings, self.training, self.checkpoint = settings, training, checkpoint

    def train(
        self,
        job: TrainingJob,
        state: dict[str, Any] | None,
        enclose: Callable[[dict[str, Any]], dict[str, Any]],
        progress: Progress,
        observer: Observer,
        snapshots: Snapshots,
    ) -> EnsembleResult:
        """Train a job to its end, from the start or from a saved state."""
        settings, training, seeds = self.settings, self.training, job.seeds
        problem = build_network_task(self.data, self.task, seeds, settings, training)
        params = problem.initial_parameters()
        optimizer = build_optimizer(
            self.optimizer,
            job.hyperparameters,
            params,
            probe_seeds=[derive_seed(self.task, self.arm, s, "probe") for s in seeds],
            max_grad_norm=settings.max_grad_norm,
            clip_curvature=training.clip_curvature,
            hidden=problem.hidden,
        )
        plan = self._plan(job, problem)
        length = plan.iterations(problem.batches_per_epoch)

        def take_snapshot(epoch: int) -> None:
            if job.is_full:
                names, buffers = problem.names, problem.buffers
                snapshots.take(epoch, seeds, names, params, buffers, optimizer)

        def on_rows(rows: Rows, diverged_at: Sequence[int | None]) -> None:
            if job.is_full:
                observer(HistoryBlock(seeds, length, rows, diverged_at))

        with seeded_rng(problem.device, self.task, *seeds):
            return train_ensemble(
                problem,
                params,
                optimizer,
                plan,
                progress=progress.update,
                skip=progress.skip,
                start=state,
                checkpoint=self.checkpoint,
                enclose=enclose,
                keep=take_snapshot,
                on_rows=on_rows,
            )

    def _plan(self, job: TrainingJob, problem: NetworkTask) -> Plan:
        settings, training = self.settings, self.training
        every = max(1, round(settings.evaluate_every * problem.batches_per_epoch))
        return Plan(
            epochs=settings.epochs,
            share=job.share,
            schedule=training.schedule,
            floor=training.schedule_floor,
            log_every=settings.log_every or training.log_every,
            statistics_every=training.statistics_every if job.is_full else sys.maxsize,
            evaluate_every=every if job.is_full else 0,
            measure_end=True,
            curvature_share=training.curvature_share,
            diverged_above=training.diverged_above,
        )


def build_network_task(
    data: ImageData | TextData,
    task: str,
    seeds: Sequence[int],
    settings: ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
) -> NetworkTask:
    """Build the network task of some seeds.

    Raises:
        TypeError: data and settings belong to different kinds of tasks.
    """
    execution = Execution(
        device=resolve_device(training.device),
        precision=training.precision,
        channels_last=training.channels_last,
        compile=training.compile,
        curvature_share=training.curvature_share,
    )
    weight_seeds = [derive_seed(task, s, "weights") for s in seeds]
    if isinstance(data, ImageData) and isinstance(settings, ImageTaskParameters):
        return ImageClassification(
            data,
            **settings.model_dump(
                include={"widths", "blocks", "batch_size", "crop_padding", "flip"}
            ),
            weight_seeds=weight_seeds,
            order_seed=lambda member, epoch: derive_seed(task, seeds[member], "order", epoch),
            execution=execution,
        )
    if isinstance(data, TextData) and isinstance(settings, TextTaskParameters):
        sizes = {"width", "heads", "feedforward", "layers", "dropout", "streams", "window"}
        return LanguageModelling(
            data,
            **settings.model_dump(include=sizes),
            weight_seeds=weight_seeds,
            execution=execution,
        )
    raise TypeError(f"{type(data).__name__} cannot be learnt with {type(settings).__name__}")
