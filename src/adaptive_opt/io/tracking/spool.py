"""Files of one ``kedro run`` that wait for MLflow, in ``mlflow_unsent/<run key>/``.

``run.json`` describes the run, ``end.json`` its end, ``<task>.<arm>.json`` the state of a training,
``sender.json`` the state of the sender. Each file is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from adaptive_opt.files import write_whole
from adaptive_opt.processes import is_gone

__all__ = ["END", "RUN", "SENDER", "Record", "delete", "is_abandoned", "milliseconds"]
__all__ += ["read", "write"]

RUN, END, SENDER = "run.json", "end.json", "sender.json"

SILENCE = 3600.0
"""Seconds without a new file after which the run of another host counts as dead."""

Record = dict[str, Any]


def milliseconds() -> int:
    """Return the time in MLflow's unit."""
    return time.time_ns() // 1_000_000


def read(path: Path) -> Record | None:
    """Return a record; None if the file is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write(path: Path, record: Record) -> None:
    """Replace a record."""
    text = json.dumps(record, allow_nan=False)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def is_abandoned(folder: Path) -> bool:
    """Return whether a run has ended or was killed; its sender may still be at work."""
    process = (read(folder / RUN) or {}).get("process")
    if process is None:  # the run is just beginning
        return False
    changed: float = max(file.stat().st_mtime for file in folder.iterdir())
    return (folder / END).exists() or is_gone(process) or time.time() - changed > SILENCE


def delete(folder: Path) -> None:
    """Delete a run's folder, ``run.json`` last: a part of the folder can still be sent."""
    for file in sorted(folder.iterdir(), key=lambda path: path.name == RUN):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # as on NFS, where an open file leaves another one
        folder.rmdir()
