"""One (network task, arm): train all seeds, together or one after the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from .contract import EnsembleResult, HistoryBlock, Observer, Plan, ignore
from .device import resolve_device
from .optimizers import build_optimizer
from .results import Progress, label_history, pack_result, summarise, unpack_result
from .seeds import derive_seed, random_stream
from .snapshots import Snapshots
from .train import train_ensemble

__all__ = ["build_network_task", "run_network"]

logger = logging.getLogger(__name__)

SMALL_NETWORK = 1_000_000
"""Parameters below which much of the time goes into starting operations, which an ensemble
does once for all seeds (docs/step_cost.md)."""


def run_network(
    data: ImageData | TextData,
    *,
    task: str,
    arm: str,
    optimizer: str,
    hyperparameters: dict[str, Any],
    task_parameters: ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    checkpoint: Checkpoint | None = None,
    seeds: Sequence[int] | None = None,
    observer: Observer = ignore,
    snapshots: Snapshots | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """Train every seed of an arm on a network.

    Seeds train as one ensemble where ``training.ensemble`` says so, and otherwise one after
    the other. With a checkpoint a run that was broken off is taken up where it was saved.

    Args:
        data: what is learnt.
        task, arm: names, from which all seeds are derived.
        optimizer, hyperparameters: see :func:`.optimizers.build_optimizer`.
        task_parameters, training: see :mod:`adaptive_opt.parameters`.
        checkpoint: where the state is kept.
        seeds: the runs; default 0 … ``task_parameters.seeds`` − 1.
        observer: told of the history while it grows.
        snapshots: where weights after chosen epochs are put.

    Returns:
        The history (one row for each seed and logged iteration), final parameters and
        buffers ``[seeds, ...]`` by name, and a summary.
    """
    seeds = list(range(task_parameters.seeds)) if seeds is None else list(seeds)
    device = resolve_device(training.device)
    problem = build_network_task(data, task, seeds[:1], task_parameters, training)
    small = sum(p.numel() for p in problem.initial_parameters()) < SMALL_NETWORK
    together = training.ensemble == "together" or (training.ensemble == "auto" and small)
    groups = [seeds] if together else [[s] for s in seeds]
    checkpoint = checkpoint or Checkpoint(None)
    snapshots = snapshots or Snapshots(())
    saved = checkpoint.load() or {"done": [], "state": None, "snapshots": {}}
    done: list[dict[str, Any]] = saved["done"]
    snapshots.restore(saved["snapshots"])
    if saved["done"] or saved["state"]:
        logger.info("%s, %s: going on from %s", task, arm, checkpoint.path)
    length = task_parameters.epochs * problem.batches_per_epoch
    with Progress(f"{task} {arm}", length * len(groups), "iterations") as progress:
        progress.skip(length * len(done))
        for group in groups[len(done) :]:
            if group != seeds[:1]:
                problem = build_network_task(data, task, group, task_parameters, training)
            run = _Run(task, arm, group, optimizer, hyperparameters, task_parameters, training)
            result = run.train(
                problem, saved["state"], done, checkpoint, progress, observer, snapshots
            )
            saved["state"] = None
            done.append(pack_result(result))
            checkpoint.save({"done": done, "state": None, "snapshots": snapshots.tensors})
    results = [unpack_result(d) for d in done]
    histories = [r.history.assign(member=r.history["member"] + i) for i, r in enumerate(results)]
    frame = pd.concat(histories, ignore_index=True)
    history = label_history(frame, task, arm, seeds, problem.batches_per_epoch)
    names = problem.names
    weights = {n: torch.cat([r.weights[j] for r in results]) for j, n in enumerate(names)}
    for name in problem.buffers:
        weights[name] = torch.cat([r.task_state["buffers"][name] for r in results])
    summary = summarise(results, history, seeds, length)
    summary |= {"task": task, "arm": arm, "optimizer": optimizer, "device": str(device)}
    summary["hyperparameters"] = hyperparameters
    summary |= {"ensemble": "together" if together else "apart"}
    logger.info(
        "%s, %s: %d runs of %s iterations in %.1f s (%.1f ms a run-iteration)",
        task, arm, len(seeds), f"{length:,}", summary["device_seconds"],
        summary["microseconds_per_run_iteration"] / 1e3,
    )  # fmt: skip
    return history, weights, summary


class _Run:
    """Seeds that are trained as one program."""

    def __init__(
        self,
        task: str,
        arm: str,
        seeds: Sequence[int],
        optimizer: str,
        hyperparameters: dict[str, Any],
        settings: ImageTaskParameters | TextTaskParameters,
        training: TrainingParameters,
    ) -> None:
        self.task, self.arm, self.seeds = task, arm, seeds
        self.optimizer, self.hyperparameters = optimizer, hyperparameters
        self.settings, self.training = settings, training

    def train(
        self,
        problem: NetworkTask,
        state: dict[str, Any] | None,
        done: list[dict[str, Any]],
        checkpoint: Checkpoint,
        progress: Progress,
        observer: Observer,
        snapshots: Snapshots,
    ) -> EnsembleResult:
        """To the end, from the start or from a saved state."""
        settings, training = self.settings, self.training
        params = problem.initial_parameters()
        optimizer = build_optimizer(
            self.optimizer,
            self.hyperparameters,
            params,
            probe_seeds=[derive_seed(self.task, self.arm, s, "probe") for s in self.seeds],
            max_grad_norm=settings.max_grad_norm,
            clip_curvature=training.clip_curvature,
            hidden=problem.hidden,
        )
        plan = Plan(
            epochs=settings.epochs,
            schedule=training.schedule,
            floor=training.schedule_floor,
            log_every=settings.log_every or training.log_every,
            statistics_every=training.statistics_every,
            evaluate_every=settings.evaluate_every * problem.batches_per_epoch,
            curvature_share=training.curvature_share,
            diverged_above=training.diverged_above,
        )
        length = plan.epochs * problem.batches_per_epoch

        def keep(epoch: int) -> None:
            names, buffers = problem.names, problem.buffers
            snapshots.take(epoch, self.seeds, names, params, buffers, optimizer)

        with random_stream(problem.device, self.task, *self.seeds):
            return train_ensemble(
                problem,
                params,
                optimizer,
                plan,
                progress=progress.update,
                skip=progress.skip,
                start=state,
                checkpoint=checkpoint,
                enclose=lambda inner: {
                    "done": done,
                    "state": inner,
                    "snapshots": snapshots.tensors,
                },
                keep=keep,
                on_rows=lambda rows, diverged_at: observer(
                    HistoryBlock(self.seeds, length, rows, diverged_at)
                ),
            )


def build_network_task(
    data: ImageData | TextData,
    task: str,
    seeds: Sequence[int],
    settings: ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
) -> NetworkTask:
    """The task of some seeds, in the sizes of the parameters."""
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
