"""Full Hessian spectra of Rahimi–Recht functions at weights that training saved."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from adaptive_opt.curvature.statistics import zero_tolerance
from adaptive_opt.parameters import TaskParameters
from adaptive_opt.tasks.rr_functions import RRFunction

from .rahimi_recht import build_rahimi_recht_task
from .snapshots import read_snapshots

__all__ = ["rahimi_recht_spectra"]


def rahimi_recht_spectra(
    function: RRFunction,
    kept: Mapping[str, Mapping[str, Tensor]],
    *,
    task: str,
    task_parameters: TaskParameters,
) -> pd.DataFrame:
    """Eigenvalues of the exact Hessian over all samples, in float64, at every snapshot.

    Args:
        function: the learnt function.
        kept: by arm, tensors from :class:`.snapshots.Snapshots`.
        task: name of the task.
        task_parameters: as in training.

    Returns:
        One row per (arm, seed, epoch, index): ``eigenvalue``, in descending order, and
        ``zero_tolerance``, the magnitude below which eigenvalues count as zero.
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
            labels = {"seed": snapshot.seed, "epoch": snapshot.epoch, "zero_tolerance": zero}
            frames.append(frame.assign(task=task, arm=arm, **labels))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
