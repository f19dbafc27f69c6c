"""What training says of itself: curves while it goes on, costs and outcome at its end."""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptive_opt.study import get_arm

from .curves import CURVES, final_values, history_curves, share_of
from .spool import Spool, milliseconds

if TYPE_CHECKING:
    from adaptive_opt.engine.contract import HistoryBlock

__all__ = ["ENVIRONMENT", "TrackedTraining", "note_finished", "track_training"]

ENVIRONMENT = "ADAPTIVE_OPT_TRACKING"
"""Where the hooks leave, for the processes of a runner too, which run they are part of."""

logger = logging.getLogger(__name__)


class TrackedTraining:
    """All seeds of an arm on a task, which become runs of their own in MLflow.

    Whatever goes wrong here ends the tracking of this training, and not the training.

    Args:
        spool: where records go; None: nowhere.
        identity: task, arm, digest, parameters and tags, alike for all seeds.
        points: parts that a curve is divided into, of which it keeps one point each.
        every: seconds between two records.
    """

    def __init__(
        self,
        spool: Spool | None,
        identity: dict[str, Any],
        points: int = 1,
        every: float = math.inf,
    ) -> None:
        self._spool, self._identity, self._points, self._every = spool, identity, points, every
        self._begun = milliseconds()
        self._last = time.monotonic()
        self._share: dict[tuple[int, str], int] = {}
        self._fresh: dict[int, bool] = {}
        self._sent: dict[tuple[int, str], set[int]] = defaultdict(set)
        self._seeds: dict[int, dict[str, Any]] = {}

    def observe(self, block: HistoryBlock) -> None:
        """Take note of a block of the history."""
        if self._spool is None:
            return
        try:
            self._take(block)
            if time.monotonic() - self._last >= self._every:
                self._write(None)
        except Exception as error:
            self._give_up(error)

    def finish(self, history: Any, summary: dict[str, Any]) -> None:
        """Add what the curves lack, the costs, and what came of it."""
        if self._spool is None:
            return
        try:
            self._complete(history, summary)
            self._write("FINISHED", summary=arm_metrics(summary))
        except Exception as error:
            self._give_up(error)

    def abandon(self, status: str) -> None:
        """It ends here, ``FAILED`` or ``KILLED``."""
        if self._spool is None:
            return
        try:
            self._write(status)
        except Exception as error:
            self._give_up(error)

    def _take(self, block: HistoryBlock) -> None:
        now, seeds = milliseconds(), list(block.seeds)
        for seed in seeds:
            self._fresh.setdefault(seed, min(block.rows, default=0) == 0)
            self._part(seed)
        for iteration in sorted(block.rows):
            share = share_of(iteration, block.iterations, self._points)
            for name in CURVES:
                values = block.rows[iteration].get(name)
                if values is None or self._share.get((seeds[0], name)) == share:
                    continue
                self._share[seeds[0], name] = share
                kept = np.asarray(values, dtype=np.float32)  # as the history is saved
                for seed, value, end in zip(seeds, kept, block.diverged_at, strict=True):
                    if math.isfinite(value) and (end is None or iteration < end):
                        self._point(seed, name, iteration, float(value), now)

    def _part(self, seed: int) -> dict[str, Any]:
        empty = {"fresh": self._fresh.get(seed, False), "points": {}, "final": {}, "tags": {}}
        return self._seeds.setdefault(seed, empty)

    def _point(self, seed: int, name: str, iteration: int, value: float, now: int) -> None:
        if iteration not in self._sent[seed, name]:
            self._sent[seed, name].add(iteration)
            self._part(seed)["points"].setdefault(name, []).append([iteration, value, now])

    def _complete(self, history: Any, summary: dict[str, Any]) -> None:
        now, length = milliseconds(), summary["iterations"]
        for seed, name, curve in history_curves(history, length, self._points):
            for iteration, value in curve:
                self._point(seed, name, iteration, value, now)
        for seed, values in final_values(history):
            self._part(seed)["final"] = {n: [length, value, now] for n, value in values.items()}
        for seed, end in zip(summary["seeds"], summary["diverged_at"], strict=True):
            if end is not None:
                self._part(seed)["tags"]["diverged_at"] = str(end)

    def _write(self, status: str | None, **more: Any) -> None:
        """A record of everything since the last one; of every seed, if it is the last."""
        self._last = time.monotonic()
        if status is not None:
            for seed in self._fresh:
                self._part(seed)
        if self._spool is None or not self._seeds:
            return
        record = {"kind": "children", "begun": self._begun, "time": milliseconds()}
        record |= {"status": status, "seeds": self._seeds, **self._identity, **more}
        self._seeds = {}
        self._spool.put(record)

    def _give_up(self, error: Exception) -> None:
        names = self._identity["task"], self._identity["arm"]
        logger.warning("%s, %s: MLflow gets no more of this training (%s)", *names, error)
        self._spool = None


def arm_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Of all seeds of an arm, for the parent run: median final loss, costs, divergence."""
    losses = [math.inf if x is None else x for x in summary["final_train_loss"]]
    values = {
        "median_final_train_loss": statistics.median(losses),
        "gradient_equivalents": summary["gradient_equivalents"],
        "device_seconds": summary["device_seconds"],
        "diverged": sum(t is not None for t in summary["diverged_at"]),
    }
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


@contextmanager
def track_training(
    task: str, arm: str, digest: str, resolved: dict[str, Any]
) -> Iterator[TrackedTraining]:
    """Follow the training of an arm, if this is part of a run that is tracked.

    Args:
        task, arm: names.
        digest: of everything that the results depend on.
        resolved: the arm's optimizer and hyperparameters.
    """
    spool, settings = _current()
    identity = _identity(task, arm, digest, resolved)
    points, every = settings.get("points", 1), settings.get("live_seconds", math.inf)
    tracked = TrackedTraining(spool, identity, points, every)
    try:
        yield tracked
    except Exception:
        tracked.abandon("FAILED")
        raise
    except BaseException:
        tracked.abandon("KILLED")
        raise


def note_finished(
    task: str,
    arm: str,
    digest: str,
    resolved: dict[str, Any],
    folder: Path,
    summary: dict[str, Any],
) -> None:
    """Say that the runs in a folder, finished before, were taken as they are.

    They get runs in MLflow only where it does not know them.
    """
    spool, settings = _current()
    if spool is None:
        return
    try:
        record = {"kind": "kept", "time": milliseconds(), "folder": str(folder)}
        record |= {"summary": arm_metrics(summary), "points": settings["points"]}
        spool.put(record | _identity(task, arm, digest, resolved))
    except Exception as error:
        logger.warning("%s, %s: MLflow is not told of these runs (%s)", task, arm, error)


def _current() -> tuple[Spool | None, dict[str, Any]]:
    settings: dict[str, Any] = json.loads(os.environ.get(ENVIRONMENT, "{}"))
    if not settings:
        return None, {}
    spool = Spool(Path(settings["folder"]))
    if spool.run() is None:  # nobody would ever send what is put there
        _say_once(f"{spool.folder} of the run is not seen from here, so MLflow is not told of this")
        return None, settings
    return spool, settings


@cache
def _say_once(what: str) -> None:
    logger.warning("%s", what)


def _identity(task: str, arm: str, digest: str, resolved: dict[str, Any]) -> dict[str, Any]:
    values = resolved["hyperparameters"]
    return {
        "task": task,
        "arm": arm,
        "digest": digest,
        "params": {"optimizer": resolved["optimizer"], **{k: str(v) for k, v in values.items()}},
        "tags": {"task": task, "arm": arm, "kind": get_arm(arm).kind, "digest": digest},
    }
