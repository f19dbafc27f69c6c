"""Trials of a search: configurations trained for a while, and what became of them."""

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
from .optimizers import build_optimizer, takes_members
from .problem import build_task
from .rahimi_recht import build_rahimi_recht_task, small_kernels
from .seeds import derive_seed, random_stream
from .train import train_ensemble

__all__ = ["FIRST_TRIAL_SEED", "Trial", "TrialPlan"]
__all__ += ["constant_loss", "train_network_trials", "train_trials"]

FIRST_TRIAL_SEED = 1_000_000
"""Seeds of trials are counted from here, so that no run of the study shares one with them."""

ROWS = 120
"""Of a trial's history on Rahimi–Recht, about: fine enough to see when a target is reached."""


@dataclass(frozen=True)
class TrialPlan:
    """How trials are trained.

    Attributes:
        epochs: length.
        seeds: runs a trial.
        horizon: epochs that the learning rate's schedule spans.
        study: number of the search, which has runs of its own.
        report_epochs: between two reports.
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
        """Of its runs; the same for every trial, so that trials differ by configuration only."""
        first = FIRST_TRIAL_SEED + 1000 * self.study
        return [first + s for s in range(self.seeds)]

    def for_loop(
        self,
        training: TrainingParameters,
        log_every: int,
        curvature_share: float = 1.0,
        *,
        measure_end: bool = False,
    ) -> Plan:
        """For the training loop: losses are noted, nothing else is looked at."""
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
    """What a trial leaves.

    Attributes:
        history: ``seed``, ``iteration``, ``train_loss``, and ``valid_loss`` if looked at.
        iterations: how far it got.
        diverged_at: the first iteration at which one of its runs had diverged, or None.
        seconds: its share of the time its program took.
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
    """Loss over a split of the best prediction that does not look at its input.

    Args:
        data: what is learnt.
        task: its name.
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
    """Train several configurations on a Rahimi–Recht function, every seed of each.

    All as one ensemble if the optimizer takes hyperparameters of shape ``[members]``, else
    one configuration after the other.

    Args:
        function: what is learnt.
        task, arm: names, from which seeds are derived.
        optimizer: dotted import path.
        configurations: hyperparameters, alike but for some numbers.
        task_parameters, training: as for a run.
        plan: length and seeds.
    """
    if len(configurations) > 1 and not takes_members(optimizer):
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

    with small_kernels(device), random_stream(device, task, *plan.seed_numbers):
        begun = time.perf_counter()
        optim = build_optimizer(
            optimizer,
            merge_configurations([c for c in configurations for _ in range(plan.seeds)]),
            params,
            probe_seeds=[derive_seed(task, arm, s, "probe") for s in seeds],
            max_grad_norm=task_parameters.max_grad_norm,
            clip_curvature=training.clip_curvature,
            hidden=problem.hidden,
            diagonal_fn=lambda: problem.hessian_diagonal(params, latest[0]),
        )
        iterations = round(plan.epochs * problem.batches_per_epoch)
        result = train_ensemble(
            problem,
            params,
            optim,
            plan.for_loop(training, log_every=max(1, iterations // ROWS)),
            on_batch=remember,
        )
        seconds = (time.perf_counter() - begun) / number
    return _apart(result, plan.seeds, iterations, seconds)


def _apart(result: EnsembleResult, seeds: int, iterations: int, seconds: float) -> list[Trial]:
    """The trials of an ensemble, each of the members that are its seeds."""
    frame = result.history[["member", "iteration", "train_loss"]].rename(columns={"member": "seed"})
    return _split(frame, result, seeds, iterations, seconds)


def _split(
    frame: pd.DataFrame, result: EnsembleResult, seeds: int, iterations: int, seconds: float
) -> list[Trial]:
    """The rows of each trial, whose members are numbered in the column ``seed``."""
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
    """Train configurations on a network, every seed of each; test data are not looked at.

    All as one ensemble if the optimizer takes hyperparameters of shape ``[members]``, else
    one configuration after the other.

    Args:
        data: what is learnt.
        task, arm: names, from which seeds are derived.
        optimizer: dotted import path.
        configurations: hyperparameters, alike but for some numbers.
        task_parameters, training: as for a run.
        plan: length and seeds.
        validates: whether every report evaluates the validation data.
        report: called with the number of the report, from 1, and the history of all trials;
            returns whether to stop.
    """
    number = len(configurations)
    if number > 1 and not takes_members(optimizer):
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
    at = {number: t for t, number in reports.items()}
    reached = 0

    def on_report(
        number: int, recorder: Recorder, evaluate: Callable[[str], dict[str, Tensor]]
    ) -> bool:
        nonlocal reached
        reached = at[number]
        if validates:
            losses = evaluate("valid")["valid_loss"].double().cpu().numpy()
            row = {"member": range(len(seeds)), "iteration": reached, "valid_loss": losses}
            valid.append(pd.DataFrame(row))
        return report(number, _with_validation(recorder.to_frame(), valid))

    with random_stream(problem.device, task, *plan.seed_numbers):
        begun = time.perf_counter()
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
            plan.for_loop(
                training,
                log_every=task_parameters.log_every or training.log_every,
                curvature_share=training.curvature_share,
                measure_end=iterations not in reports,
            ),
            on_report=on_report,
            report_at=reports,
        )
        seconds = (time.perf_counter() - begun) / number
    if result.final:  # it ended between two reports
        reached = iterations
        losses = result.final["valid_loss"]
        row = {"member": range(len(seeds)), "iteration": reached, "valid_loss": losses}
        valid.append(pd.DataFrame(row))
    return _split(_with_validation(result.history, valid), result, plan.seeds, reached, seconds)


def _with_validation(frame: pd.DataFrame, valid: Sequence[pd.DataFrame]) -> pd.DataFrame:
    columns = [c for c in ("member", "iteration", "train_loss") if c in frame]
    rows = pd.concat([frame[columns], *valid], ignore_index=True)
    if not valid:
        rows["valid_loss"] = np.nan
    rows = rows.sort_values(["member", "iteration"], kind="stable")
    return rows.rename(columns={"member": "seed"})
