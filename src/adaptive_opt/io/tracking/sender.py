"""The process that sends files to MLflow: ``python -m adaptive_opt.io.tracking.sender``.

It exits when the run has ended and all is sent, or MLflow is unreachable. If the training process
dies, it ends the run in MLflow. Its priority is normal: a lower one would leave all to the end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from adaptive_opt.errors import root_cause, without_passwords
from adaptive_opt.files import at, changed_at, on_disk, read_record, write_record

from .training import END, RUN, SENDER, Record, delete, is_abandoned, milliseconds

__all__ = ["Delivery", "Store", "UnreachableError", "main"]

logger = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
KEY = "kedro_run"
"""Tag of a parent and its children: the name of their folder."""

POLL, LONGEST_PAUSE = 0.2, 30.0
"""Seconds between two looks at the files, and between two attempts to reach a server."""

DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
DEFAULTS["MLFLOW_DISABLE_TELEMETRY"] = "true"
"""Variables of MLflow; by its own defaults an attempt lasts for minutes."""

SEARCH_LIMIT, TAG_LIMIT = 50_000, 5000
"""MLflow's limits: runs that a search finds, characters of a tag of a new run."""

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages show runs and curves in place of traces of language models."""

REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
"""Error codes that another attempt would get again."""


class UnreachableError(Exception):
    """MLflow does not answer, or failed; another attempt may succeed."""


class Store:
    """An experiment on a tracking server or in a database; created if missing.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the experiment.
        artifacts: folder for artifacts if no server keeps them.

    Attributes:
        experiment: ID of the experiment.
        refused: what MLflow refused for good, and why. Writing continues without it.

    Raises:
        UnreachableError: also raised by every method.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        self.refused: dict[str, str] = {}
        with self._request():
            from mlflow import MlflowClient

            is_sqlite = uri.startswith("sqlite:")
            if is_sqlite:
                _prepare_sqlite(Path(uri[len("sqlite:///") :].partition("?")[0]), artifacts)
            self._client = MlflowClient(tracking_uri=uri)
            location = artifacts.as_uri() if is_sqlite else None
            found = self._client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            make = self._client.create_experiment
            self.experiment = found.experiment_id if found else make(experiment, location, KIND)

    @contextlib.contextmanager
    def _request(self, written: str = "") -> Iterator[None]:
        """Note a refusal to write, and raise UnreachableError for all other errors."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except Exception as error:
            reason = root_cause(error)
            if not (
                written and isinstance(error, MlflowException) and error.error_code in REFUSALS
            ):
                raise UnreachableError(reason) from None  # the original may contain a password
            logger.warning("MLflow refuses %s: %s", written, reason)
            self.refused[written] = reason

    def find(self, tag: str, value: str, deleted: bool = False) -> list[Any]:
        """Return the runs with a tag; on request deleted ones, too."""
        from mlflow.entities import ViewType

        view = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
        query = [self.experiment], f"tags.`{tag}` = '{value}'", view
        with self._request():
            return list(self._client.search_runs(*query, max_results=SEARCH_LIMIT))

    def create(self, name: str, tags: dict[str, str], begun: int) -> str:
        """Create a run and return its ID."""
        tags = {key: value[:TAG_LIMIT] for key, value in tags.items()}
        with self._request():
            return str(self._client.create_run(self.experiment, begun, tags, name).info.run_id)

    def log(self, run: str, points: Any, params: dict[str, str], tags: dict[str, str]) -> None:
        """Add points (metric, value, milliseconds, step), parameters and tags to a run."""
        from mlflow.entities import Metric, Param, RunTag

        values = [Metric(*point) for point in points]
        given = [Param(*item) for item in params.items()]
        marks = [RunTag(*item) for item in tags.items()]
        with self._request("metrics, parameters or tags"):
            self._client.log_batch(run, values, given, marks, synchronous=True)

    def end(self, run: str, status: str, time: int) -> None:
        """Set ``FINISHED``, ``FAILED`` or ``KILLED``."""
        with self._request(f"the status {status}"):
            self._client.set_terminated(run, status, time)

    def add_file(self, run: str, file: Path, folder: str) -> None:
        """Copy a file into a folder of a run's artifacts."""
        with self._request(file.name):
            self._client.log_artifact(run, str(file), folder)


def _prepare_sqlite(path: Path, artifacts: Path) -> None:
    """Fail now if the database is damaged or locked, where MLflow would try for minutes.

    MLflow stores absolute paths of artifacts: correct them if the project's folder was moved.
    """
    from sqlalchemy import Engine, event

    # Do not wait for the disk at each of a run's six writes; a power failure loses the last.
    event.listen(Engine, "connect", lambda base, _: base.execute("PRAGMA synchronous = NORMAL"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN IMMEDIATE")
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            new, query = artifacts.as_uri(), "SELECT artifact_location FROM experiments"
            for (old,) in database.execute(query).fetchall():
                if old != new and str(old).endswith(f"/{artifacts.name}"):
                    sql = "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?"
                    database.execute(sql, (new, old))
                    sql = "UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)"
                    database.execute(sql, (f"{old}/", f"{new}/"))
        database.execute("COMMIT")


@dataclass
class _MlflowRun:
    id: str
    finished: bool = False
    sent: set[tuple[str, int]] = field(default_factory=set)
    """Metric and iteration of points that MLflow has."""


class Delivery:
    """Sends what changed in the folder of a run since the last call.

    After an :class:`.UnreachableError` a new one sends everything again, which changes nothing:
    runs are found by their tags, and MLflow stores a point that it gets twice once.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.store, self._folder = store, folder
        self._versions: dict[Path, Any] = {}
        self._done: set[Path] = set()
        self._run = read_record(folder / RUN)
        self._runs: dict[Any, _MlflowRun] = {}
        for run in store.find(KEY, folder.name):
            found = _MlflowRun(run.info.run_id, run.info.status == "FINISHED")
            self._runs[_place(run.data.tags)] = found
        name, tags, begun = (self._run[key] for key in ("name", "tags", "time"))
        self._parent = self._find_or_create(name, tags, begun).id
        store.log(self._parent, [], self._run["params"], {})

    def send(self, killed: bool = False) -> bool:
        """Send what changed; return whether the run has ended, by itself or ``killed``."""
        end = read_record(self._folder / END)
        if not end and killed:
            end = {"status": "KILLED", "time": milliseconds(), "files": [], "metrics": {}}
        for path in sorted(self._folder.glob("[!.]*.*.json")):
            self._send_training(path, bool(end))
        if end:
            self._send_end(end)
        return bool(end)

    def _find_or_create(self, name: str, tags: dict[str, str], begun: int) -> _MlflowRun:
        if (place := _place(tags)) not in self._runs:
            tags = {**tags, KEY: self._folder.name}
            self._runs[place] = _MlflowRun(self.store.create(name, tags, begun))
        return self._runs[place]

    def _send_training(self, path: Path, ended: bool) -> None:
        """Send the state of a training; if the run has ended, no training continues."""
        stat = path.stat()
        version = stat.st_mtime_ns, stat.st_ino, stat.st_size
        if path in self._done or (self._versions.get(path) == version and not ended):
            return
        self._versions[path], state = version, read_record(path)
        if not state:
            logger.warning("%s is damaged and is not sent", path.name)
            return
        tags, time = state["tags"], state["time"]
        status = "KILLED" if ended and state["status"] == "RUNNING" else state["status"]
        known = set()
        if state["kept"]:  # what MLflow has, or had until a user deleted it, is not sent
            for run in self.store.find("digest", tags["digest"], deleted=True):
                if run.info.status == "FINISHED" or run.info.lifecycle_stage == "deleted":
                    known.add(run.data.tags["seed"])
        for seed in sorted(state["seeds"].keys() - known, key=int):
            self._send_seed(seed, state, status)
        prefix = f"{tags['task']}/{tags['arm']}"
        summary = {f"{prefix}/{name}": value for name, value in state["summary"].items()}
        self._log_parent(summary, time)
        if status == "FINISHED":
            self._done.add(path)

    def _send_seed(self, seed: str, state: Record, status: str) -> None:
        tags = {**state["tags"], **self._run["inherited"], "seed": seed, PARENT: self._parent}
        run = self._find_or_create(f"{tags['task']} {tags['arm']} {seed}", tags, state["begun"])
        if run.finished:
            return
        points = [
            (name, value, time, step)
            for name, curve in state["seeds"][seed].items()
            for step, value, time in curve.values()
            if (name, step) not in run.sent
        ]
        end = state["diverged_at"].get(seed)
        tags = {} if end is None else {"diverged_at": str(end)}
        self.store.log(run.id, points, {} if run.sent else state["params"], tags)
        run.sent.update((name, step) for name, _, _, step in points)
        if status != "RUNNING":
            self.store.end(run.id, status, state["time"])
        run.finished = status == "FINISHED"

    def _log_parent(self, metrics: dict[str, float], time: int) -> None:
        self.store.log(self._parent, [(n, x, time, 0) for n, x in metrics.items()], {}, {})

    def _send_end(self, end: Record) -> None:
        self._log_parent(end["metrics"], end["time"])
        for name, folder, changed in end["files"]:
            if changed_at(file := at(name)) == changed:  # else a later run has replaced it
                with on_disk(file) as copy:
                    self.store.add_file(self._parent, copy, folder)
        self.store.end(self._parent, end["status"], end["time"])


def _place(tags: dict[str, str]) -> Any:
    return tags.get("task"), tags.get("arm"), tags.get("seed")  # the parent has none


def main() -> int:
    """Send the files of a run; return 1 if some are left."""
    folder, process, experiment, artifacts = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    uri = os.environ["MLFLOW_TRACKING_URI"]  # arguments, and passwords in them, are public
    connect = partial(Store, uri, experiment, Path(artifacts))
    try:
        with FileLock(Path(folder, "lock"), timeout=0):
            return _send_until_end(Path(folder), int(process), connect)
    except Exception as error:
        logger.error(without_passwords("".join(traceback.format_exception(error))))
        _report(Path(folder), reason=f"{type(error).__name__}: {root_cause(error)}")
        return 1


def _send_until_end(folder: Path, process: int, connect: Callable[[], Store]) -> int:
    """Send what changes until the run has ended; return 1 if something is left."""
    delivery: Delivery | None = None
    failures = 0
    while True:
        killed = os.getppid() != process
        last = killed or (folder / END).exists()
        try:
            if delivery is None:
                store = connect()
                _report(folder)
                _send_leftovers(folder, store)
                delivery = Delivery(folder, store)
            if delivery.send(killed):
                store = delivery.store
                _report(folder, experiment=store.experiment, refused=store.refused)
                if killed:
                    delete(folder)
                return 0
            failures = 0
        except (UnreachableError, OSError) as error:
            delivery, failures = None, failures + 1
            logger.warning("%s", root_cause(error))
            _report(folder, reason=root_cause(error))
            if last:
                return 1
        until = time.monotonic() + (min(LONGEST_PAUSE, 2.0**failures) if failures else POLL)
        while time.monotonic() < until and os.getppid() == process and not (folder / END).exists():
            time.sleep(POLL)


def _send_leftovers(own: Path, store: Store) -> None:
    """Send what other runs left that ended without MLflow, or were killed with their sender."""
    for folder in sorted(own.parent.iterdir()):
        if folder == own or not is_abandoned(folder):
            continue
        # A run that cannot be sent now must not keep this one from being sent.
        try:
            with FileLock(folder / "lock", timeout=0):
                Delivery(folder, store).send(killed=True)
                delete(folder)
        except Exception as error:
            logger.warning("%s is not sent: %s", folder.name, root_cause(error))


def _report(folder: Path, **state: Any) -> None:
    """Tell the training process how sending goes."""
    with contextlib.suppress(OSError):
        write_record(folder / SENDER, state)


if __name__ == "__main__":
    raise SystemExit(main())
