"""A run anew, kept at every refresh of its curvature; and what estimates were worth there."""

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
    small_kernels,
    training_plan,
)
from .results import Progress
from .seeds import derive_seed, random_stream
from .train import train_ensemble

__all__ = ["measure_fidelity", "trace_rahimi_recht"]

logger = logging.getLogger(__name__)


class _Tape:
    """Parameters before, and momentum after, each step that refreshes the curvature."""

    def __init__(self, params: list[Tensor], optimizer: SecondOrderOptimizer) -> None:
        self._params, self._optimizer = params, optimizer
        self._members = len(params[0])
        self._refreshed = False
        self._step = 0
        self.iterations: list[int] = []
        self.points: list[Tensor] = []
        self.momenta: list[Tensor] = []

    def before_step(self) -> None:
        """To be told before every step, when the one before it is through."""
        self.close()
        self._refreshed = self._optimizer.curvature_due
        if self._refreshed:
            self.iterations.append(self._step)
            self.points.append(self._flat(self._params))
        self._step += 1

    def close(self) -> None:
        """Take the momentum of the step before, if it was one that refreshed."""
        if self._refreshed:
            state = self._optimizer.state
            self.momenta.append(self._flat([state[p]["momentum"] for p in self._params]))
        self._refreshed = False

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
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
    """Train some seeds of an arm as :func:`.rahimi_recht.run_rahimi_recht` does, and keep the way.

    The same seeds give the same runs, up to how products of ensembles of another size are
    rounded; to the bit where the study has trained these seeds alone.

    Args:
        function, task, arm, optimizer, hyperparameters, task_parameters, training: as there.
        seeds: the runs.

    Returns:
        ``points`` and ``momentum``, ``[refreshes, seeds, n]``: all weights of a run before the
        steps that refreshed the curvature, and the momentum as those steps used it, NaN from
        where a run diverged; ``iterations`` of those steps, ``[refreshes]``; ``seeds``; and the
        final weights ``W1``, ``W2``, … ``[seeds, ...]``.

    Raises:
        TypeError: the arm's optimizer has no curvature to refresh.
    """
    device = resolve_device(training.device)
    own = merge_configurations([_of_seed(hyperparameters, seed) for seed in seeds])
    problem, params, optim, latest = prepare_rahimi_recht(
        function, task, arm, optimizer, own, seeds, task_parameters, training, device
    )
    if not isinstance(optim, SecondOrderOptimizer):
        raise TypeError(f"arm {arm}: {optimizer} has no curvature, so there is none to follow")
    training = training.model_copy(update={"hessian_every": 0})
    tape = _Tape(params, optim)

    def on_batch(batch: Tensor) -> None:
        latest.append(batch)
        tape.before_step()

    iterations = task_parameters.epochs * problem.batches_per_epoch
    with (
        small_kernels(device),
        random_stream(device, task, *seeds),
        Progress(f"{task} {arm} anew", iterations, "iterations") as progress,
    ):
        result = train_ensemble(
            problem,
            params,
            optim,
            training_plan(task_parameters, training),
            on_batch=on_batch,
            progress=progress.update,
        )
    tape.close()
    points, momentum = torch.stack(tape.points), torch.stack(tape.momenta)
    at = torch.tensor(tape.iterations)
    for member, end in enumerate(result.diverged_at):
        if end is not None:
            logger.warning("%s, %s: seed %d diverged at %d", task, arm, seeds[member], end)
            points[at >= end, member] = momentum[at >= end, member] = torch.nan
    logger.info("%s, %s: %d seeds kept at %s refreshes", task, arm, len(seeds), f"{len(at):,}")
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
    """What every probe and method makes of the exact Hessians along a trajectory.

    Args:
        function, task, task_parameters: see :func:`trace_rahimi_recht`.
        trajectory: what it returns.
        hyperparameters: of the arm, as there; β2, ρ and ε of a seed serve every method.
        settings: see there.

    Returns:
        A row for each (seed, iteration, stage, probe, method), with the columns of
        :data:`adaptive_opt.curvature.fidelity.METRICS`.
    """
    cpu = torch.device("cpu")
    problem = build_rahimi_recht_task(function, task, [0], task_parameters, cpu)
    iterations = trajectory["iterations"].numpy()
    after = np.searchsorted(iterations, np.asarray(settings.iterations), side="right")
    seeds = trajectory["seeds"].tolist()
    rows: list[dict[str, Any]] = []
    with small_kernels(cpu):
        for group, own in _alike(hyperparameters, seeds):
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


def _of_seed(
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None], seed: int
) -> dict[str, Any]:
    """What the run of a seed was trained with."""
    if isinstance(hyperparameters, dict):
        return hyperparameters
    found = hyperparameters[seed % len(hyperparameters)]
    if found is None:
        raise ValueError(f"seed {seed} was not trained: its search found no configuration")
    return found


def _alike(
    hyperparameters: dict[str, Any] | Sequence[dict[str, Any] | None], seeds: Sequence[int]
) -> list[tuple[list[int], dict[str, Any]]]:
    """Seeds that were trained with the same hyperparameters, and those."""
    groups: list[tuple[list[int], dict[str, Any]]] = []
    for seed in seeds:
        own = _of_seed(hyperparameters, seed)
        same = next((group for group, given in groups if given == own), None)
        if same is None:
            groups.append(([seed], own))
        else:
            same.append(seed)
    return groups
