"""Seconds per step of every arm, measured in alternation within one process.

The duration of whole runs depends on other load of the machine. Here all arms of a task
alternate, A B C … C B A, so that load affects all of them.
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
from .rahimi_recht import single_threaded
from .seeds import derive_seed, seeded_rng
from .step import training_step

__all__ = ["COLUMNS", "calibrate"]

COLUMNS = ("task", "arm", "round", "plain", "refresh", "step")
"""``plain``: seconds of a step without curvature; ``refresh``: additional seconds of a refresh;
``step``: mean seconds of a step."""


def calibrate(
    data: RRFunction | ImageData | TextData,
    *,
    task: str,
    arms: Mapping[str, Mapping[str, Any]],
    task_parameters: TaskParameters | ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    settings: CalibrationParameters,
) -> pd.DataFrame:
    """Measure the seconds per step of every arm, with one run at a time as in users' training.

    Args:
        data: the task's data.
        task: name of the task.
        arms: by name, ``optimizer`` and ``hyperparameters`` (``parameters.resolve_arm``), and
            ``curvature_share`` if it is not that of ``training``.
        task_parameters, training: as for a run.
        settings: number of rounds, and update periods per arm and round.

    Returns:
        One row per arm and round, with the columns :data:`COLUMNS`.
    """
    device = resolve_device(training.device)

    with single_threaded(device) if isinstance(data, RRFunction) else seeded_rng(device, task):
        timers = {}
        for arm, resolved in arms.items():
            share = resolved.get("curvature_share", training.curvature_share)
            own = training.model_copy(update={"curvature_share": share})
            problem = build_task(data, task, [0], task_parameters, own)
            timers[arm] = _ArmTimer(problem, task, arm, resolved, task_parameters, own)
        for timer in timers.values():
            timer.measure(1)  # warm-up
        rows = []
        for number in range(settings.rounds):
            order = list(timers) if number % 2 == 0 else list(reversed(timers))
            for arm in order:
                plain, refresh, step = timers[arm].measure(settings.update_periods)
                rows.append((task, arm, number, plain, refresh, step))
    return pd.DataFrame(rows, columns=list(COLUMNS))


class _ArmTimer:
    """Trains one arm for a few steps at a time and measures them."""

    def __init__(
        self,
        problem: Task,
        task: str,
        arm: str,
        resolved: Mapping[str, Any],
        settings: TaskParameters | ImageTaskParameters | TextTaskParameters,
        training: TrainingParameters,
    ) -> None:
        self.problem, self.share = problem, training.curvature_share
        self.params = problem.initial_parameters()
        hyperparameters = dict(resolved["hyperparameters"])
        self.has_curvature = "update_period" in hyperparameters
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
            matrix_fn=self._matrix if hasattr(problem, "curvature_matrix") else None,
        )
        self.steps = 0
        self.batches = cycle(list(islice(problem.epoch(0), 2 * self.period)))
        self._initial = [p.detach().clone() for p in self.params]
        problem.prepare(self.params)

    def _diagonal(self) -> Sequence[Tensor]:
        return self.problem.hessian_diagonal(self.params, self.latest[0])  # type: ignore[attr-defined,no-any-return]

    def _matrix(self, kind: str) -> Tensor:
        return self.problem.curvature_matrix(self.params, self.latest[0], kind)  # type: ignore[attr-defined,no-any-return]

    def measure(self, periods: int) -> tuple[float, float, float]:
        """Seconds: median plain step, addition of a refresh, mean over an update period."""
        plain: list[float] = []
        due: list[float] = []
        with torch.no_grad():  # restart: steps of a diverged run may take another time
            for p, start in zip(self.params, self._initial, strict=True):
                p.copy_(start)
        for batch in islice(self.batches, periods * self.period):
            self.latest[:] = [batch]
            start_time = self._now()
            training_step(self.problem, self.params, self.optimizer, batch, self.share)
            seconds = self._now() - start_time
            (due if self.has_curvature and self.steps % self.period == 0 else plain).append(seconds)
            self.steps += 1
        without = median(plain or due)
        refresh = max(0.0, median(due) - without) if due else 0.0
        if not plain:  # curvature at every step
            refresh = 0.0
        return without, refresh, without + refresh / self.period

    def _now(self) -> float:
        if self.problem.device.type == "cuda":
            torch.cuda.synchronize(self.problem.device)
        return time.perf_counter()
