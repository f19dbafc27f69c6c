"""What a ``kedro run`` is: code, command, parameters, machine."""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import adaptive_opt
from adaptive_opt.errors import StudyError

from ..status.outcome import command_line

__all__ = ["describe_run", "run_name"]

PACKAGES = ("numpy", "optuna", "kedro", "mlflow")


def describe_run(run_params: dict[str, Any], parameters: dict[str, Any]) -> dict[str, str]:
    """Return the tags of a run; ``configuration`` is a hash of the parameters that matter."""
    import torch

    from adaptive_opt.engine.device import resolve_device
    from adaptive_opt.parameters import configuration_digest

    study = {k: v for k, v in parameters.items() if k not in ("tracking", "resources")}
    device = parameters["training"]["device"]
    with contextlib.suppress(StudyError):  # the GPUs may be on other machines of a cluster
        device = resolve_device(device).type
    on_gpu = device == "cuda" and torch.cuda.is_available()
    cpu = platform.processor() or platform.machine()
    command = command_line() or Path(sys.argv[0]).name
    runner = str(run_params.get("runner") or "SequentialRunner")  # or <package.Class object at …>
    tags = {
        "scale": parameters["scale"],
        "configuration": configuration_digest(study),
        "device": device,
        "device.name": torch.cuda.get_device_name() if on_gpu else cpu,
        "kedro.env": run_params.get("env") or "local",
        "kedro.pipelines": ",".join(run_params.get("pipeline_names") or ["__default__"]),
        "kedro.command": command,
        "kedro.runner": runner.strip("<").partition(" ")[0].rpartition(".")[2],
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "version.python": platform.python_version(),
        "version.adaptive_opt": adaptive_opt.__version__,
        "version.torch": torch.__version__,  # with what it was built for
        **{f"version.{name}": version(name) for name in PACKAGES},
    }
    for name, value in run_params.items():
        if value and isinstance(value, list | tuple | set):
            tags[f"kedro.{name}"] = ",".join(map(str, value))
        elif value and isinstance(value, dict):
            tags[f"kedro.{name}"] = json.dumps(value, default=str)
    with contextlib.suppress(OSError, KeyError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags | _git(Path(run_params["project_path"]))


def run_name(tags: dict[str, str]) -> str:
    """Return the name of a run: pipelines, scale, and the chosen part of the grid.

    Example:
        >>> run_name({"kedro.pipelines": "training", "scale": "paper", "kedro.tags": "ssdh,adam"})
        'training paper: ssdh,adam'
        >>> run_name({"kedro.pipelines": "__default__", "scale": "base"})
        'base'
    """
    name = f"{tags['kedro.pipelines']} {tags['scale']}".removeprefix("__default__ ")
    chosen = tags.get("kedro.tags") or tags.get("kedro.node_names")
    name = f"{name}: {chosen}" if chosen else name
    return name if len(name) <= 60 else f"{name[:60]}…"


def _git(folder: Path) -> dict[str, str]:
    """Return the commit, and whether files differ from it; nothing outside a repository."""
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--", "."]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    head, *rest = done.stdout.splitlines()
    commit = head.removeprefix("# branch.oid ")
    dirty = str(any(not line.startswith("#") for line in rest)).lower()
    return {"git.commit": commit, "git.dirty": dirty, "mlflow.source.git.commit": commit}
