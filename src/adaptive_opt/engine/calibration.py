"""What a step of every arm costs in seconds, from arms that take turns within one process.

Seconds of whole runs depend on what else a machine did at the time. Here all arms of a task take
turns, A B C … C B A, so that whatever slows the machine slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from adaptive_opt.parameters import (
    CalibrationParameters,
    ImageTaskParameters,
    TaskParameters,
    TextTaskParameters,
    TrainingParameters,
)
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.rr_functions import RRFunction
from adaptive_opt.tasks.text import TextData

from .contract import Task
from .device import resolve_device
from .optimizers import build_optimizer
from .problem import build_task
from .rahimi_recht import small_kernels
from .seeds import derive_seed, random_stream
from .train import update

__all__ = ["COLUMNS", "calibrate"]

COLUMNS = ("task", "arm", "round", "plain", "refresh", "step")
"""Seconds: of a step without curvature, of what a refresh adds, of a step on average."""


def calibrate(
    data: RRFunction | ImageData | TextData,
    *,
    task: str,
    arms: Mapping[str, Mapping[str, Any]],
    task_parameters: TaskParameters | ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    settings: CalibrationParameters,
) -> pd.DataFrame:
    """Seconds a step of every arm, with one run at a time as a user would train it.

    Args:
        data: what is learnt.
        task: its name.
        arms: by name, ``optimizer`` and ``hyperparameters`` (``parameters.resolve_arm``).
        task_parameters, training: as for a run.
        settings: rounds and the length of a turn.

    Returns:
        A row for each arm and round, columns :data:`COLUMNS`.
    """
    device = resolve_device(training.device)

    with small_kernels(device) if isinstance(data, RRFunction) else random_stream(device, task):
        turns = {
            arm: _Turns(
                build_task(data, task, [0], task_parameters, training),
                task,
                arm,
                resolved,
                task_parameters,
                training,
            )
            for arm, resolved in arms.items()
        }
        for own in turns.values():
            own.take(1)
        rows = []
        for number in range(settings.rounds):
            order = list(turns) if number % 2 == 0 else list(reversed(turns))
            for arm in order:
                plain, refresh, step = turns[arm].take(settings.update_periods)
                rows.append((task, arm, number, plain, refresh, step))
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _Turns:
    """One arm, that is trained for a few steps at a time."""

    def __init__(
        self,
        problem: Task,
        task: str,
        arm: str,
        resolved: Mapping[str, Any],
        settings: TaskParameters | ImageTaskParameters | TextTaskParameters,
        training: TrainingParameters,
    ) -> None:
        self.problem, self.training = problem, training
        self.params = problem.initial_parameters()
        hyperparameters = dict(resolved["hyperparameters"])
        self.curved = "update_period" in hyperparameters
        self.period = int(hyperparameters.get("update_period", training.update_period))
        latest: list[Any] = []
        self.latest = latest
        self.optimizer = build_optimizer(
            str(resolved["optimizer"]),
            hyperparameters,
            self.params,
            probe_seeds=[derive_seed(task, arm, 0, "probe")],
            max_grad_norm=settings.max_grad_norm,
            clip_curvature=training.clip_curvature,
            hidden=problem.hidden,
            diagonal_fn=lambda: self._diagonal(),
        )
        self.steps = 0
        self.batches = cycle(list(islice(problem.epoch(0), 2 * self.period)))
        self._initial = [p.detach().clone() for p in self.params]
        problem.prepare(self.params)

    def _diagonal(self) -> Sequence[Tensor]:
        return self.problem.hessian_diagonal(self.params, self.latest[0])  # type: ignore[attr-defined,no-any-return]

    def take(self, periods: int) -> tuple[float, float, float]:
        """Seconds: median of a plain step, what a refresh adds, mean over an update period."""
        plain: list[float] = []
        due: list[float] = []
        with torch.no_grad():  # from where it began: a run that diverges would cost otherwise
            for p, start in zip(self.params, self._initial, strict=True):
                p.copy_(start)
        for batch in islice(self.batches, periods * self.period):
            self.latest[:] = [batch]
            begun = self._now()
            update(self.problem, self.params, self.optimizer, batch, self.training.curvature_share)
            seconds = self._now() - begun
            (due if self.curved and self.steps % self.period == 0 else plain).append(seconds)
            self.steps += 1
        usual = median(plain or due)
        refresh = max(0.0, median(due) - usual) if due else 0.0
        if not plain:  # curvature at every step
            refresh = 0.0
        return usual, refresh, usual + refresh / self.period

    def _now(self) -> float:
        if self.problem.device.type == "cuda":
            torch.cuda.synchronize(self.problem.device)
        return time.perf_counter()
