"""Identity of a run: parameters, data, code and device.

Importing this module does not import torch, and most functions do not need it: commands such as
``kedro adaptive status`` stay fast.
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
"""Import prefixes of optimizers that need no digest of their own: this package and torch."""


@dataclass(frozen=True)
class Identity:
    """Everything that a run depends on.

    Attributes:
        optimizer: dotted path and hyperparameters, as returned by :func:`.resolve_arm`.
        studies: hyperparameters of each search; None for a search without result.
        configuration: everything that the losses depend on, including the data.
        logging: settings that affect only what is recorded.
        made_by: the arm, the type of device and the code.
    """

    optimizer: dict[str, Any]
    studies: list[dict[str, Any] | None]
    configuration: dict[str, Any]
    logging: dict[str, Any]
    made_by: dict[str, Any]

    @property
    def digest(self) -> str:
        """Digest of everything that the results depend on."""
        return configuration_digest({**self.configuration, **self.logging, **self.made_by})

    def record(self) -> dict[str, Any]:
        """Record for the summary of a run, to determine later what has changed."""
        return {
            "configuration": self.configuration,
            "logging": self.logging,
            "made_by": self.made_by,
            "digest": self.digest,
        }


def code_digest(optimizer: str) -> str:
    """Hash of the code that a run depends on.

    It covers torch's version, this package's folders for training and, for a foreign optimizer,
    its source file, but not what that file imports.

    Args:
        optimizer: dotted import path of the class.

    Returns:
        32 hexadecimal digits.
    """
    hasher = hashlib.blake2b(f"{version('torch')} {optimizer}".encode(), digest_size=16)
    package = Path(adaptive_opt.__file__).parent
    files = [f for folder in TRAINING_FOLDERS for f in sorted((package / folder).glob("*.py"))]
    if not optimizer.startswith(VERSIONED):
        from .optimizers import load_optimizer_class

        source = inspect.getsourcefile(load_optimizer_class(optimizer))
        files += [Path(source)] if source else []
    for file in files:
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def device_type(name: str) -> str:
    """Type of :func:`.device.resolve_device`, ``cpu`` or ``cuda``.

    Imports torch only if the machine may have a GPU.

    Raises:
        StudyError: ``name`` is ``cuda``, but torch sees no GPU.
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
    """Identity of a run, before or after training.

    Args:
        task, arm: names.
        data: digest of the task's data (``adaptive_opt.tasks.digest.data_digest``).
        parameters: the sections ``tasks``, ``arms`` and ``training``.
        studies: values found by each search; empty: those of ``arms``.
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
