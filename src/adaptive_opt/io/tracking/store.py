"""MLflow client: batched writes to one experiment."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Store", "UnreachableError", "reason_of", "without_passwords"]

logger = logging.getLogger(__name__)

SEARCH_LIMIT, TAG_LIMIT = 50_000, 5000
"""MLflow's limits: runs that a search finds, characters of a tag of a new run."""

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's pages show runs and curves in place of traces of language models."""

REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS")
"""Error codes that another attempt would get again."""


class UnreachableError(Exception):
    """MLflow does not answer, or failed; another attempt may succeed."""


def reason_of(error: BaseException) -> str:
    """Return one line on the first cause of an error, without passwords."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return without_passwords(str(error).strip().split("\n")[0])[:200] or type(error).__name__


def without_passwords(text: str) -> str:
    """Remove users and passwords from the URLs in a text.

    Example:
        >>> without_passwords("no answer from http://me:secret@example.org/api")
        'no answer from http://example.org/api'
    """
    return re.sub(r"//[^/\s]*@", "//", text)


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

    @contextmanager
    def _request(self, written: str = "") -> Iterator[None]:
        """Note a refusal to write, and raise UnreachableError for all other errors."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except Exception as error:
            reason = reason_of(error)
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
    with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as database:
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
