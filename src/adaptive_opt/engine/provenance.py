"""Which parameters, data, code and device a run is made of.

Nothing here imports torch before it is called, and little of it then: a command that only looks
at what is there need not wait for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import adaptive_opt
from adaptive_opt.parameters import (
    configuration,
    configuration_digest,
    logging_configuration,
    resolve_arm,
    training_parameters,
    with_values,
)

__all__ = ["Identity", "code_digest", "device_type", "identify_run"]

TRAINING_FOLDERS = ("optim", "curvature", "tasks", "engine")

VERSIONED = ("adaptive_opt.", "torch.")
"""Optimizers whose code is known from the rest: this package's files, the version of torch."""


@dataclass(frozen=True)
class Identity:
    """What a run is made of.

    Attributes:
        optimizer: dotted path and hyperparameters, as :func:`.resolve_arm` gives them.
        studies: hyperparameters by search, None for one that found nothing.
        configuration: all that the losses depend on, the data among it.
        logging: what only the notes on a run depend on.
        made_by: the arm, the kind of device, and the code.
    """

    optimizer: dict[str, Any]
    studies: list[dict[str, Any] | None]
    configuration: dict[str, Any]
    logging: dict[str, Any]
    made_by: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of everything that the results depend on."""
        return configuration_digest({**self.configuration, **self.logging, **self.made_by})

    def record(self) -> dict[str, Any]:
        """For the summary of a run, so that it can be told later what has changed since."""
        return {
            "configuration": self.configuration,
            "logging": self.logging,
            "made_by": self.made_by,
            "digest": self.digest,
        }


def code_digest(optimizer: str) -> str:
    """Identifies the code that a run depends on: this package's, the optimizer's, torch.

    Of this package the folders that training is made of; of an optimizer from elsewhere the
    file that it is in, not what that imports.

    Args:
        optimizer: dotted import path of the class.
    """
    made = hashlib.blake2b(f"{version('torch')} {optimizer}".encode(), digest_size=16)
    package = Path(adaptive_opt.__file__).parent
    files = [f for folder in TRAINING_FOLDERS for f in sorted((package / folder).glob("*.py"))]
    if not optimizer.startswith(VERSIONED):
        from .optimizers import load_optimizer_class

        source = inspect.getsourcefile(load_optimizer_class(optimizer))
        files += [Path(source)] if source else []
    for file in files:
        made.update(file.read_bytes())
    return made.hexdigest()


def device_type(name: str) -> str:
    """``cpu`` or ``cuda``, as :func:`.device.resolve_device` says.

    It is asked, and torch imported, only where there may be a GPU.

    Raises:
        StudyError: ``cuda`` was asked for and torch sees no GPU.
    """
    if name == "cpu" or (name == "auto" and not _may_have_gpu()):
        return "cpu"
    from .device import resolve_device

    return resolve_device(name).type


@cache
def _may_have_gpu() -> bool:
    torch = find_spec("torch")
    folders = (torch.submodule_search_locations if torch else None) or []
    built = {k: v for f in folders for k, v in runpy.run_path(str(Path(f, "version.py"))).items()}
    if built.get("hip"):
        return True
    for driver in ("libcuda.so.1", "nvcuda.dll") if built.get("cuda") else ():
        try:
            ctypes.CDLL(driver)
        except OSError:
            continue
        return True
    return False


def identify_run(
    task: str,
    arm: str,
    data: str,
    parameters: dict[str, Any],
    studies: Sequence[dict[str, Any] | None] = (),
) -> Identity:
    """What a run is made of, or would be.

    Args:
        task, arm: names.
        data: digest of what the task learns (``adaptive_opt.tasks.digest.data_digest``).
        parameters: the sections ``tasks``, ``arms`` and ``training``.
        studies: what each search found; empty: what ``arms`` says.
    """
    settings = training_parameters(arm, parameters["training"])

    def resolve(values: dict[str, Any]) -> dict[str, Any]:
        arms = with_values(parameters["arms"], task, arm, values)
        return resolve_arm(arm, arms[task], settings)

    found = list(studies) or [{}]
    first: dict[str, Any] = next((v for v in found if v is not None), {})
    resolved = resolve(first)
    with_first = {**parameters, "arms": with_values(parameters["arms"], task, arm, first)}
    return Identity(
        optimizer=resolved,
        studies=[None if v is None else resolve(v)["hyperparameters"] for v in found],
        configuration={"data": data, **configuration(task, arm, with_first, studies)},
        logging=logging_configuration(task, arm, parameters),
        made_by={
            "arm": arm,
            "device": device_type(settings.device),
            "code": code_digest(resolved["optimizer"]),
        },
    )
