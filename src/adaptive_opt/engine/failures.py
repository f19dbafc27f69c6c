"""Arms that fail, so that a study can go on without them."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor

from adaptive_opt.errors import StudyError

from .lengths import Lengths

__all__ = ["failed_run", "reason_of"]

HISTORY = {
    **{"task": "object", "arm": "object", "seed": "int64", "iteration": "int64", "epoch": "int64"},
    **dict.fromkeys(["train_loss", "lr", "gradient_equivalents"], "float32"),
    "device_seconds": "float64",
}
"""Columns that every history has."""


def reason_of(error: Exception) -> str | None:
    r"""Why an arm failed, in a line; None if the fault is not the arm's.

    Files, databases and parameters are not: a study stops there, so that the same command goes
    on when the fault is mended.

    Example:
        >>> reason_of(RuntimeError("out of memory\nTried to allocate"))
        'RuntimeError: out of memory'
        >>> reason_of(OSError("disk full")) is None
        True
    """
    if isinstance(error, OSError | StudyError) or type(error).__module__.startswith("kedro"):
        return None
    said = str(error).split("\n")[0]
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


def failed_run(
    task: str, arm: str, reason: str
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Tensor], pd.DataFrame, dict[str, Any]]:
    """What a run leaves that failed: tables without rows, no tensors, and why.

    Args:
        task, arm: names.
        reason: in a line.
    """
    history = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in HISTORY.items()})
    summary = {
        "task": task,
        "arm": arm,
        "failed": reason,
        "seeds": [],
        "iterations": 0,
        "final_train_loss": [],
        "diverged_at": [],
        "device_seconds": 0.0,
        "seconds": None,
    }
    return history, {}, {}, Lengths().table(), summary
