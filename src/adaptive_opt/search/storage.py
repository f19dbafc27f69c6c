"""Where studies are kept: SQLite, or a PostgreSQL server that many hosts share."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from adaptive_opt.errors import StudyError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

__all__ = ["GRACE", "Storage"]

GRACE = 6
"""A worker that has given no sign of life for so many heartbeats is taken for dead."""

OPENING_ATTEMPTS = 10

SQLITE_PATIENCE = 60.0
"""Seconds that a worker waits for another one's write."""


class Storage:
    """A database of studies, by its URL; opened when it is needed.

    Args:
        url: of SQLAlchemy: ``sqlite:///file`` or ``postgresql://user:password@host/database``.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def __repr__(self) -> str:
        return f"Storage({self.name!r})"

    @property
    def name(self) -> str:
        """The URL without its password, and without a query, in which there may be one too.

        Example:
            >>> Storage("postgresql://me:s@cret@host/db?password=secret").name
            'postgresql://me:***@host/db'
        """
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self._url)
            # What stands before the last @ of a host is the rest of a password.
            shown = url.set(host=(url.host or "").rpartition("@")[2] or None)
            return shown.difference_update_query(url.query).render_as_string(hide_password=True)
        except (ArgumentError, ValueError):
            return "the URL of the studies' database"

    @property
    def absent(self) -> bool:
        """Whether it is a file, and the file is not there."""
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self._url)
        except (ArgumentError, ValueError):
            return False
        file = url.get_backend_name() == "sqlite" and url.database
        return bool(file) and not Path(str(file)).exists()

    def open(self, heartbeat_seconds: int = 10) -> RDBStorage:
        """The database, its tables made if they are not there.

        Raises:
            StudyError: it cannot be reached, read or written.
        """
        import sqlalchemy.exc as sql
        from sqlalchemy.engine import make_url

        try:
            if "@" in (make_url(self._url).host or ""):
                raise StudyError(f"{self.name}: an @ in the password is to be written as %40")
            with self.explained():
                return _open(self._url, heartbeat_seconds, os.getpid())
        except StudyError:
            raise
        except (sql.ArgumentError, sql.NoSuchModuleError, ValueError) as error:
            raise StudyError(
                f"{self.name} is no database that studies can be kept in ({_first_line(error)}); "
                "give sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
            ) from None
        except ImportError as error:
            raise StudyError(
                f"{self.name} needs a driver ({_first_line(error)}): "
                "pip install 'adaptive_opt[postgresql]'"
            ) from None
        except (OSError, RuntimeError) as error:
            raise StudyError(f"{self.name}: {_remedy(error)}") from None

    def check(self) -> None:
        """Write and delete a study, so that what is wrong is said before anything is trained.

        Raises:
            StudyError: it cannot be reached, read or written.
        """
        import optuna

        storage = self.open()
        name = f"check-{uuid4().hex}"
        with self.explained():
            if storage.engine.dialect.name == "sqlite":
                _check_sqlite(storage.engine)
            optuna.create_study(storage=storage, study_name=name)
            optuna.delete_study(storage=storage, study_name=name)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Faults of the database as one sentence."""
        import optuna
        import sqlalchemy.exc as sql

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
                # Signs of life are given by SharedStudy.heartbeat.
                warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
                yield
        except (sql.ArgumentError, sql.NoSuchModuleError):
            raise  # of the URL, not of what is there
        except (sql.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = error.__cause__ if isinstance(error, optuna.exceptions.OptunaError) else error
            raise StudyError(f"{self.name}: {_remedy(cause or error)}") from None


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]


def _remedy(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error)
    first = _first_line(error)
    remedies = {
        "readonly": "the studies cannot be written; make the file and its folder writable",
        "read-only": "the studies cannot be written; take a server that is no read-only replica",
        "permission denied": "the studies cannot be written; grant the user the right to",
        "not a database": "the file is damaged or no SQLite database; move it away",
        "malformed": "the file is damaged; move it away, or restore a copy",
        "unable to open": "the file cannot be opened; check its folder",
        "password": "the server refused the user or the password",
        "refused": "no server answers there; check host and port, and that it runs",
        "resolve": "no host of that name; check the URL",
        "translate host name": "no host of that name; check the URL",
        "does not exist": "no such database or user on the server; make it, or check the URL",
        "locked": "another process holds the file for too long; run again",
        "disk is full": "the disk is full; make room and run again",
        "no space left": "the disk is full; make room and run again",
        "closed the connection": "the server went away; start it and run again",
        "terminating connection": "the server went away; start it and run again",
        "starting up": "the server is starting up; run again",
        "shutting down": "the server is shutting down; start it and run again",
        "disk i/o error": "the disk cannot be read or written; check it, or restore a copy",
        "no such": "the file is no database of studies; move it away",
        "has no column": "the file is no database of studies; move it away",
    }
    for sign, remedy in remedies.items():
        if sign in text.lower():
            return f"{remedy} ({first})"
    return first


def _check_sqlite(engine: Any) -> None:
    """SQLite itself notices damage only where it stumbles over it."""
    import sqlalchemy

    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text("PRAGMA integrity_check(1)")).scalar()
    if found != "ok":
        raise sqlalchemy.exc.SQLAlchemyError(f"malformed: {found}")


@functools.lru_cache(maxsize=4)
def _open(url: str, heartbeat_seconds: int, process: int) -> RDBStorage:
    """Once a process: connections do not survive a fork, and opening takes a while."""
    del process
    import optuna
    import sqlalchemy
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = make_url(url)
    kwargs: dict[str, Any] = {"pool_pre_ping": True}
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        kwargs["connect_args"] = {"timeout": SQLITE_PATIENCE}
        if parsed.database and not parsed.database.startswith((":memory:", "file:")):
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    elif kind == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        kwargs["connect_args"] = {"connect_timeout": 10}
    else:
        raise sqlalchemy.exc.ArgumentError(f"{kind} is not supported")
    for left in range(OPENING_ATTEMPTS, -1, -1):
        try:
            storage = RDBStorage(
                parsed.render_as_string(hide_password=False),
                engine_kwargs=kwargs,
                heartbeat_interval=heartbeat_seconds,
                grace_period=GRACE * heartbeat_seconds,
            )
            break
        except sqlalchemy.exc.DBAPIError as error:
            # Another worker made the tables at the same moment.
            if not left or not any(
                sign in str(error) for sign in ("already exists", "duplicate", "UNIQUE")
            ):
                raise
            time.sleep(0.5)
    if kind == "sqlite":
        _fewer_waits_for_the_disk(storage.engine)
    return storage


def _fewer_waits_for_the_disk(engine: Any) -> None:
    """SQLite waits for the disk at checkpoints only, not at each of a trial's many writes.

    A crash of the process loses nothing; one of the machine may lose the last trials, which
    are then made again.
    """
    import sqlalchemy

    @sqlalchemy.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    engine.dispose()
