"""Rebuild a task's data from stored tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adaptive_opt.study import get_task

from .images import ImageData
from .rr_functions import RRFunction
from .text import TextData

__all__ = ["task_data"]

TYPES: dict[str, Any] = {"rahimi_recht": RRFunction, "images": ImageData, "text": TextData}


def task_data(task: str, tensors: dict[str, Tensor]) -> Any:
    """Data of a task as an object of its family's class.

    Args:
        task: name of the task.
        tensors: its data as loaded from the catalog.

    Returns:
        An :class:`.RRFunction`, :class:`.ImageData` or :class:`.TextData`.
    """
    return TYPES[get_task(task).family].from_tensors(tensors)
