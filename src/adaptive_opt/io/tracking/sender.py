"""The process that sends records to MLflow: ``python -m adaptive_opt.io.tracking.sender``.

It stands beside training, which so never waits for a server. It takes no lower priority: cores
that are always busy would leave it nothing until the end, which then waits for all that it has
not sent. It ends when the run's last record is sent; when that cannot be; or, having
ended the run in MLflow too, when the process that trains is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .delivery import Delivery
from .spool import Spool
from .store import RefusedError, Store, UnreachableError, anonymous, first_line

__all__ = ["main"]

logger = logging.getLogger(__name__)

LOOK_EVERY = 0.2
LONGEST_PAUSE = 30.0
"""Seconds between two looks at the folder, and between two attempts at a server that is away."""

UNTOUCHED = 60.0
"""Seconds after which the folder of a run without a sender is taken to be left over."""

WAITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


class _Sender:
    """Sends one run's records, and those that earlier runs left."""

    def __init__(self, spool: Spool, parent: int, connect: Callable[[], Store]) -> None:
        self.spool, self._parent_process, self._connect = spool, parent, connect
        self._delivery: Delivery | None = None
        self._failures = 0
        self._refused: list[str] = []
        self._noted: dict[str, Any] = {}

    @property
    def orphaned(self) -> bool:
        """Whether the process that trains is gone."""
        return os.getppid() != self._parent_process

    def run(self) -> bool:
        """Until the run has ended; whether everything is sent."""
        while True:
            gone = self.orphaned
            try:
                if self._attempt(gone):
                    return True
                self._failures = 0
            except UnreachableError as error:
                self._failures += 1
                logger.warning("%s", error)
                self._note(str(error))
                self._delivery = None
                if gone or self.spool.closing:
                    return False
            self._pause()

    def _attempt(self, gone: bool) -> bool:
        """Send what waits; whether that was the end of it."""
        if self._delivery is None:
            store = self._connect()
            self._note(None)
            self._send_leftovers(store)
            self._delivery = Delivery(self.spool, store, careful=self._failures > 0)
            self._delivery.refused = self._refused
        done = self._delivery.step()
        if not done and gone:
            self._delivery.end("KILLED")
            done = True
        self._note(None)
        return done

    def _note(self, reason: str | None) -> None:
        state = {"connected": reason is None, "reason": reason, "refused": list(self._refused)}
        if state != self._noted:
            self.spool.note(**state)
            self._noted = state

    def _pause(self) -> None:
        seconds = min(LONGEST_PAUSE, 2.0**self._failures) if self._failures else LOOK_EVERY
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.spool.closing and not self.orphaned:
            time.sleep(min(LOOK_EVERY, seconds))

    def _send_leftovers(self, store: Store) -> None:
        """What runs left that ended without a server, or were killed with their sender."""
        for folder in sorted(self.spool.folder.parent.iterdir()):
            spool = Spool(folder)
            if folder == self.spool.folder or not _left_over(spool):
                continue
            # What cannot be sent of it even now must not keep this run from being recorded.
            absent = (Timeout, OSError, UnreachableError)
            with contextlib.suppress(*absent), FileLock(spool.lock, timeout=0):
                if spool.run() is not None:
                    delivery = Delivery(spool, store, careful=True)
                    with contextlib.suppress(RefusedError):
                        if not delivery.step():
                            delivery.end("KILLED")
                spool.remove()


def _left_over(spool: Spool) -> bool:
    """Whether nobody is at work there; else its lock says so, too."""
    with contextlib.suppress(OSError):
        quiet = time.time() - spool.folder.stat().st_mtime > UNTOUCHED
        return spool.folder.is_dir() and (spool.left or quiet)
    return False


def main() -> int:
    """Send the records in a folder; 1 if some had to stay there."""
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("folder", type=Path)
    line.add_argument("--process", type=int, required=True, help="the one that trains")
    line.add_argument("--experiment", required=True)
    line.add_argument("--artifacts", type=Path, required=True)
    given = line.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    for name, value in WAITS.items():
        os.environ.setdefault(name, value)
    spool = Spool(given.folder)
    uri = os.environ["MLFLOW_TRACKING_URI"]  # a password in it is seen by nobody there
    connect = partial(Store, uri, given.experiment, given.artifacts)
    sender = _Sender(spool, given.process, connect)
    try:
        with FileLock(spool.lock, timeout=0):
            sent = sender.run()
    except Exception as error:
        told = anonymous("".join(traceback.format_exception(error)))
        logger.error("the sender failed\n%s", told)
        reason = f"{type(error).__name__}: {first_line(error)}"
        spool.note(connected=True, reason=reason, refused=[])
        return 1
    if sent and sender.orphaned:
        spool.remove()
    return 0 if sent else 1


if __name__ == "__main__":
    raise SystemExit(main())
