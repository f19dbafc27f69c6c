"""What a task learns, from the tensors it is kept as."""

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
    """In the type of the task's family."""
    return TYPES[get_task(task).family].from_tensors(tensors)
