"""Which code a run was made with."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import torch

import adaptive_opt

from .optimizers import load_optimizer_class

__all__ = ["code_digest"]

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
