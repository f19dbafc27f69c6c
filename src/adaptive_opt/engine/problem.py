"""Build the task of any family for some seeds."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_opt.parameters import (
    ImageTaskParameters,
    TaskParameters,
    TextTaskParameters,
    TrainingParameters,
)
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.rr_functions import RRFunction
from adaptive_opt.tasks.text import TextData

from .contract import Task
from .device import resolve_device
from .network import build_network_task
from .rahimi_recht import build_rahimi_recht_task

__all__ = ["build_task"]


def build_task(
    data: RRFunction | ImageData | TextData,
    task: str,
    seeds: Sequence[int],
    settings: TaskParameters | ImageTaskParameters | TextTaskParameters,
    training: TrainingParameters,
) -> Task:
    """Build the task of some seeds.

    Raises:
        TypeError: data and settings belong to different kinds of tasks.
    """
    if isinstance(settings, TaskParameters):
        if not isinstance(data, RRFunction):
            raise TypeError(f"{type(data).__name__} cannot be learnt with TaskParameters")
        device = resolve_device(training.device)
        return build_rahimi_recht_task(data, task, seeds, settings, device)
    if isinstance(data, RRFunction):
        raise TypeError(f"a function cannot be learnt with {type(settings).__name__}")
    return build_network_task(data, task, seeds, settings, training)
