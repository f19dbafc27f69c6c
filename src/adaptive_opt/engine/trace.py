"""Repeat runs, record every curvature refresh, and compare estimates with exact Hessians."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from adaptive_opt.curvature.fidelity import METRICS, measure
from adaptive_opt.optim import SecondOrderOptimizer
from adaptive_opt.parameters import FidelityParameters, TaskParameters, TrainingParameters
from adaptive_opt.tasks.rr_functions import RRFunction

from .device import resolve_device
from .lengths import merge_configurations
from .rahimi_recht import (
    build_rahimi_recht_task,
    prepare_rahimi_recht,
    single_threaded,
    training_plan,
)
from .results import Progress
from .seeds import derive_seed, seeded_rng
from .train import train_ensemble

__all__ = ["measure_fidelity", "trace_rahimi_recht"]

logger = logging.getLogger(__name__)


class _TrajectoryRecorder:
    """Records parameters before, and momentum after, each step that refreshes the curvature."""

    def __init__(self, params: list[Tensor], optimizer: SecondOrderOptimizer) -> None:
        self._params, self._optimizer = params, optimizer
        self._members = len(params[0])
        self._refreshed = False
        self._step = 0
        self.iterations: list[int] = []
        self.points: list[Tensor] = []
        self.momenta: list[Tensor] = []

    def before_step(self) -> None:
        """Call before every step."""
        self.close()
        self._refreshed = self._optimizer.curvature_due
        if self._refreshed:
            self.iterations.append(self._step)
            self.points.append(self._flatten(self._params))
        self._step += 1

    def close(self) -> None:
        """Record the momentum if the last step refreshed the curvature."""
        if self._refreshed:
            state = self._optimizer.state
            self.momenta.append(self._flatten([state[p]["momentum"] for p in self._params]))
        self._refreshed = False

    def _flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.detach().reshape(self._members, -1) for t in tensors], dim=1).cpu()


def trace_rahimi_recht(
    function: RRFunction,
    *,
    task: str,
    arm: str,
    optimizer: str,
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None],
    task_parameters: TaskParameters,
    training: TrainingParameters,
    seeds: Sequence[int],
) -> dict[str, Tensor]:
    """Repeat some runs of an arm and record their trajectories.

    The same seeds give the same runs as :func:`.rahimi_recht.run_rahimi_recht`, up to rounding,
    which depends on the size of the ensemble. They are equal bit by bit if the study trained
    exactly these seeds.

    Args:
        function, task, arm, optimizer, hyperparameters, task_parameters, training: see
            :func:`.rahimi_recht.run_rahimi_recht`.
        seeds: of the runs.

    Returns:
        ``points`` and ``momentum``, ``[refreshes, seeds, n]``: all weights of a run before each
        step that refreshed the curvature, and the momentum that this step used, NaN from where a
        run diverged; ``iterations`` of these steps, ``[refreshes]``; ``seeds``; and the final
        weights ``W1``, ``W2``, … ``[seeds, ...]``.

    Raises:
        TypeError: the arm's optimizer has no curvature.
    """
    device = resolve_device(training.device)
    merged = merge_configurations([_configuration_of(hyperparameters, seed) for seed in seeds])
    problem, params, optim, latest = prepare_rahimi_recht(
        function, task, arm, optimizer, merged, seeds, task_parameters, training, device
    )
    if not isinstance(optim, SecondOrderOptimizer):
        raise TypeError(f"arm {arm}: {optimizer} has no curvature; trace a second-order arm")
    training = training.model_copy(update={"hessian_every": 0})
    recorder = _TrajectoryRecorder(params, optim)

    def on_batch(batch: Tensor) -> None:
        latest.append(batch)
        recorder.before_step()

    iterations = task_parameters.epochs * problem.batches_per_epoch
    with (
        single_threaded(device),
        seeded_rng(device, task, *seeds),
        Progress(f"{task} {arm} repeated", iterations, "iterations") as progress,
    ):
        result = train_ensemble(
            problem,
            params,
            optim,
            training_plan(task_parameters, training),
            on_batch=on_batch,
            progress=progress.update,
        )
    recorder.close()
    points, momentum = torch.stack(recorder.points), torch.stack(recorder.momenta)
    at = torch.tensor(recorder.iterations)
    for member, end in enumerate(result.diverged_at):
        if end is not None:
            logger.warning(
                "%s, %s: seed %d diverged at iteration %d", task, arm, seeds[member], end
            )
            points[at >= end, member] = momentum[at >= end, member] = torch.nan
    logger.info("%s, %s: recorded %d seeds at %s refreshes", task, arm, len(seeds), f"{len(at):,}")
    weights = {f"W{i}": w for i, w in enumerate(result.weights, start=1)}
    return {
        "points": points,
        "momentum": momentum,
        "iterations": at,
        "seeds": torch.tensor(list(seeds)),
        **weights,
    }


def measure_fidelity(
    function: RRFunction,
    trajectory: dict[str, Tensor],
    *,
    task: str,
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None],
    task_parameters: TaskParameters,
    settings: FidelityParameters,
) -> pd.DataFrame:
    """Compare the estimates of every probe and method with exact Hessians along a trajectory.

    Args:
        function, task, task_parameters: see :func:`trace_rahimi_recht`.
        trajectory: result of :func:`trace_rahimi_recht`.
        hyperparameters: of the arm; every method uses a seed's β2, ρ and ε.
        settings: iterations, draws and paths.

    Returns:
        One row per (seed, iteration, stage, probe, method), with the columns of
        :data:`adaptive_opt.curvature.fidelity.METRICS`.
    """
    cpu = torch.device("cpu")
    problem = build_rahimi_recht_task(function, task, [0], task_parameters, cpu)
    iterations = trajectory["iterations"].numpy()
    after = np.searchsorted(iterations, np.asarray(settings.iterations), side="right")
    seeds = trajectory["seeds"].tolist()
    rows: list[dict[str, Any]] = []
    with single_threaded(cpu):
        for group, own in _group_by_configuration(hyperparameters, seeds):
            members = [seeds.index(seed) for seed in group]
            found = measure(
                problem.hessian,
                trajectory["points"][:, members],
                trajectory["momentum"][:, members],
                [int(i) for i in after - 1],
                **{name: float(own[name]) for name in ("beta2", "rho", "eps")},
                draws=settings.draws,
                paths=settings.paths,
                seed=derive_seed(task, "fidelity"),
            )
            rows += [
                {
                    "task": task,
                    "seed": int(seed),
                    "iteration": int(iterations[one.refresh]),
                    "stage": one.stage,
                    "probe": one.probe,
                    "method": one.method,
                    **dict(zip(METRICS, values, strict=True)),
                }
                for one in found
                for seed, values in zip(group, one.metrics.tolist(), strict=True)
            ]
    return pd.DataFrame(rows)


def _configuration_of(
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None], seed: int
) -> dict[str, Any]:
    """Hyperparameters of a seed's run."""
    if isinstance(hyperparameters, dict):
        return hyperparameters
    found = hyperparameters[seed % len(hyperparameters)]
    if found is None:
        raise ValueError(f"seed {seed} was not trained: its search found no configuration")
    return found


def _group_by_configuration(
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None], seeds: Sequence[int]
) -> list[tuple[list[int], dict[str, Any]]]:
    """Groups of seeds with the same hyperparameters, and these hyperparameters."""
    groups: list[tuple[list[int], dict[str, Any]]] = []
    for seed in seeds:
        own = _configuration_of(hyperparameters, seed)
        same = next((group for group, given in groups if given == own), None)
        if same is None:
            groups.append(([seed], own))
        else:
            same.append(seed)
    return groups
