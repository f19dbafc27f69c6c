"""What the runs of an arm leave, whatever was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .train import EnsembleResult

__all__ = ["bar", "label_history", "pack_result", "summarise", "unpack_result"]


def bar(label: str, total: int, unit: str) -> tqdm[Any]:
    """A progress bar on a terminal, nothing in a log file."""
    return tqdm(desc=label, total=total, unit=unit, leave=False, disable=None)


def label_history(
    frame: pd.DataFrame, task: str, arm: str, seeds: Sequence[int], batches_per_epoch: int
) -> pd.DataFrame:
    """A history with names and epochs, members turned into seeds."""
    frame.insert(0, "task", pd.Series(task, index=frame.index, dtype="category"))
    frame.insert(1, "arm", pd.Series(arm, index=frame.index, dtype="category"))
    frame.insert(2, "seed", np.asarray(seeds)[frame.pop("member")])
    frame.insert(4, "epoch", frame["iteration"] // batches_per_epoch)
    return frame


def summarise(
    results: Sequence[EnsembleResult], history: pd.DataFrame, seeds: Sequence[int], iterations: int
) -> dict[str, Any]:
    """The end of every run, and what all of them cost.

    Args:
        results: one of each ensemble.
        history: of all seeds.
        seeds: the runs.
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
    """A result as tensors, numbers and lists, for a checkpoint."""
    columns = {name: torch.from_numpy(c.to_numpy().copy()) for name, c in result.history.items()}
    return {**vars(result), "history": columns}


def unpack_result(packed: dict[str, Any]) -> EnsembleResult:
    """Inverse of :func:`pack_result`."""
    history = pd.DataFrame({name: c.numpy() for name, c in packed["history"].items()})
    return EnsembleResult(**{**packed, "history": history})
