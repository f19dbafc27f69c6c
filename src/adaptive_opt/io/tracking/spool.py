"""Records on their way to MLflow, one file each, in a folder for each ``kedro run``.

``run.json`` says what the run is and stays until all is sent; the others are deleted when they
have been. Every process of the run writes into the folder, the sender alone deletes.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from adaptive_opt.files import write_whole

__all__ = ["Record", "Spool", "milliseconds", "read"]

Record = dict[str, Any]

_number = itertools.count()


def milliseconds() -> int:
    """Now, as MLflow counts."""
    return time.time_ns() // 1_000_000


class Spool:
    """The folder of one run.

    Args:
        folder: its name identifies the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def key(self) -> str:
        """What the run is found again by."""
        return self.folder.name

    @property
    def lock(self) -> Path:
        """Held by the process that sends what is here."""
        return self.folder / "lock"

    def open(self, run: Record) -> None:
        """Say what the run is."""
        _write(self.folder / "run.json", run)

    def run(self) -> Record | None:
        """What the run is; None: everything has been sent."""
        return read(self.folder / "run.json")

    def finished(self) -> None:
        """Everything has been sent."""
        (self.folder / "run.json").unlink(missing_ok=True)

    def put(self, record: Record) -> None:
        """Add a record."""
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(_number):06d}.json"
        _write(self.folder / name, record)

    def close(self, record: Record) -> None:
        """Add the last record."""
        _write(self.folder / f"{'9' * 20}-close.json", {"kind": "close", **record})

    @property
    def closing(self) -> bool:
        """Whether the last record is there and waits."""
        return (self.folder / f"{'9' * 20}-close.json").exists()

    def waiting(self) -> list[Path]:
        """Files of the records that have not been sent, oldest first."""
        return sorted(self.folder.glob("[0-9]*.json"))

    def note(self, **state: Any) -> None:
        """How the sending goes: for the process that trains, to be said at the end."""
        _write(self.folder / "state.json", state)

    def state(self) -> Record:
        """What was noted last."""
        return read(self.folder / "state.json") or {}

    def leave(self) -> None:
        """Let the next run send what is here."""
        (self.folder / "left").touch()

    @property
    def left(self) -> bool:
        """Whether this is for the next run to send."""
        return (self.folder / "left").exists()

    def remove(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read(path: Path) -> Record | None:
    """A record; None: it is not there, or is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _write(path: Path, record: Record) -> None:
    text = json.dumps(record, allow_nan=False)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
