"""Which data a run was made on. Needs no torch: arrays do as well as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptive_opt.errors import StudyError
from adaptive_opt.study import get_task

from .fingerprint import as_hex

__all__ = ["data_digest", "function_digest"]


def function_digest(tensors: Mapping[str, Any]) -> str:
    """Identifies a Rahimi–Recht function: a hash of A, X and all W.

    Args:
        tensors: on the CPU, or arrays.
    """
    made = hashlib.sha256()
    for name in ("A", "X", *(f"W{i}" for i in range(1, len(tensors) - 1))):
        array = np.asarray(tensors[name])
        made.update(f"{name}{array.shape}".encode())
        made.update(array.tobytes())
    return made.hexdigest()[:16]


def data_digest(task: str, tensors: Mapping[str, Any]) -> str:
    """Identifies what a task learns, from its tensors as they come out of the catalog.

    Raises:
        StudyError: the tensors say nothing of it.
    """
    if get_task(task).family == "rahimi_recht":
        return function_digest(tensors)
    if "digest" not in tensors:
        raise StudyError(
            f"the data of {task} were not made by this project; make them with "
            f"kedro run --pipelines=data --tags={task}"
        )
    return as_hex(tensors["digest"])
