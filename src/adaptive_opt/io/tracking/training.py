"""Files of a ``kedro run`` that wait for MLflow, in ``mlflow_unsent/<run key>/``.

``run.json`` describes the run, ``end.json`` its end, ``<task>.<arm>.json`` the state of a training:
curves while it runs, costs and outcome at its end. ``sender.json`` is the state of the sender. Each
file is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptive_opt.files import read_record, write_record
from adaptive_opt.processes import is_gone
from adaptive_opt.study import get_arm

if TYPE_CHECKING:
    import pandas as pd

    from adaptive_opt.engine.contract import HistoryBlock

__all__ = ["END", "ENVIRONMENT", "RUN", "SENDER", "Record", "TrackedTraining", "delete"]
__all__ += ["is_abandoned", "milliseconds", "track_training"]

RUN, END, SENDER = "run.json", "end.json", "sender.json"

ENVIRONMENT = "ADAPTIVE_OPT_TRACKING"
"""Variable with the run's folder and settings, for the processes of all runners."""

SILENCE = 3600.0
"""Seconds without a new file after which the run of another host counts as dead."""

CURVES = ("train_loss", "valid_loss")
"""Columns of a history that are tracked."""

COSTS = ("gradient_equivalents", "device_seconds")

Record = dict[str, Any]

logger = logging.getLogger(__name__)
_warn_once = cache(logger.warning)


def milliseconds() -> int:
    """Return the time in MLflow's unit."""
    return time.time_ns() // 1_000_000


def is_abandoned(folder: Path) -> bool:
    """Return whether a run has ended or was killed; its sender may still be at work."""
    process = read_record(folder / RUN).get("process")
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


class TrackedTraining:
    """State file of a training: all seeds of an arm on a task, each a child run in MLflow.

    The whole file is replaced every ``live_seconds`` and at the end. An error is logged once and
    never stops training; the next write has everything that a failed one would have had.
    """

    def __init__(self, path: Path | None, state: Record, settings: dict[str, Any]) -> None:
        self._path, self._state, self._settings = path, state, settings
        self._written = time.monotonic()

    def observe(self, block: HistoryBlock) -> None:
        """Add a block of the history to the curves."""
        self._update("RUNNING", partial(self._add_block, block))

    def finish(self, history: pd.DataFrame, summary: dict[str, Any]) -> None:
        """Complete the curves from the whole history; add costs and outcome."""
        self._update("FINISHED", partial(self._complete, history, summary))

    def stop(self, status: str) -> None:
        """End with ``FAILED`` or ``KILLED``."""
        self._update(status)

    def _update(self, status: str, change: Callable[[], None] = lambda: None) -> None:
        if self._path is None:
            return
        try:
            change()
            now = time.monotonic()
            if status != "RUNNING" or now - self._written >= self._settings["live_seconds"]:
                self._written = now
                write_record(self._path, {**self._state, "status": status, "time": milliseconds()})
        except Exception as error:
            _warn_once("MLflow misses curves: %s cannot be written: %s", self._path, str(error))

    def _add_block(self, block: HistoryBlock) -> None:
        for iteration, values in block.rows.items():
            for name in (n for n in CURVES if n in values):
                for seed, value, end in zip(
                    block.seeds, values[name], block.diverged_at, strict=False
                ):
                    if end is None or iteration < end:  # history has float32
                        self._put(seed, name, iteration, block.iterations, np.float32(value))

    def _complete(self, history: pd.DataFrame, summary: dict[str, Any]) -> None:
        length, diverged_at = summary["iterations"], summary["diverged_at"]
        for seed, rows in history.groupby("seed"):
            for name in (n for n in CURVES if n in rows):
                for iteration, value in zip(rows["iteration"], rows[name], strict=True):
                    self._put(seed, name, iteration, length, value)
            ordered = rows.sort_values("iteration")
            for column in (n for n in rows if n in COSTS or str(n).startswith("test_")):
                self._put(seed, column, length, length, ordered[column].iloc[-1], "end")
        ends = zip(summary["seeds"], diverged_at, strict=True)
        self._state["diverged_at"] = {str(seed): end for seed, end in ends if end is not None}
        losses = [math.inf if x is None else x for x in summary["final_train_loss"]]
        values = {name: summary[name] for name in COSTS}
        values["median_final_train_loss"] = statistics.median(losses)
        values["diverged"] = sum(t is not None for t in diverged_at)
        finite = {name: float(x) for name, x in values.items() if math.isfinite(x)}
        self._state["summary"] = finite

    def _put(
        self, seed: Any, name: Any, iteration: Any, length: int, value: Any, part: str = ""
    ) -> None:
        """Add a point to a curve, which keeps the first finite one of each of its ``points`` parts.

        The same point again keeps its time, so that MLflow stores it once.
        """
        part = part or str(iteration * self._settings["points"] // length)
        curve = self._state["seeds"].setdefault(str(seed), {}).setdefault(str(name), {})
        if math.isfinite(value) and (part not in curve or iteration < curve[part][0]):
            curve[part] = [int(iteration), float(value), milliseconds()]


@contextmanager
def track_training(
    task: str, arm: str, digest: str, resolved: dict[str, Any], kept: bool = False
) -> Iterator[TrackedTraining]:
    """Track the training of an arm, if the ``kedro run`` is tracked.

    Args:
        task, arm: names.
        digest: hash of everything that the results depend on.
        resolved: the arm's optimizer and hyperparameters.
        kept: an earlier run finished it; MLflow gets the seeds that it does not have.
    """
    values = {"optimizer": resolved["optimizer"], **resolved["hyperparameters"]}
    state: Record = {
        "begun": milliseconds(),
        "kept": kept,
        "params": {name: str(value) for name, value in values.items()},
        "tags": {"task": task, "arm": arm, "kind": get_arm(arm).kind, "digest": digest},
        **{"seeds": {}, "diverged_at": {}, "summary": {}},
    }
    settings = json.loads(os.environ.get(ENVIRONMENT, "{}"))
    path = Path(settings["folder"], f"{task}.{arm}.json") if settings else None
    if path is not None and not (path.parent / RUN).exists():
        _warn_once(
            "MLflow misses trainings of this machine, which does not see %s; run the same command "
            "without --runner on the machine that does, and they are sent", path.parent,
        )  # fmt: skip
        path = None
    before = read_record(path) if path else {}  # of a worker that died
    if before.get("tags", {}).get("digest") == digest:
        state |= {"begun": before["begun"], "seeds": before["seeds"]}
    tracked = TrackedTraining(path, state, settings)
    try:
        yield tracked
    except BaseException as error:
        tracked.stop("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
