"""Results of arms that failed; the study continues without them."""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import Tensor

from adaptive_opt.errors import StudyError

from .lengths import Lengths

__all__ = ["failed_run", "reason_of"]

HISTORY_DTYPES = {
    **{"task": "object", "arm": "object", "seed": "int64", "iteration": "int64", "epoch": "int64"},
    **dict.fromkeys(["train_loss", "lr", "gradient_equivalents"], "float32"),
    "device_seconds": "float64",
}
"""Columns of every history, with their dtypes."""


def reason_of(error: Exception) -> str | None:
    r"""Reason why an arm failed, in one line; None if the error is not the arm's.

    Errors of files, databases and parameters stop the study instead, so that the same command
    continues after they are fixed.

    Example:
        >>> reason_of(RuntimeError("out of memory\nTried to allocate"))
        'RuntimeError: out of memory'
        >>> reason_of(OSError("disk full")) is None
        True
    """
    if isinstance(error, OSError | StudyError) or type(error).__module__.startswith("kedro"):
        return None
    message = str(error).split("\n")[0]
    return message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"


def failed_run(
    task: str, arm: str, reason: str
) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Tensor], pd.DataFrame, dict[str, Any]]:
    """Outputs of a failed run: empty tables, no tensors, and a summary with the reason.

    Args:
        task, arm: names.
        reason: in one line.
    """
    history = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in HISTORY_DTYPES.items()})
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
