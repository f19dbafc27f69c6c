"""Digests of a task's data, computed without importing torch."""

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
    """Hash of A, X and the initial weights of a Rahimi–Recht function.

    Args:
        tensors: ``A``, ``X``, ``W1`` … ``WL``, as NumPy arrays or CPU tensors.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.
    """
    hasher = hashlib.sha256()
    for name in ("A", "X", *(f"W{i}" for i in range(1, len(tensors) - 1))):
        array = np.asarray(tensors[name])
        hasher.update(f"{name}{array.shape}".encode())
        hasher.update(array.tobytes())
    return hasher.hexdigest()[:16]


def data_digest(task: str, tensors: Mapping[str, Any]) -> str:
    """Digest of the data that a task learns from.

    Args:
        task: name of the task.
        tensors: its data as loaded from the catalog.

    Raises:
        StudyError: the data of a network task have no ``digest``.
    """
    if get_task(task).family == "rahimi_recht":
        return function_digest(tensors)
    if "digest" not in tensors:
        raise StudyError(
            f"the data of {task} were not made by this project; make them with "
            f"kedro run --pipelines=data --tags={task}"
        )
    return as_hex(tensors["digest"])
