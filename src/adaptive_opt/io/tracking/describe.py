"""What a ``kedro run`` is: code, command, parameters, machine."""

from __future__ import annotations

import contextlib
import getpass
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import adaptive_opt
from adaptive_opt.errors import StudyError

__all__ = ["describe_run", "flat", "run_name"]

PACKAGES = ("numpy", "optuna", "kedro", "mlflow")

APART = ("tracking", "resources")

OPTIONS = (
    "tags",
    "node_names",
    "namespaces",
    "from_nodes",
    "to_nodes",
    "from_inputs",
    "to_outputs",
    "load_versions",
    "only_missing_outputs",
)


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested ones.

    Example:
        >>> list(flat({"a": 1, "b": {"c": 2, "d": {}}}))
        [('a', 1), ('b.c', 2)]
    """
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe_run(run_params: dict[str, Any], parameters: dict[str, Any]) -> dict[str, str]:
    """Tags of the run, and those that its children share with it.

    Args:
        run_params: what Kedro says of it.
        parameters: all of them; ``configuration`` identifies them, but for those that no result
            depends on.
    """
    import torch

    from adaptive_opt.engine.device import resolve_device
    from adaptive_opt.parameters import configuration_digest

    study = {name: section for name, section in parameters.items() if name not in APART}
    device = parameters["training"]["device"]
    with contextlib.suppress(StudyError):  # the GPUs may be on other machines of a cluster
        device = resolve_device(device).type
    command = _command()
    tags = {
        "scale": parameters["scale"],
        "configuration": configuration_digest(study),
        "device": device,
        "device.name": _device_name(device),
        "kedro.env": run_params.get("env") or "local",
        "kedro.pipelines": ",".join(run_params.get("pipeline_names") or ["__default__"]),
        "kedro.command": command,
        "kedro.runner": _runner(run_params),
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "version.python": platform.python_version(),
        "version.adaptive_opt": adaptive_opt.__version__,
        "version.torch": torch.__version__,  # and what it was built for
    }
    tags |= {f"kedro.{name}": _text(run_params[name]) for name in OPTIONS if run_params.get(name)}
    if given := run_params.get("runtime_params"):
        tags["kedro.runtime_params"] = json.dumps(given, default=str)
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            tags[f"version.{name}"] = version(name)
    with contextlib.suppress(OSError, KeyError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags | _git(Path(run_params["project_path"]))


def run_name(tags: dict[str, str]) -> str:
    """What a run is called in a list: pipelines, scale, and what was chosen of the grid.

    Example:
        >>> run_name({"kedro.pipelines": "training", "scale": "paper", "kedro.tags": "ssdh,adam"})
        'training paper: ssdh,adam'
        >>> run_name({"kedro.pipelines": "__default__", "scale": "base"})
        'base'
    """
    name = f"{tags['kedro.pipelines']} {tags['scale']}".removeprefix("__default__ ")
    chosen = tags.get("kedro.tags") or tags.get("kedro.node_names") or ""
    name = f"{name}: {chosen}" if chosen else name
    return name if len(name) <= 60 else f"{name[:60]}…"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple | set) else str(value)


def _runner(run_params: dict[str, Any]) -> str:
    """The name of its class: what Kedro has is the text of an object."""
    named = re.search(r"(\w+) object", str(run_params.get("runner")))
    return named[1] if named else "SequentialRunner"


def _command() -> str:
    program = Path(sys.argv[0])
    name = "python -m adaptive_opt" if program.name == "__main__.py" else program.name
    return " ".join([name, *map(shlex.quote, sys.argv[1:])])


def _device_name(kind: str) -> str:
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else "of the cluster"
    return platform.processor() or platform.machine()


def _git(folder: Path) -> dict[str, str]:
    """Commit, and whether anything differs from it; nothing where there is no repository."""
    commit = _ask_git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _ask_git(folder, "status", "--porcelain", "--", ".")
    dirty = "unknown" if changed is None else str(bool(changed)).lower()
    return {"git.commit": commit, "git.dirty": dirty, "mlflow.source.git.commit": commit}


def _ask_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "--no-optional-locks", *arguments],  # noqa: S607
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
