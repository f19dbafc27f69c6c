"""Which code a run was made with."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import adaptive_opt
from adaptive_opt.parameters import (
    configuration,
    logging_configuration,
    resolve_arm,
    training_parameters,
)
from adaptive_opt.tasks.digest import data_digest

from .checkpoint import configuration_digest
from .device import resolve_device
from .optimizers import load_optimizer_class

__all__ = ["code_digest", "identify_run"]

TRAINING_FOLDERS = ("optim", "curvature", "tasks", "engine")


def code_digest(optimizer: str) -> str:
    """Identifies the code that a run depends on: this package's, the optimizer's, torch.

    Of this package the folders that training is made of; of an optimizer from elsewhere the
    file that it is in, not what that imports.

    Args:
        optimizer: dotted import path of the class.
    """
    made = hashlib.blake2b(torch.__version__.encode(), digest_size=16)
    package = Path(adaptive_opt.__file__).parent
    files = [f for folder in TRAINING_FOLDERS for f in sorted((package / folder).glob("*.py"))]
    source = inspect.getsourcefile(load_optimizer_class(optimizer))
    for file in [*files, *([Path(source)] if source else [])]:
        made.update(file.read_bytes())
    return made.hexdigest()


def identify_run(
    task: str, arm: str, tensors: dict[str, Tensor], parameters: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What a run is made of.

    Args:
        task, arm: names.
        tensors: what the task learns, as it comes out of the catalog.
        parameters: the sections ``tasks``, ``arms`` and ``training``.

    Returns:
        The arm's optimizer and hyperparameters; all that the losses depend on; and a digest
        of everything that the results depend on, code and device included.
    """
    settings = training_parameters(arm, parameters["training"])
    resolved = resolve_arm(arm, parameters["arms"][task], settings)
    config = {"data": data_digest(task, tensors), **configuration(task, arm, parameters)}
    made_by = {
        "arm": arm,
        "device": resolve_device(settings.device).type,
        "code": code_digest(resolved["optimizer"]),
    }
    noted = logging_configuration(task, parameters)
    return resolved, config, configuration_digest({**config, **noted, **made_by})
