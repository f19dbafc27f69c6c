"""One (network task, arm): train all seeds, together or one after the other."""

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
from .contract import EnsembleResult, HistoryBlock, Observer, Plan, Rows, ignore
from .device import resolve_device
from .lengths import Lengths, Turn, plan_turns, train_turns
from .optimizers import build_optimizer, takes_members
from .results import Progress, joined_history, summarise, unpack_result
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
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None],
    task_parameters: ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    checkpoint: Checkpoint | None = None,
    seeds: Sequence[int] | None = None,
    observer: Observer = ignore,
    snapshots: Snapshots | None = None,
    lengths: Lengths | None = None,
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """Train every seed of an arm on a network.

    Seeds train as one ensemble where ``training.ensemble`` says so, and otherwise one after
    the other. With a checkpoint a run that was broken off is taken up where it was saved.

    Args:
        data: what is learnt.
        task, arm: names, from which all seeds are derived.
        optimizer, hyperparameters: see :func:`.optimizers.build_optimizer`. Of several sets of
            hyperparameters the run of seed s takes number s mod their number; None: of no run.
        task_parameters, training: see :mod:`adaptive_opt.parameters`.
        checkpoint: where the state is kept.
        seeds: the runs; default 0 … ``task_parameters.seeds`` − 1.
        observer: told of the history while it grows.
        snapshots: where weights after chosen epochs are put.
        lengths: other lengths to train, and where final losses are put.

    Returns:
        The history (one row for each seed and logged iteration), final parameters and
        buffers ``[seeds, ...]`` by name, and a summary.
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
    turns = plan_turns(
        lengths.shares,
        seeds,
        configurations,
        together=together,
        per_member=takes_members(optimizer),
    )
    saved = checkpoint.load() or {"done": [], "state": None, "snapshots": {}}
    snapshots.restore(saved["snapshots"])
    if saved["done"] or saved["state"]:
        logger.info("%s, %s: going on from %s", task, arm, checkpoint.path)
    length = task_parameters.epochs * problem.batches_per_epoch
    total = sum(max(1, round(turn.share * length)) for turn in turns)
    with Progress(f"{task} {arm}", total, "iterations") as progress:
        for finished in saved["done"]:
            progress.skip(max(1, round(finished["share"] * length)))
        run = _Run(data, task, arm, optimizer, task_parameters, training, checkpoint)
        done = train_turns(
            turns,
            lambda turn, state, enclose: run.train(
                turn, state, enclose, progress, observer, snapshots
            ),
            checkpoint,
            saved,
            lambda: {"snapshots": snapshots.tensors},
        )
    lengths.add(task, arm, len(configurations), length, done)
    full = [record for record in done if record["share"] == 1]
    results = [unpack_result(record["result"]) for record in full]
    trained = [seed for record in full for seed in record["seeds"]]
    history = joined_history(results, task, arm, trained, problem.batches_per_epoch)
    order = [trained.index(seed) for seed in seeds]
    names = problem.names
    weights = {n: torch.cat([r.weights[j] for r in results])[order] for j, n in enumerate(names)}
    for name in problem.buffers:
        weights[name] = torch.cat([r.task_state["buffers"][name] for r in results])[order]
    summary = summarise(results, history, seeds, length)
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


class _Run:
    """Trains one turn after the other on the same data."""

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
        turn: Turn,
        state: dict[str, Any] | None,
        enclose: Callable[[dict[str, Any]], dict[str, Any]],
        progress: Progress,
        observer: Observer,
        snapshots: Snapshots,
    ) -> EnsembleResult:
        """To the end, from the start or from a saved state."""
        settings, training, seeds = self.settings, self.training, turn.seeds
        problem = build_network_task(self.data, self.task, seeds, settings, training)
        params = problem.initial_parameters()
        optimizer = build_optimizer(
            self.optimizer,
            turn.hyperparameters,
            params,
            probe_seeds=[derive_seed(self.task, self.arm, s, "probe") for s in seeds],
            max_grad_norm=settings.max_grad_norm,
            clip_curvature=training.clip_curvature,
            hidden=problem.hidden,
        )
        plan = self._plan(turn, problem)
        length = plan.iterations(problem.batches_per_epoch)

        def keep(epoch: int) -> None:
            if turn.is_full:
                names, buffers = problem.names, problem.buffers
                snapshots.take(epoch, seeds, names, params, buffers, optimizer)

        def on_rows(rows: Rows, diverged_at: Sequence[int | None]) -> None:
            if turn.is_full:
                observer(HistoryBlock(seeds, length, rows, diverged_at))

        with random_stream(problem.device, self.task, *seeds):
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
                keep=keep,
                on_rows=on_rows,
            )

    def _plan(self, turn: Turn, problem: NetworkTask) -> Plan:
        settings, training = self.settings, self.training
        every = max(1, round(settings.evaluate_every * problem.batches_per_epoch))
        return Plan(
            epochs=settings.epochs,
            share=turn.share,
            schedule=training.schedule,
            floor=training.schedule_floor,
            log_every=settings.log_every or training.log_every,
            statistics_every=training.statistics_every if turn.is_full else sys.maxsize,
            evaluate_every=every if turn.is_full else 0,
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
