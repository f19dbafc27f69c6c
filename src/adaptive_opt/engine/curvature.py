"""The curvature of networks and of Rahimi–Recht functions at the weights that training left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
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
from adaptive_opt.curvature.statistics import zero_tolerance
from adaptive_opt.curvature.surface import along_line, buffers_of, extent, on_plane
from adaptive_opt.optim import SecondOrderOptimizer
from adaptive_opt.parameters import (
    CurvatureParameters,
    ImageTaskParameters,
    TaskParameters,
    TextTaskParameters,
    TrainingParameters,
)
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.networks import NetworkTask
from adaptive_opt.tasks.rr_functions import RRFunction
from adaptive_opt.tasks.text import TextData

from .network import build_network_task
from .optimizers import load_optimizer_class
from .rahimi_recht import build_rahimi_recht_task
from .results import Progress
from .seeds import derive_seed
from .snapshots import Snapshot, read_snapshots

__all__ = [
    "CurvatureOfNetwork",
    "measure_network",
    "network_line",
    "network_surface",
    "rahimi_recht_spectra",
]

logger = logging.getLogger(__name__)

PROBES = ("rademacher", "gaussian", "constant", "momentum_sign")
AVERAGED = {"SGDM": False, "SGD": False, "Adam": True, "AdamW": True}
"""Of first-order optimizers by name: whether the gradient is averaged or summed up."""


class CurvatureOfNetwork:
    """The loss of a task's network over some training batches, at any snapshot of it.

    The batches are the first ones of the first epoch of a seed, images as they are, neither shifted
    nor mirrored, so that all arms are looked at on the same data.

    Args:
        data: what was learnt.
        task: its name.
        task_parameters, training: with which it was trained.
        settings: how much to look at.
        seed: of the run.
    """

    def __init__(
        self,
        data: ImageData | TextData,
        task: str,
        task_parameters: ImageTaskParameters | TextTaskParameters,
        training: TrainingParameters,
        settings: CurvatureParameters,
        seed: int,
    ) -> None:
        plain: dict[str, Any] = {"compile": False, "precision": "fp32"}
        if isinstance(task_parameters, ImageTaskParameters):
            still = {"crop_padding": 0, "flip": False}
            task_parameters = task_parameters.model_copy(update=still)
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
        """The loss there.

        Raises:
            StudyError: the snapshot is of another architecture.
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
    """Spectra, stability and the worth of curvature estimates along the runs of an arm.

    Args:
        data, task, task_parameters, training: see :class:`CurvatureOfNetwork`.
        tensors: what :class:`.snapshots.Snapshots` collected.
        arm: its name.
        optimizer, hyperparameters: with which the arm was trained.
        settings: how much to look at.

    Returns:
        *Measures*, a row for each (seed, epoch, matrix, quantity, index) with value, error and
        whether it is good; *densities* of the last snapshot of each seed, a row for each (seed,
        matrix, eigenvalue); *estimates*, a row for each (seed, epoch, estimate, metric).
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
            place = CurvatureOfNetwork(
                data, task, task_parameters, training, settings, snapshot.seed
            )
            look = _Look(place.at(snapshot), snapshot, settings, bar.update)
            labels = {"task": task, "arm": arm, "seed": snapshot.seed, "epoch": snapshot.epoch}
            rows = look.spectra() + look.stability(load_optimizer_class(optimizer), hyperparameters)
            tables[0].extend({**labels, **row} for row in rows)
            if snapshot.epoch == last[snapshot.seed]:
                tables[1].extend({**labels, **row} for row in look.densities())
            tables[2].extend({**labels, **row} for row in look.estimates())
            progress.update(1)
    columns = ("task", "arm", "seed", "epoch")
    measures, densities, estimates = (
        pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(columns)) for rows in tables
    )
    return measures, densities, estimates


class _Look:
    """At one snapshot."""

    def __init__(
        self,
        loss: NetworkLoss,
        snapshot: Snapshot,
        settings: CurvatureParameters,
        told: Callable[[int], Any],
    ) -> None:
        self.value = loss.value()
        self.loss, self.snapshot, self.settings = loss, snapshot, settings
        self.operators = {kind: loss.operator(kind, told) for kind in KINDS}
        self._seed = derive_seed("curvature", snapshot.seed, snapshot.epoch) % 2**32

    def spectra(self) -> list[dict[str, Any]]:
        """Loss, top eigenvalues, trace and Frobenius norm."""
        rows = [_row("hessian", "loss", self.value)]
        for kind, operator in self.operators.items():
            rows += self._eigenvalues(kind, operator)
            pairs = self._pairs
            trace, norm = moments(
                operator,
                self.settings.trace_draws,
                basis=pairs.vectors[:, pairs.good.to(pairs.vectors.device)],
                seed=self._seed,
            )
            rows.append(_row(kind, "trace", trace.value, trace.error))
            rows.append(_row(kind, "frobenius_norm", norm.value, norm.error))
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
            _row(matrix, "eigenvalue", value, residual * abs(value), index=i, good=good)
            for i, (value, residual, good) in enumerate(found, start=1)
        ]

    def stability(
        self, optimizer: type[Any], hyperparameters: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Top eigenvalue of the preconditioned Hessian, and η times it over the threshold."""
        second = issubclass(optimizer, SecondOrderOptimizer)
        if not second and optimizer.__name__ not in AVERAGED:
            return []
        averaged = second or AVERAGED[optimizer.__name__]
        names = [n for n, _ in self.loss.network.named_parameters()]
        if averaged and not self.snapshot.denominators:
            return []  # before the first step
        operator, rows = self.operators["hessian"], []
        if averaged:
            denominator = self._flat(self.snapshot.denominators, names)
            momentum = self._flat(self.snapshot.momentum, names) if second else None
            scale = preconditioner_scale(
                denominator, momentum, hyperparameters["rho"] if second else None
            )
            operator = Scaled(operator, scale)
            rows.append(_row("preconditioned", "fixed_share", float((scale == 0).double().mean())))
        rows += self._eigenvalues("preconditioned", operator, count=1)
        top = rows[-1]
        beta = float(hyperparameters.get("momentum", hyperparameters.get("beta1", 0.0)))
        limit = threshold(beta, averaged=averaged) / self.snapshot.lr
        rows.append(_row("preconditioned", "threshold", limit))
        share, error = top["value"] / limit, top["error"] / limit
        rows.append(_row("preconditioned", "stability", share, error, good=top["good"]))
        return rows

    def _flat(self, named: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
        flat = torch.cat([named[n].reshape(-1) for n in names])
        return flat.to(self.loss.device, self.loss.dtype)

    def densities(self) -> list[dict[str, Any]]:
        """Of both matrices."""
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
        """One draw of every probe, and what stands in a second-order method's denominator."""
        names = [n for n, _ in self.loss.network.named_parameters()]
        if not self.snapshot.momentum:
            return []
        operator = self.operators["hessian"]
        groups = diagonal_groups(operator, self.settings.diagonal_draws, self._seed)
        noise = reference_noise(groups)
        momentum = self._flat(self.snapshot.momentum, names)
        rows = []
        for probe in PROBES:
            found = compare_diagonals(one_draw(operator, self._probes(probe, momentum)), groups)
            rows += [_estimate("raw", probe, name, e, noise) for name, e in found.items()]
        held = self._flat(self.snapshot.denominators, names)
        found = compare_diagonals(held[None], groups)
        rows += [_estimate("denominator", "", name, e, noise) for name, e in found.items()]
        return rows

    def _probes(self, name: str, momentum: Tensor) -> Tensor:
        if name == "constant":
            return -torch.ones_like(momentum)[:, None]
        if name == "momentum_sign":
            return momentum.sign()[:, None]
        stream = torch.Generator(momentum.device).manual_seed(self._seed + 1)
        size = (len(momentum), self.settings.estimate_draws)
        drawn = torch.randn(size, generator=stream, device=momentum.device, dtype=momentum.dtype)
        return drawn.sign() if name == "rademacher" else drawn


def _row(
    matrix: str, quantity: str, value: float, error: float = 0.0, index: int = 0, good: bool = True
) -> dict[str, Any]:
    return {
        "matrix": matrix,
        "quantity": quantity,
        "index": index,
        "value": value,
        "error": error,
        "good": good,
    }


def _estimate(stage: str, probe: str, metric: str, found: Any, noise: float) -> dict[str, Any]:
    return {
        "stage": stage,
        "probe": probe,
        "metric": metric,
        "value": found.value,
        "error": found.error,
        "reference_noise": noise,
    }


def network_surface(
    place: CurvatureOfNetwork, snapshot: Snapshot, settings: CurvatureParameters, label: str
) -> pd.DataFrame:
    """The loss on the plane of the top two eigenvectors, a row for each (a, b).

    Args:
        place: where to look.
        snapshot: the centre.
        settings: how finely.
        label: for the progress bar.
    """
    loss = place.at(snapshot)
    value = loss.value()
    pairs = eigenpairs(loss.operator("hessian"), 2, tolerance=settings.tolerance)
    first, second = (extent(value, float(v)) for v in pairs.values)
    points = settings.surface_points
    with Progress(label, points**2, "losses") as progress:
        a, b, found = on_plane(loss, pairs.vectors, (first, second), points, progress.update)
    rows = [
        {"a": float(x), "b": float(y), "loss": float(found[i, j])}
        for i, y in enumerate(b)
        for j, x in enumerate(a)
    ]
    eigenvalues = dict(zip(("eigenvalue_a", "eigenvalue_b"), pairs.values.tolist(), strict=True))
    return pd.DataFrame(rows).assign(**eigenvalues)


def network_line(
    place: CurvatureOfNetwork,
    first: Snapshot,
    second: Snapshot,
    settings: CurvatureParameters,
    label: str,
) -> pd.DataFrame:
    """The loss on the line from one solution to another, and half its length beyond each."""
    loss = place.at(first)

    def everything(snapshot: Snapshot) -> list[Tensor]:
        there = place.at(snapshot)
        return [t.detach().clone() for t in (*there.parameters, *buffers_of(there.network))]

    start, end = everything(first), everything(second)
    positions = torch.linspace(-0.5, 1.5, settings.line_points, dtype=torch.float64)
    with Progress(label, len(positions), "losses") as progress:
        found = along_line(loss, start, end, positions, progress.update)
    return pd.DataFrame({"position": positions.tolist(), "loss": found.tolist()})


def rahimi_recht_spectra(
    function: RRFunction,
    kept: Mapping[str, Mapping[str, Tensor]],
    *,
    task: str,
    task_parameters: TaskParameters,
) -> pd.DataFrame:
    """All eigenvalues of the exact Hessian over all samples, in float64, at every snapshot.

    Args:
        function: what was learnt.
        kept: by arm, what :class:`.snapshots.Snapshots` collected.
        task: its name.
        task_parameters: with which it was trained.

    Returns:
        A row for each (arm, seed, epoch, index), the eigenvalues descending, and below which
        magnitude they count as zero.
    """
    cpu = torch.device("cpu")
    problem = build_rahimi_recht_task(function, task, [0], task_parameters, cpu)
    frames = []
    for arm, tensors in kept.items():
        snapshots = read_snapshots(tensors)
        if not snapshots:
            continue
        points = torch.stack(
            [torch.cat([w.double().reshape(-1) for w in s.parameters.values()]) for s in snapshots]
        )
        for snapshot, point in zip(snapshots, points, strict=True):
            hessian = problem.hessian(point[None])[0][0]
            if not hessian.isfinite().all():
                continue
            values = torch.linalg.eigvalsh(hessian).flip(0)
            frame = pd.DataFrame({"eigenvalue": values.numpy()})
            frame.insert(0, "index", range(1, 1 + len(values)))
            zero = float(zero_tolerance(values))
            place = {"seed": snapshot.seed, "epoch": snapshot.epoch, "zero_tolerance": zero}
            frames.append(frame.assign(task=task, arm=arm, **place))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
