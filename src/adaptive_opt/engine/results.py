"""Progress, histories and summaries of an arm's runs, for every task."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .contract import EnsembleResult

__all__ = [
    "Progress",
    "join_histories",
    "label_history",
    "pack_result",
    "summarise_runs",
    "unpack_result",
]

logger = logging.getLogger(__name__)

BAR_POSITION = "ADAPTIVE_OPT_BAR_POSITION"
"""Environment variable with the terminal line, from 0, of this process's progress bars."""

LOG_INTERVAL = 30.0
"""Seconds between progress lines in the log."""


class Progress:
    """Progress bar on a terminal; elsewhere a regular line in the log.

    Args:
        label: description of the work.
        total: number of units.
        unit: name of the unit, in plural.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        line = int(os.environ.get(BAR_POSITION, "0"))
        self._bar = tqdm(
            desc=label, total=total, unit=f" {unit}", leave=False, disable=None, position=line
        )
        self._done = 0
        self._start_time = self._logged_at = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def update(self, number: int) -> None:
        """Count finished units."""
        self._bar.update(number)
        self._done += number
        if self._bar.disable and (now := time.monotonic()) - self._logged_at > LOG_INTERVAL:
            self._logged_at = now
            left = (now - self._start_time) / max(1, self._done) * (self.total - self._done)
            logger.info(
                "%s: %s of %s %s, about %d min left",
                self.label, f"{self._done:,}", f"{self.total:,}", self.unit, round(left / 60),
            )  # fmt: skip

    def skip(self, number: int) -> None:
        """Count units of an earlier run, which do not affect the estimated time."""
        self._bar.update(number)
        self.total -= number


def label_history(
    frame: pd.DataFrame, task: str, arm: str, seeds: Sequence[int], batches_per_epoch: int
) -> pd.DataFrame:
    """Add task, arm and epoch to a history, and replace members by seeds."""
    frame.insert(0, "task", pd.Series(task, index=frame.index, dtype="category"))
    frame.insert(1, "arm", pd.Series(arm, index=frame.index, dtype="category"))
    frame.insert(2, "seed", np.asarray(seeds)[frame.pop("member")])
    frame.insert(4, "epoch", frame["iteration"] // batches_per_epoch)
    return frame


def join_histories(
    results: Sequence[EnsembleResult],
    task: str,
    arm: str,
    seeds: Sequence[int],
    batches_per_epoch: int,
) -> pd.DataFrame:
    """Concatenate the histories of several ensembles, ordered by seed.

    Args:
        results: of the ensembles.
        task, arm: names.
        seeds: of all members, in the order of the ensembles.
        batches_per_epoch: of the task.
    """
    histories, before = [], 0
    for result in results:
        histories.append(result.history.assign(member=result.history["member"] + before))
        before += len(result.diverged_at)
    frame = pd.concat(histories, ignore_index=True)
    history = label_history(frame, task, arm, seeds, batches_per_epoch)
    return history.sort_values(["seed", "iteration"], kind="stable", ignore_index=True)


def summarise_runs(
    results: Sequence[EnsembleResult], history: pd.DataFrame, seeds: Sequence[int], iterations: int
) -> dict[str, Any]:
    """Final losses and costs of an arm's runs.

    Args:
        results: one per ensemble.
        history: of all seeds.
        seeds: of the runs.
        iterations: length of a run.
    """
    last = history[history["iteration"] == history["iteration"].max()]
    seconds = sum(r.seconds for r in results)
    return {
        "seeds": list(seeds),
        "iterations": iterations,
        "final_train_loss": [None if np.isnan(x) else float(x) for x in last["train_loss"]],
        "diverged_at": [t for r in results for t in r.diverged_at],
        "gradient_equivalents": max(r.gradient_equivalents for r in results),
        "device_seconds": seconds,
        "microseconds_per_run_iteration": 1e6 * seconds / iterations / len(seeds),
        "torch": torch.__version__,
    }


def pack_result(result: EnsembleResult) -> dict[str, Any]:
    """Convert a result to tensors, numbers and lists, for a checkpoint."""
    columns = {name: torch.from_numpy(c.to_numpy().copy()) for name, c in result.history.items()}
    return {**vars(result), "history": columns}


def unpack_result(packed: dict[str, Any]) -> EnsembleResult:
    """Inverse of :func:`pack_result`."""
    history = pd.DataFrame({name: c.numpy() for name, c in packed["history"].items()})
    return EnsembleResult(**{**packed, "history": history})
