"""Train the trials of a search."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from adaptive_opt.parameters import (
    ImageTaskParameters,
    TaskParameters,
    TextTaskParameters,
    TrainingParameters,
)
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.rr_functions import RRFunction
from adaptive_opt.tasks.text import TextData

from .contract import EnsembleResult, Plan
from .device import resolve_device
from .history import Recorder
from .lengths import merge_configurations
from .network import build_network_task
from .optimizers import build_optimizer, takes_member_hyperparameters
from .problem import build_task
from .rahimi_recht import build_rahimi_recht_task, single_threaded
from .seeds import derive_seed, seeded_rng
from .train import train_ensemble

__all__ = ["FIRST_TRIAL_SEED", "Trial", "TrialPlan"]
__all__ += ["constant_loss", "train_network_trials", "train_trials"]

FIRST_TRIAL_SEED = 1_000_000
"""First seed of trials, higher than those of the study's runs."""

HISTORY_ROWS = 120
"""Approximate rows of a Rahimi–Recht trial's history, enough to see when a target is reached."""


@dataclass(frozen=True)
class TrialPlan:
    """Length, seeds and reports of trials.

    Attributes:
        epochs: length of a trial.
        seeds: number of runs per trial.
        horizon: length of the learning rate schedule, in epochs.
        study: number of the search; each search has its own seeds.
        report_epochs: epochs between reports.
    """

    epochs: float
    seeds: int
    horizon: float
    study: int = 0
    report_epochs: float = 1

    def reports(self, batches_per_epoch: int) -> dict[int, int]:
        """Numbers of the reports, from 1, by iteration.

        Example:
            >>> TrialPlan(1.5, seeds=1, horizon=1.5, report_epochs=0.5).reports(5)
            {2: 1, 5: 2, 8: 3}
        """
        end = round(self.epochs * batches_per_epoch)
        times = {
            max(1, round(i * self.report_epochs * batches_per_epoch)): i
            for i in range(1, int(self.epochs / self.report_epochs + 1e-9) + 1)
        }
        return {t: i for t, i in times.items() if t <= end}

    @property
    def seed_numbers(self) -> list[int]:
        """Seeds of a trial's runs; the same for every trial, which differ in configuration only."""
        first = FIRST_TRIAL_SEED + 1000 * self.study
        return [first + s for s in range(self.seeds)]

    def training_plan(
        self,
        training: TrainingParameters,
        log_every: int,
        curvature_share: float = 1.0,
        *,
        measure_end: bool = False,
    ) -> Plan:
        """Plan for the training loop, which records losses only."""
        whole = math.ceil(self.epochs)
        return Plan(
            epochs=whole,
            share=self.epochs / whole,
            schedule=training.schedule,
            floor=training.schedule_floor,
            schedule_epochs=self.horizon,
            log_every=log_every,
            statistics_every=sys.maxsize,
            curvature_share=curvature_share,
            measure_end=measure_end,
            diverged_above=training.diverged_above,
        )


@dataclass(frozen=True)
class Trial:
    """Result of a trial.

    Attributes:
        history: ``seed``, ``iteration``, ``train_loss``, and ``valid_loss`` if measured.
        iterations: number of iterations trained.
        diverged_at: first iteration at which one of its runs had diverged, or None.
        seconds: its share of the ensemble's wall time.
    """

    history: pd.DataFrame
    iterations: int
    diverged_at: int | None
    seconds: float


def constant_loss(
    data: RRFunction | ImageData | TextData,
    task: str,
    task_parameters: TaskParameters | ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    split: str,
) -> float:
    """Loss over a split of the best prediction that ignores the input.

    Args:
        data: the task's data.
        task: name of the task.
        task_parameters, training: as for a run.
        split: ``train`` or ``valid``.
    """
    return build_task(data, task, [0], task_parameters, training).constant_loss(split)


def train_trials(
    function: RRFunction,
    *,
    task: str,
    arm: str,
    optimizer: str,
    configurations: Sequence[dict[str, Any]],
    task_parameters: TaskParameters,
    training: TrainingParameters,
    plan: TrialPlan,
) -> list[Trial]:
    """Train several configurations on a Rahimi–Recht function, with every seed of the plan.

    They train as one ensemble if the optimizer accepts hyperparameters of shape ``[members]``,
    else one after the other.

    Args:
        function: the function to learn.
        task, arm: names, from which seeds are derived.
        optimizer: dotted import path.
        configurations: hyperparameters; they differ in numbers only.
        task_parameters, training: as for a run.
        plan: length and seeds.

    Returns:
        One trial per configuration.
    """
    if len(configurations) > 1 and not takes_member_hyperparameters(optimizer):
        return [
            trial
            for c in configurations
            for trial in train_trials(
                function, task=task, arm=arm, optimizer=optimizer, configurations=[c],
                task_parameters=task_parameters, training=training, plan=plan,
            )
        ]  # fmt: skip
    device = resolve_device(training.device)
    number, seeds = len(configurations), plan.seed_numbers * len(configurations)
    problem = build_rahimi_recht_task(function, task, seeds, task_parameters, device)
    params = problem.initial_parameters()
    latest: list[Tensor] = []

    def remember(batch: Tensor) -> None:
        latest[:] = [batch]

    with single_threaded(device), seeded_rng(device, task, *plan.seed_numbers):
        start_time = time.perf_counter()
        optim = build_optimizer(
            optimizer,
            merge_configurations([c for c in configurations for _ in range(plan.seeds)]),
            params,
            probe_seeds=[derive_seed(task, arm, s, "probe") for s in seeds],
            max_grad_norm=task_parameters.max_grad_norm,
            clip_curvature=training.clip_curvature,
            hidden=problem.hidden,
            diagonal_fn=lambda: problem.hessian_diagonal(params, latest[0]),
            matrix_fn=lambda kind: problem.curvature_matrix(params, latest[0], kind),
        )
        iterations = round(plan.epochs * problem.batches_per_epoch)
        result = train_ensemble(
            problem,
            params,
            optim,
            plan.training_plan(training, log_every=max(1, iterations // HISTORY_ROWS)),
            on_batch=remember,
        )
        seconds = (time.perf_counter() - start_time) / number
    return _split_ensemble(result, plan.seeds, iterations, seconds)


def _split_ensemble(
    result: EnsembleResult, seeds: int, iterations: int, seconds: float
) -> list[Trial]:
    """Split the result of an ensemble into trials."""
    frame = result.history[["member", "iteration", "train_loss"]].rename(columns={"member": "seed"})
    return _split_rows(frame, result, seeds, iterations, seconds)


def _split_rows(
    frame: pd.DataFrame, result: EnsembleResult, seeds: int, iterations: int, seconds: float
) -> list[Trial]:
    """Split rows into trials by the member number, which is in the column ``seed``."""
    trials = []
    for i, rows in frame.groupby(frame["seed"] // seeds):
        members = range(int(i) * seeds, (int(i) + 1) * seeds)
        diverged = [t for m in members if (t := result.diverged_at[m]) is not None]
        trials.append(Trial(rows, iterations, min(diverged, default=None), seconds))
    return trials


def train_network_trials(
    data: ImageData | TextData,
    *,
    task: str,
    arm: str,
    optimizer: str,
    configurations: Sequence[dict[str, Any]],
    task_parameters: ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    plan: TrialPlan,
    validates: bool,
    report: Callable[[int, pd.DataFrame], bool],
) -> list[Trial]:
    """Train several configurations on a network, with every seed of the plan, without test data.

    They train as one ensemble if the optimizer accepts hyperparameters of shape ``[members]``,
    else one after the other.

    Args:
        data: the task's data.
        task, arm: names, from which seeds are derived.
        optimizer: dotted import path.
        configurations: hyperparameters; they differ in numbers only.
        task_parameters, training: as for a run.
        plan: length, seeds and reports.
        validates: whether every report evaluates the validation data.
        report: called with the number of the report, from 1, and the history of all trials;
            returns whether to stop.

    Returns:
        One trial per configuration.
    """
    number = len(configurations)
    if number > 1 and not takes_member_hyperparameters(optimizer):
        return [
            trial
            for c in configurations
            for trial in train_network_trials(
                data, task=task, arm=arm, optimizer=optimizer, configurations=[c],
                task_parameters=task_parameters, training=training, plan=plan,
                validates=validates, report=report,
            )
        ]  # fmt: skip
    seeds = plan.seed_numbers * number
    problem = build_network_task(data, task, seeds, task_parameters, training)
    params = problem.initial_parameters()
    valid: list[pd.DataFrame] = []
    iterations = round(plan.epochs * problem.batches_per_epoch)
    reports = plan.reports(problem.batches_per_epoch)
    iteration_of = {number: t for t, number in reports.items()}
    reached = 0

    def on_report(
        number: int, recorder: Recorder, evaluate: Callable[[str], dict[str, Tensor]]
    ) -> bool:
        nonlocal reached
        reached = iteration_of[number]
        if validates:
            losses = evaluate("valid")["valid_loss"].double().cpu().numpy()
            row = {"member": range(len(seeds)), "iteration": reached, "valid_loss": losses}
            valid.append(pd.DataFrame(row))
        return report(number, _with_validation(recorder.to_frame(), valid))

    with seeded_rng(problem.device, task, *plan.seed_numbers):
        start_time = time.perf_counter()
        optim = build_optimizer(
            optimizer,
            merge_configurations([c for c in configurations for _ in range(plan.seeds)]),
            params,
            probe_seeds=[derive_seed(task, arm, s, "probe") for s in seeds],
            max_grad_norm=task_parameters.max_grad_norm,
            clip_curvature=training.clip_curvature,
            hidden=problem.hidden,
        )
        result = train_ensemble(
            problem,
            params,
            optim,
            plan.training_plan(
                training,
                log_every=task_parameters.log_every or training.log_every,
                curvature_share=training.curvature_share,
                measure_end=iterations not in reports,
            ),
            on_report=on_report,
            report_at=reports,
        )
        seconds = (time.perf_counter() - start_time) / number
    if result.final:  # training ended between two reports
        reached = iterations
        losses = result.final["valid_loss"]
        row = {"member": range(len(seeds)), "iteration": reached, "valid_loss": losses}
        valid.append(pd.DataFrame(row))
    return _split_rows(
        _with_validation(result.history, valid), result, plan.seeds, reached, seconds
    )


def _with_validation(frame: pd.DataFrame, valid: Sequence[pd.DataFrame]) -> pd.DataFrame:
    columns = [c for c in ("member", "iteration", "train_loss") if c in frame]
    rows = pd.concat([frame[columns], *valid], ignore_index=True)
    if not valid:
        rows["valid_loss"] = np.nan
    rows = rows.sort_values(["member", "iteration"], kind="stable")
    return rows.rename(columns={"member": "seed"})
