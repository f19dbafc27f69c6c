"""Which data a run was made on."""

from __future__ import annotations

from torch import Tensor

from adaptive_opt.errors import StudyError
from adaptive_opt.study import get_task

from .fingerprint import as_hex
from .rr_functions import RRFunction

__all__ = ["data_digest"]


def data_digest(task: str, tensors: dict[str, Tensor]) -> str:
    """Identifies what a task learns, from its tensors as they come out of the catalog.

    Raises:
        StudyError: the tensors say nothing of it.
    """
    if get_task(task).family == "rahimi_recht":
        return RRFunction.from_tensors(tensors).digest()
    if "digest" not in tensors:
        raise StudyError(
            f"the data of {task} were not made by this project; make them with "
            f"kedro run --pipelines=data --tags={task}"
        )
    return as_hex(tensors["digest"])
