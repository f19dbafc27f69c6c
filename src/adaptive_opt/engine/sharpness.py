"""Sharpness along training, with few Hessian-vector products."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from adaptive_opt.curvature.block_lanczos import BlockLanczos
from adaptive_opt.parameters import (
    ImageTaskParameters,
    SharpnessParameters,
    TextTaskParameters,
    TrainingParameters,
)
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.text import TextData

from .curvature import CurvatureOfNetwork, measured_row, step_rule
from .optimizers import load_optimizer_class
from .results import Progress
from .seeds import derive_seed
from .snapshots import Snapshot, read_snapshots

__all__ = ["measure_sharpness"]

logger = logging.getLogger(__name__)


def measure_sharpness(
    data: ImageData | TextData,
    kept: Mapping[str, Mapping[str, Tensor]],
    arms: Mapping[str, Mapping[str, Any]],
    *,
    task: str,
    task_parameters: ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
    settings: SharpnessParameters,
) -> pd.DataFrame:
    """Measure loss, top Hessian eigenvalue and stability along the first run of every arm.

    Args:
        data: the task's data.
        kept: by arm, tensors from :class:`.snapshots.Snapshots`.
        arms: by name, ``optimizer`` and ``hyperparameters``.
        task, task_parameters, training: see :class:`.curvature.CurvatureOfNetwork`.
        settings: batches, tolerance and number of products.

    Returns:
        *Measures*, as in :func:`.curvature.measure_network`. A snapshot whose loss is not finite
        has only the row of its loss.
    """
    found = {arm: [s for s in read_snapshots(t) if s.seed == 0] for arm, t in kept.items()}
    network = CurvatureOfNetwork(data, task, task_parameters, training, settings, seed=0)
    rows: list[dict[str, Any]] = []
    total = sum(map(len, found.values()))
    with Progress(f"{task} sharpness", total, "snapshots") as progress:
        for arm, snapshots in found.items():
            for snapshot in snapshots:
                labels = {"task": task, "arm": arm, "seed": snapshot.seed, "epoch": snapshot.epoch}
                measures = _measure_snapshot(network, snapshot, arms[arm], settings)
                if len(measures) == 1:
                    logger.warning(
                        "%s, %s, epoch %d: the loss is %s, so there is no sharpness to measure",
                        task, arm, snapshot.epoch, measures[0]["value"],
                    )  # fmt: skip
                rows.extend({**labels, **row} for row in measures)
                progress.update(1)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["task", "arm", "seed", "epoch"])


def _measure_snapshot(
    network: CurvatureOfNetwork,
    snapshot: Snapshot,
    arm: Mapping[str, Any],
    settings: SharpnessParameters,
) -> list[dict[str, Any]]:
    loss = network.at(snapshot)
    value = loss.value_or_nan()
    rows = [measured_row("hessian", "loss", value, good=math.isfinite(value))]
    if not math.isfinite(value):
        return rows
    seed = derive_seed("sharpness", snapshot.seed, snapshot.epoch) % 2**32
    hessian = loss.operator("hessian")
    rows.append(_top_eigenvalue("hessian", hessian, settings, seed))
    rule = step_rule(
        loss, snapshot, hessian, load_optimizer_class(arm["optimizer"]), arm["hyperparameters"]
    )
    if rule is not None:
        same = rule.operator is hessian
        scaled = {**rows[-1], "matrix": "preconditioned"}
        top = scaled if same else _top_eigenvalue("preconditioned", rule.operator, settings, seed)
        rows += [*rule.rows(), top, *rule.stability(top["value"], top["error"], top["good"])]
    return rows


def _top_eigenvalue(
    matrix: str, operator: Any, settings: SharpnessParameters, seed: int
) -> dict[str, Any]:
    """Row of the largest eigenvalue, by Lanczos up to the tolerance or the limit of products."""
    lanczos = BlockLanczos(operator, block=1, seed=seed)
    residual = value = math.inf
    while residual > settings.tolerance and lanczos.size < settings.products:
        if lanczos.exhausted:
            break
        lanczos.step()
        values, residuals = lanczos.eigenvalues(1)
        value, residual = float(values[0]), float(residuals[0])
    good = residual <= settings.tolerance
    return measured_row(matrix, "eigenvalue", value, residual * abs(value), index=1, good=good)
