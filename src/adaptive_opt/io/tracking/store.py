"""What is asked of MLflow, in as few requests as it allows."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

__all__ = [
    "RefusedError",
    "Store",
    "UnreachableError",
    "anonymous",
    "first_line",
    "without_password",
]

PARAMETERS_A_REQUEST = 100
METRICS_A_REQUEST = 1000
LONGEST_PARAMETER = 6000
LONGEST_TAG = 5000
"""Limits of MLflow's."""

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""What the pages are laid out for: curves, not conversations."""

ANSWERS_WITHIN = 5.0
"""Seconds in which a server must show that it is there."""

REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
"""Answers that will be the same next time."""


class UnreachableError(Exception):
    """MLflow could not be asked, or not now."""


class RefusedError(Exception):
    """MLflow does not want this."""


@contextmanager
def _asking() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        kind = RefusedError if error.error_code in REFUSALS else UnreachableError
        raise kind(first_line(error)) from None  # the error itself may name a password
    except Exception as error:
        raise UnreachableError(first_line(error)) from None


def anonymous(text: str) -> str:
    """A text without the users and passwords of addresses in it.

    Example:
        >>> anonymous("no answer from http://me:secret@example.org/api")
        'no answer from http://example.org/api'
    """
    return re.sub(r"//[^/\s]*@", "//", text)


def first_line(error: Exception) -> str:
    """What an error says, short and :func:`anonymous`."""
    text = anonymous(str(error).strip().split("\n")[0]) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"


def without_password(uri: str) -> str:
    """An address as it may be shown.

    Example:
        >>> without_password("https://me:secret@example.org:5000/mlflow")
        'https://example.org:5000/mlflow'
    """
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class Store:
    """An experiment of a tracking server, or of a database.

    Args:
        uri: of either.
        experiment: its name.
        artifacts: folder for files where there is no server to keep them.

    Raises:
        UnreachableError: at once or within seconds, if there is no use in trying.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        _knock(uri)
        if urlsplit(uri).scheme == "sqlite":
            _follow_project(_database(uri), artifacts.as_uri())
            _fewer_waits_for_the_disk()
        with _asking():
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = self._open(experiment, None if _has_server(uri) else artifacts)

    def _open(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if artifacts is None else artifacts.as_uri()
            made = self._client.create_experiment(name, artifact_location=location, tags=KIND)
            return str(made)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def find(self, tag: str, value: str, deleted: bool = False) -> list[Any]:
        """Runs of the experiment by a tag, newest first; on request also deleted ones."""
        with _asking():
            from mlflow.entities import ViewType

            return list(
                self._client.search_runs(
                    [self._experiment],
                    f"tags.`{tag}` = '{value}'",
                    run_view_type=ViewType.ALL if deleted else ViewType.ACTIVE_ONLY,
                    max_results=5000,
                )
            )

    def create(self, name: str, tags: Mapping[str, str], time: int) -> str:
        """A new run."""
        with _asking():
            cut = {key: value[:LONGEST_TAG] for key, value in tags.items()}
            run = self._client.create_run(
                self._experiment, start_time=time, tags=cut, run_name=name
            )
            return str(run.info.run_id)

    def log(
        self,
        run: str,
        metrics: Iterable[tuple[str, float, int, int]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add metrics (name, value, milliseconds, step), parameters and tags to a run.

        The same ones again change nothing.
        """
        with _asking():
            from mlflow.entities import Metric, Param, RunTag

            values = [Metric(*m) for m in metrics]
            named = [Param(k, v[:LONGEST_PARAMETER]) for k, v in (params or {}).items()]
            marks = [RunTag(k, v[:LONGEST_TAG]) for k, v in (tags or {}).items()]
            rest = METRICS_A_REQUEST - PARAMETERS_A_REQUEST - len(marks)
            while values or named or marks:
                self._client.log_batch(
                    run, values[:rest], named[:PARAMETERS_A_REQUEST], marks, synchronous=True
                )
                values, named, marks = values[rest:], named[PARAMETERS_A_REQUEST:], []

    def steps(self, run: str, metric: str) -> set[int]:
        """Where a curve has points."""
        with _asking():
            return {int(m.step) for m in self._client.get_metric_history(run, metric)}

    def reopen(self, run: str, tags: Mapping[str, str]) -> None:
        """Go on with a run."""
        self.log(run, tags=tags)
        with _asking():
            self._client.update_run(run, status="RUNNING")

    def end(self, run: str, status: str, time: int) -> None:
        """``FINISHED``, ``FAILED`` or ``KILLED``."""
        with _asking():
            self._client.set_terminated(run, status, end_time=time)

    def add_file(self, run: str, file: Path, folder: str) -> None:
        """Copy a file into a folder of a run's artifacts."""
        with _asking():
            self._client.log_artifact(run, str(file), folder)


def _has_server(uri: str) -> bool:
    return urlsplit(uri).scheme.split("+")[0] not in ("sqlite", "file", "")


def _knock(uri: str) -> None:
    """Find out in seconds what MLflow's own retries would find out in minutes."""
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        _ask_server(uri)
    elif scheme == "sqlite":
        _ask_sqlite(uri)


def _ask_server(uri: str) -> None:
    limit = min(ANSWERS_WITHIN, float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "inf")))
    try:
        health = f"{without_password(uri).rstrip('/')}/health"
        urllib.request.urlopen(health, timeout=limit).close()  # noqa: S310
    except urllib.error.HTTPError:
        pass  # it is there; what it thinks of us is seen later
    except Exception as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(str(reason)) from error


def _ask_sqlite(uri: str) -> None:
    path = _database(uri)
    if not path.exists():
        return  # MLflow makes it
    try:
        with closing(sqlite3.connect(path, timeout=ANSWERS_WITHIN, isolation_level=None)) as base:
            base.execute("SELECT count(*) FROM sqlite_master").fetchone()
            base.execute("BEGIN IMMEDIATE")
            base.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise UnreachableError(str(error)) from error


@cache
def _fewer_waits_for_the_disk() -> None:
    """Of MLflow's six transactions a run each would wait for the disk, half of a run's time.

    A loss of power then costs the last ones, and damages nothing.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def _follow_project(path: Path, artifacts: str) -> None:
    """MLflow keeps absolute paths: after the project's folder was moved, correct them."""
    if not path.exists():
        return
    name = artifacts.rpartition("/")[2]
    query = "SELECT artifact_location FROM experiments WHERE artifact_location LIKE ?"
    with (
        contextlib.suppress(sqlite3.Error),
        closing(sqlite3.connect(path, timeout=ANSWERS_WITHIN)) as base,
        base,
    ):
        for (old,) in base.execute(query, (f"file://%/{name}",)).fetchall():
            if old != artifacts:
                base.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
                    (artifacts, old),
                )
                base.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                    "WHERE artifact_uri LIKE ? || '/%'",
                    (artifacts, len(old) + 1, old),
                )
