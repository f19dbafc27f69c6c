"""Records of GPU sessions: one JSON file for each session and step, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Records", "device_of"]

STATES = ("done", "partial", "failed", "skipped")


class Records:
    """The records in a folder.

    Args:
        folder: with the records.
        session: name of the session that writes, its start in UTC.
    """

    def __init__(self, folder: Path, session: str) -> None:
        self.folder, self.session = folder, session

    def write(
        self,
        step: str,
        state: str,
        *,
        seconds: float,
        device: Mapping[str, Any],
        reason: str = "",
        figures: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the record of a step, in place of that of the same session and step.

        Args:
            step: its name, parts separated by ``/``.
            state: one of :data:`STATES`.
            seconds: wall time.
            device: see :func:`device_of`.
            reason: one sentence, unless the step is done.
            figures: the results.
        """
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}; choose from {STATES}")
        record = {
            "session": self.session,
            "step": step,
            "state": state,
            "reason": reason,
            "seconds": round(seconds, 3),
            "device": dict(device),
            "figures": dict(figures or {}),
        }
        path = self.folder / f"{self.session}_{step.replace('/', '-')}.json"
        write_json(path, record)
        return path

    def all(self) -> Iterator[dict[str, Any]]:
        """Read every record of every session, oldest session first."""
        for path in sorted(self.folder.glob("*.json")):
            yield json.loads(path.read_text(encoding="utf-8"))

    def finished(self) -> set[str]:
        """List the finished steps."""
        return {r["step"] for r in self.all() if r["state"] == "done"}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def device_of() -> dict[str, Any]:
    """Describe the GPU or CPU and the versions; ``code`` is a hash of src and tests."""
    import torch

    cuda = torch.cuda.is_available()
    found: dict[str, Any] = {
        "name": torch.cuda.get_device_name() if cuda else platform.machine(),
        "type": "cuda" if cuda else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "code": _code(),
    }
    if cuda:
        found["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def _code() -> str:
    """Hash the package and its tests."""
    digest, project = hashlib.blake2b(digest_size=8), Path(__file__).parents[1]
    for folder in ("src", "tests"):
        for path in sorted((project / folder).rglob("*.py")):
            digest.update(str(path.relative_to(project)).encode() + path.read_bytes())
    return digest.hexdigest()
