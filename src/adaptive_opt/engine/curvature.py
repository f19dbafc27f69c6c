"""Curvature of networks at weights that training saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from adaptive_opt.curvature.diagonal import (
    compare_diagonals,
    diagonal_groups,
    one_draw,
    reference_noise,
)
from adaptive_opt.curvature.operators import KINDS, NetworkLoss, Scaled, load_weights
from adaptive_opt.curvature.spectrum import density, eigenpairs, moments
from adaptive_opt.curvature.stability import preconditioner_scale, threshold
from adaptive_opt.optim import SecondOrderOptimizer
from adaptive_opt.parameters import (
    CurvatureParameters,
    ImageTaskParameters,
    LossParameters,
    TextTaskParameters,
    TrainingParameters,
)
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.networks import NetworkTask
from adaptive_opt.tasks.text import TextData

from .network import build_network_task
from .optimizers import load_optimizer_class
from .results import Progress
from .seeds import derive_seed
from .snapshots import Snapshot, read_snapshots

__all__ = [
    "CurvatureOfNetwork",
    "StepRule",
    "measure_network",
    "measured_row",
    "step_rule",
]

PROBES = ("rademacher", "gaussian", "constant", "momentum_sign")
AVERAGED = {"SGDM": False, "SGD": False, "Adam": True, "AdamW": True}
"""For first-order optimizers by name, whether they average the gradient or sum it up."""


class CurvatureOfNetwork:
    """Loss of a task's network over a few training batches, at any snapshot.

    The batches are the first of a seed's first epoch. Images are neither shifted nor mirrored, so
    that all arms are measured on the same data.

    Args:
        data: the task's data.
        task: name of the task.
        task_parameters, training: as in training.
        settings: number of batches and samples, and precision.
        seed: of the run.
    """

    def __init__(
        self,
        data: ImageData | TextData,
        task: str,
        task_parameters: ImageTaskParameters | TextTaskParameters,
        training: TrainingParameters,
        settings: LossParameters,
        seed: int,
    ) -> None:
        plain: dict[str, Any] = {"compile": False, "precision": "fp32"}
        if isinstance(task_parameters, ImageTaskParameters):
            unaugmented = {"crop_padding": 0, "flip": False}
            task_parameters = task_parameters.model_copy(update=unaugmented)
        training = training.model_copy(update=plain)
        self.problem: NetworkTask = build_network_task(
            data, task, [seed], task_parameters, training
        )
        own = self.problem.own_batches
        batches = islice(self.problem.epoch(0), settings.batches)
        whole = [(x[0], y[0]) if own else (x, y) for x, y in batches]
        self.batches = [(x[: settings.samples], y[: settings.samples]) for x, y in whole]
        self._settings = settings

    def at(self, snapshot: Snapshot) -> NetworkLoss:
        """Loss at a snapshot's weights.

        Raises:
            StudyError: the snapshot has another architecture.
        """
        with torch.random.fork_rng(devices=[]):
            network = self.problem.build()
        load_weights(network, {**snapshot.parameters, **snapshot.buffers})
        return NetworkLoss(
            network,
            self.batches,
            dtype={"fp32": torch.float32, "fp64": torch.float64}[self._settings.precision],
            device=self.problem.device,
            micro_batch=self._settings.micro_batch,
        )


def measured_row(
    matrix: str, quantity: str, value: float, error: float = 0.0, index: int = 0, good: bool = True
) -> dict[str, Any]:
    """One row of the *measures* of :func:`measure_network`."""
    return {
        "matrix": matrix,
        "quantity": quantity,
        "index": index,
        "value": value,
        "error": error,
        "good": good,
    }


@dataclass(frozen=True)
class StepRule:
    """Preconditioned Hessian of an optimizer at a snapshot, and its stability limit.

    Attributes:
        operator: the Hessian, scaled by the optimizer's preconditioner.
        limit: largest top eigenvalue at which steps are stable.
        fixed_share: fraction of clipped coordinates; None if the gradient is not divided.
    """

    operator: Any
    limit: float
    fixed_share: float | None

    def rows(self) -> list[dict[str, Any]]:
        """Rows of *measures* that need no eigenvalue."""
        if self.fixed_share is None:
            return []
        return [measured_row("preconditioned", "fixed_share", self.fixed_share)]

    def stability(self, value: float, error: float, good: bool) -> list[dict[str, Any]]:
        """Rows of *measures*: the limit, and a top eigenvalue divided by it."""
        share, error = value / self.limit, error / self.limit
        return [
            measured_row("preconditioned", "threshold", self.limit),
            measured_row("preconditioned", "stability", share, error, good=good),
        ]


def step_rule(
    loss: NetworkLoss,
    snapshot: Snapshot,
    hessian: Any,
    optimizer: type[Any],
    hyperparameters: Mapping[str, Any],
) -> StepRule | None:
    """Step rule of an optimizer; None if its threshold or its denominators are unknown.

    Args:
        loss: loss at the snapshot.
        snapshot: with the denominators of the step.
        hessian: of the loss.
        optimizer, hyperparameters: of the arm.
    """
    second = issubclass(optimizer, SecondOrderOptimizer)
    if not second and optimizer.__name__ not in AVERAGED:
        return None
    averaged = second or AVERAGED[optimizer.__name__]
    if averaged and not snapshot.denominators:
        return None  # before the first step
    operator, share = hessian, None
    if averaged:
        momentum = _flatten(loss, snapshot.momentum) if second else None
        radius = hyperparameters["rho"] if second else None
        scale = preconditioner_scale(_flatten(loss, snapshot.denominators), momentum, radius)
        operator, share = Scaled(hessian, scale), float((scale == 0).double().mean())
    beta = float(hyperparameters.get("momentum", hyperparameters.get("beta1", 0.0)))
    return StepRule(operator, threshold(beta, averaged=averaged) / snapshot.lr, share)


def _flatten(loss: NetworkLoss, named: Mapping[str, Tensor]) -> Tensor:
    """Concatenate tensors in the order of the network's parameters, ``[n]``."""
    flat = torch.cat([named[n].reshape(-1) for n, _ in loss.network.named_parameters()])
    return flat.to(loss.device, loss.dtype)


def measure_network(
    data: ImageData | TextData,
    tensors: Mapping[str, Tensor],
    *,
    task: str,
    arm: str,
    optimizer: str,
    hyperparameters: dict[str, Any],
    task_parameters: ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    settings: CurvatureParameters,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Measure spectra, stability and curvature estimates along the runs of an arm.

    Args:
        data, task, task_parameters, training: see :class:`CurvatureOfNetwork`.
        tensors: from :class:`.snapshots.Snapshots`.
        arm: name of the arm.
        optimizer, hyperparameters: of the arm.
        settings: batches, numbers of draws and tolerances.

    Returns:
        *Measures*, one row per (seed, epoch, matrix, quantity, index) with value, error and
        whether it converged (``good``); *densities* of each seed's last snapshot, one row per
        (seed, matrix, eigenvalue); *estimates*, one row per (seed, epoch, estimate, metric).
    """
    snapshots = read_snapshots(tensors)
    last = {s.seed: s.epoch for s in snapshots}
    tables: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    label = f"{task} {arm} curvature"
    with (
        Progress(label, len(snapshots), "snapshots") as progress,
        tqdm(desc="products", unit=" products", leave=False, disable=None) as bar,
    ):
        for snapshot in snapshots:
            network = CurvatureOfNetwork(
                data, task, task_parameters, training, settings, snapshot.seed
            )
            analysis = _SnapshotAnalysis(network.at(snapshot), snapshot, settings, bar.update)
            labels = {"task": task, "arm": arm, "seed": snapshot.seed, "epoch": snapshot.epoch}
            rows = analysis.spectra()
            rows += analysis.stability(load_optimizer_class(optimizer), hyperparameters)
            tables[0].extend({**labels, **row} for row in rows)
            if snapshot.epoch == last[snapshot.seed]:
                tables[1].extend({**labels, **row} for row in analysis.densities())
            tables[2].extend({**labels, **row} for row in analysis.estimates())
            progress.update(1)
    columns = ("task", "arm", "seed", "epoch")
    measures, densities, estimates = (
        pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(columns)) for rows in tables
    )
    return measures, densities, estimates


class _SnapshotAnalysis:
    """Measurements of the curvature at one snapshot."""

    def __init__(
        self,
        loss: NetworkLoss,
        snapshot: Snapshot,
        settings: CurvatureParameters,
        on_products: Callable[[int], Any],
    ) -> None:
        self.value = loss.value()
        self.loss, self.snapshot, self.settings = loss, snapshot, settings
        self.operators = {kind: loss.operator(kind, on_products) for kind in KINDS}
        self._seed = derive_seed("curvature", snapshot.seed, snapshot.epoch) % 2**32

    def spectra(self) -> list[dict[str, Any]]:
        """Loss, top eigenvalues, trace and Frobenius norm."""
        rows = [measured_row("hessian", "loss", self.value)]
        for kind, operator in self.operators.items():
            rows += self._eigenvalues(kind, operator)
            pairs = self._pairs
            trace, norm = moments(
                operator,
                self.settings.trace_draws,
                basis=pairs.vectors[:, pairs.good.to(pairs.vectors.device)],
                seed=self._seed,
            )
            rows.append(measured_row(kind, "trace", trace.value, trace.error))
            rows.append(measured_row(kind, "frobenius_norm", norm.value, norm.error))
        return rows

    def _eigenvalues(self, matrix: str, operator: Any, count: int = 0) -> list[dict[str, Any]]:
        self._pairs = pairs = eigenpairs(
            operator,
            count or min(self.settings.eigenpairs, operator.shape[0]),
            tolerance=self.settings.tolerance,
            seed=self._seed,
        )
        found = zip(
            pairs.values.tolist(), pairs.residuals.tolist(), pairs.good.tolist(), strict=True
        )
        return [
            measured_row(matrix, "eigenvalue", value, residual * abs(value), index=i, good=good)
            for i, (value, residual, good) in enumerate(found, start=1)
        ]

    def stability(
        self, optimizer: type[Any], hyperparameters: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Top eigenvalue of the preconditioned Hessian, and its ratio to the stability limit."""
        rule = step_rule(
            self.loss, self.snapshot, self.operators["hessian"], optimizer, hyperparameters
        )
        if rule is None:
            return []
        rows = rule.rows()
        rows += self._eigenvalues("preconditioned", rule.operator, count=1)
        top = rows[-1]
        return rows + rule.stability(top["value"], top["error"], top["good"])

    def densities(self) -> list[dict[str, Any]]:
        """Spectral densities of the Hessian and the Gauss–Newton matrix."""
        rows = []
        for kind, operator in self.operators.items():
            steps, draws = self.settings.density_steps, self.settings.density_draws
            found = density(operator, steps=steps, draws=draws, seed=self._seed)
            columns = (found.grid.tolist(), found.value.tolist(), found.error.tolist())
            rows += [
                {"matrix": kind, "eigenvalue": t, "density": f, "error": e, "width": found.width}
                for t, f, e in zip(*columns, strict=True)
            ]
        return rows

    def estimates(self) -> list[dict[str, Any]]:
        """Errors of one draw of each probe, and of a second-order method's denominators."""
        if not self.snapshot.momentum:
            return []
        operator = self.operators["hessian"]
        groups = diagonal_groups(operator, self.settings.diagonal_draws, self._seed)
        noise = reference_noise(groups)
        momentum = _flatten(self.loss, self.snapshot.momentum)
        rows = []
        for probe in PROBES:
            found = compare_diagonals(one_draw(operator, self._probes(probe, momentum)), groups)
            rows += [_estimate_row("raw", probe, name, e, noise) for name, e in found.items()]
        denominators = _flatten(self.loss, self.snapshot.denominators)
        found = compare_diagonals(denominators[None], groups)
        rows += [_estimate_row("denominator", "", name, e, noise) for name, e in found.items()]
        return rows

    def _probes(self, name: str, momentum: Tensor) -> Tensor:
        if name == "constant":
            return -torch.ones_like(momentum)[:, None]
        if name == "momentum_sign":
            return momentum.sign()[:, None]
        generator = torch.Generator(momentum.device).manual_seed(self._seed + 1)
        size = (len(momentum), self.settings.estimate_draws)
        drawn = torch.randn(size, generator=generator, device=momentum.device, dtype=momentum.dtype)
        return drawn.sign() if name == "rademacher" else drawn


def _estimate_row(stage: str, probe: str, metric: str, found: Any, noise: float) -> dict[str, Any]:
    return {
        "stage": stage,
        "probe": probe,
        "metric": metric,
        "value": found.value,
        "error": found.error,
        "reference_noise": noise,
    }
