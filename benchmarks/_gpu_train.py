"""Part of ``gpu_session.py``: trains arms of a network until time is up, a record for each run.

An interrupted run leaves its history as a ``partial`` record, and a checkpoint in the work folder.
The next session continues from the checkpoint if that folder still exists.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from _gpu_data import load, parameters
from _gpu_record import Records, device_of

from adaptive_opt.engine.checkpoint import Checkpoint
from adaptive_opt.engine.contract import HistoryBlock
from adaptive_opt.engine.network import run_network
from adaptive_opt.parameters import (
    TrainingParameters,
    configuration_digest,
    resolve_arm,
    task_parameters,
)

SAVE_EVERY = 20.0
"""Seconds between two checkpoints."""

TELL_EVERY = 5.0
"""Seconds between two partial records."""

LOG_EVERY = 10
"""Iterations between two rows of the history; every 50 rows the deadline is checked."""

COLUMNS = ["iteration", "train_loss", "valid_loss", "device_seconds"]
"""Columns of the history that a record keeps."""

NAN = math.nan

POINTS = 200
"""Rows of the history that a record keeps, about."""


class OutOfTimeError(Exception):
    """Raised at the end of the session's time."""


class Curve:
    """The growing history of a run, and its partial record.

    Args:
        records: to write to.
        step: its name.
        common: what every record of the run has.
        deadline: by ``time.monotonic``.
    """

    def __init__(
        self, records: Records, step: str, common: dict[str, Any], deadline: float
    ) -> None:
        self.records, self.step, self.common, self.deadline = records, step, common, deadline
        self.rows: dict[int, dict[str, float]] = {}
        self.begun = self._told = time.monotonic()

    def observe(self, block: HistoryBlock) -> None:
        """Add rows to the history; raise :class:`OutOfTimeError` at the deadline."""
        for iteration, row in block.rows.items():
            known = self.rows.setdefault(iteration, {})
            known |= {name: float(values[0]) for name, values in row.items()}
        now = time.monotonic()
        if now - self._told >= TELL_EVERY or now > self.deadline:
            self._told = now
            self.write("partial", "time ran out", iterations=max(self.rows, default=0))
        if now > self.deadline:
            raise OutOfTimeError

    def write(self, state: str, reason: str = "", **figures: Any) -> None:
        """Return the current record of the run."""
        seconds = time.monotonic() - self.begun
        found = {**self.common["figures"], **figures, "curve": self.points()}
        self.records.write(
            self.step, state, seconds=seconds, reason=reason, figures=found,
            device=self.common["device"],
        )  # fmt: skip

    def points(self) -> list[dict[str, float]]:
        """Return some rows: those with validation data, and the last."""
        every = max(1, len(self.rows) // POINTS)
        last = max(self.rows, default=0)
        return [
            {"iteration": t, **{n: row[n] for n in COLUMNS[1:] if math.isfinite(row.get(n, NAN))}}
            for i, (t, row) in enumerate(sorted(self.rows.items()))
            if i % every == 0 or math.isfinite(row.get("valid_loss", NAN)) or t == last
        ]


def train(options: argparse.Namespace) -> None:
    """Train all unfinished runs: every arm with one seed, then with the next."""
    deadline = time.monotonic() + options.seconds
    records, device = Records(options.records, options.session), device_of()
    finished, task = records.finished(), options.task
    data, learnt = load(task, options.scale, options.work)
    print(f"{task} learns {learnt}", flush=True)
    sections = {name: parameters(name, options.scale) for name in ("arms", "tasks", "training")}
    training = TrainingParameters(**{**sections["training"], "device": options.device})
    sizes = {**sections["tasks"][task], "epochs": options.epochs, "log_every": LOG_EVERY}
    settings = task_parameters(task, {task: {**sizes, "snapshot_epochs": [0]}})
    for seed in range(options.seeds):
        for arm in options.arms:
            step = f"train/{task}/{options.epochs}/{arm}/{seed}"
            if step in finished:
                continue
            if time.monotonic() > deadline:
                return
            resolved = resolve_arm(arm, sections["arms"][task], training)
            figures = {"task": task, "arm": arm, "seed": seed, "epochs": options.epochs}
            figures |= {"scale": options.scale, "data": learnt, **resolved}
            of = {**figures, "sizes": sizes, "digest": data.digest(), "on": device["type"]}
            path = options.work / f"{step.replace('/', '-')}.pt"
            checkpoint = Checkpoint(path, configuration_digest(of), SAVE_EVERY)
            curve = Curve(records, step, {"device": device, "figures": figures}, deadline)
            try:
                history, _, summary = run_network(
                    data, task=task, arm=arm, **resolved, task_parameters=settings,
                    training=training, checkpoint=checkpoint, seeds=[seed], observer=curve.observe,
                )  # fmt: skip
            except OutOfTimeError:
                print(f"{step}: time is up at iteration {max(curve.rows):,}", flush=True)
                return
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                curve.write("failed", reason)
                print(f"{step}: failed: {reason}", flush=True)
                continue
            found = {name: summary[name] for name in ("device_seconds", "diverged_at")}
            curve.rows = {int(r.pop("iteration")): r for r in history[COLUMNS].to_dict("records")}
            curve.write("done", **found, iterations=max(curve.rows))
            checkpoint.remove()
            print(f"{step}: {summary['device_seconds']:.1f} s of training", flush=True)


def main() -> None:
    """Command line, for ``gpu_session.py``."""
    line = argparse.ArgumentParser(description=__doc__)
    for name in ("task", "scale", "session", "device"):
        line.add_argument(f"--{name}", required=True)
    for name in ("records", "work"):
        line.add_argument(f"--{name}", required=True, type=Path)
    for name in ("epochs", "seeds"):
        line.add_argument(f"--{name}", required=True, type=int)
    line.add_argument("--seconds", required=True, type=float)
    line.add_argument("--arms", required=True, type=json.loads, help="a list, as JSON")
    train(line.parse_args())


if __name__ == "__main__":
    main()
