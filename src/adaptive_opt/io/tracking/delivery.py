"""Records of one ``kedro run`` turned into runs of MLflow: a parent, and a child for each seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from adaptive_opt.files import at, changed_at, on_disk

from .curves import CURVES, final_values, history_curves
from .spool import Record, Spool, milliseconds, read
from .store import RefusedError, Store

__all__ = ["Delivery"]

logger = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
KEY = "kedro_run"
"""Tag of a parent and its children: the name of the folder that their records were in."""


@dataclass
class _Child:
    run: str
    open: bool
    params_sent: bool = False
    steps: dict[str, set[int]] = field(default_factory=dict)
    """Of curves that an earlier ``kedro run`` began: where they have points."""


class Delivery:
    """Takes what waits in a folder to MLflow, record by record.

    Sending a record again does no harm: a run is looked for before it is made wherever it might
    be there already, and MLflow keeps a value that it is given twice once.

    Args:
        spool: the folder.
        store: where to.
        careful: an earlier attempt may have got further than is known here.
    """

    def __init__(self, spool: Spool, store: Store, careful: bool) -> None:
        self.spool, self.store, self.careful = spool, store, careful
        self.refused: list[str] = []
        self._parent: str | None = None
        self._run: Record = {}
        self._children: dict[tuple[str, int], _Child] = {}
        self._found: dict[str, list[Any]] = {}

    def step(self) -> bool:
        """Send all that waits; whether the run has ended with it."""
        self._open()
        for path in self.spool.waiting():
            record = read(path)
            try:
                if record is None:
                    raise RefusedError(f"{path.name} is damaged")
                self._send(record)
            except RefusedError as error:
                logger.warning("refused: %s", error)
                self.refused.append(str(error))
            path.unlink(missing_ok=True)
            if record is not None and record["kind"] == "close":
                self.spool.finished()
                return True
        return False

    def end(self, status: str) -> None:
        """End the run, which did not do so itself."""
        self._send({"kind": "close", "status": status, "time": milliseconds()})
        self.spool.finished()

    def _open(self) -> None:
        if self._parent is not None:
            return
        self._run = self.spool.run() or {}
        key = self.spool.key
        if self.careful:
            found = [r for r in self.store.find(KEY, key) if PARENT not in r.data.tags]
            self._parent = found[0].info.run_id if found else None
        if self._parent is None:
            tags = {**self._run["tags"], KEY: key}
            self._parent = self.store.create(self._run["name"], tags, self._run["time"])
        try:
            self.store.log(self._parent, params=self._run["params"])
        except RefusedError as error:
            self.refused.append(str(error))

    def _send(self, record: Record) -> None:
        if record["kind"] == "children":
            self._send_children(record)
        elif record["kind"] == "kept":
            self._send_kept(record)
        else:
            self._send_end(record)
        if "summary" in record and self._parent is not None:
            prefix, now = f"{record['task']}/{record['arm']}", record["time"]
            values = record["summary"].items()
            self.store.log(self._parent, [(f"{prefix}/{n}", v, now, 0) for n, v in values])

    def _send_children(self, record: Record) -> None:
        for seed, part in record["seeds"].items():
            child = self._child(record, int(seed), part["fresh"])
            if not child.open:  # all of it was sent by an earlier attempt
                continue
            metrics = [
                (name, value, time, step)
                for name, points in part["points"].items()
                for step, value, time in points
                if step not in child.steps.get(name, ())
            ]
            metrics += [(name, v, time, step) for name, (step, v, time) in part["final"].items()]
            params = {} if child.params_sent else record["params"]
            self.store.log(child.run, metrics, params, part["tags"])
            child.params_sent = True
            if record["status"]:
                self.store.end(child.run, record["status"], record["time"])
                child.open = False

    def _child(self, record: Record, seed: int, fresh: bool) -> _Child:
        """The run of a seed: known here, found, or made."""
        place = record["digest"], seed
        if place in self._children:
            return self._children[place]
        found = []
        if self.careful or not fresh:
            found = [r for r in self._of(record["digest"]) if r.data.tags.get("seed") == str(seed)]
        if fresh:  # what others began was begun anew here
            found = [r for r in found if r.data.tags.get(KEY) == self.spool.key]
        found.sort(key=lambda run: run.info.status == "FINISHED")
        tags = {**record["tags"], KEY: self.spool.key, PARENT: str(self._parent)}
        if not found:
            name = f"{record['task']} {record['arm']} {seed}"
            tags |= {"seed": str(seed), **self._run["inherited"]}
            child = _Child(self.store.create(name, tags, record["begun"]), True)
        elif found[0].info.status == "FINISHED":
            child = _Child(found[0].info.run_id, False)
        else:
            child = _Child(found[0].info.run_id, True)
            self.store.reopen(child.run, tags)
            child.steps = {name: self.store.steps(child.run, name) for name in CURVES}
        self._children[place] = child
        return child

    def _of(self, digest: str) -> list[Any]:
        if digest not in self._found:
            self._found[digest] = self.store.find("digest", digest)
        return self._found[digest]

    def _send_kept(self, record: Record) -> None:
        """Runs that were finished before: those that MLflow lacks are made from their files."""
        known = {
            int(run.data.tags["seed"])
            for run in self.store.find("digest", record["digest"], deleted=True)
            if run.info.status == "FINISHED" or run.info.lifecycle_stage == "deleted"
        }
        summary = read(at(record["folder"]) / "summary.json")
        if summary is None or summary.get("digest") != record["digest"]:
            return
        missing = set(summary["seeds"]) - known
        if missing:
            seeds = dict(_parts(record, summary, missing))
            made = {"begun": record["time"], "status": "FINISHED", "seeds": seeds}
            self._send_children({**record, **made})

    def _send_end(self, record: Record) -> None:
        status, time, parent = record["status"], record["time"], str(self._parent)
        for child in self._children.values():
            if child.open:
                self.store.end(child.run, status, time)
                child.open = False
        if self.careful:
            for run in self.store.find(KEY, self.spool.key):
                if PARENT in run.data.tags and run.info.status == "RUNNING":
                    self.store.end(run.info.run_id, status, time)
        metrics = [(name, value, time, 0) for name, value in record.get("metrics", {}).items()]
        self.store.log(parent, metrics, tags=record.get("tags"))
        for name, folder, changed in record.get("files", []):
            # One that was written again since is another run's.
            if changed_at(file := at(name)) == changed:
                with on_disk(file) as copy:
                    self.store.add_file(parent, copy, folder)
        self.store.end(parent, status, time)


def _parts(
    record: Record, summary: Record, seeds: set[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of each of some seeds what a training that is followed would have said."""
    import pandas as pd

    with on_disk(at(record["folder"]) / "history.parquet") as file:
        history = pd.read_parquet(file)
    length, now = summary["iterations"], record["time"]
    parts: dict[int, dict[str, Any]] = {
        seed: {
            "fresh": False,
            "points": {},
            "final": {n: [length, v, now] for n, v in values.items()},
            "tags": {},
        }
        for seed, values in final_values(history)
        if seed in seeds
    }
    for seed, name, curve in history_curves(history, length, record["points"]):
        if seed in seeds:
            parts[seed]["points"][name] = [[step, value, now] for step, value in curve]
    for seed, end in zip(summary["seeds"], summary["diverged_at"], strict=True):
        if seed in seeds and end is not None:
            parts[seed]["tags"]["diverged_at"] = str(end)
    yield from parts.items()
