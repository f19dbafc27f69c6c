"""Database of the Optuna studies: a SQLite file, or a PostgreSQL server for many hosts."""

from __future__ import annotations

import functools
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from adaptive_opt.errors import StudyError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

__all__ = ["MISSED_HEARTBEATS", "Storage"]

URL_VARIABLE = "ADAPTIVE_OPT_TUNING_STORAGE"

MISSED_HEARTBEATS = 6
"""A worker that misses this many heartbeats is considered dead."""

OPENING_ATTEMPTS = 10

SQLITE_TIMEOUT = 60.0
"""How long a worker waits for another worker's write, in seconds."""


class Storage:
    """A database of Optuna studies, opened at first use.

    Args:
        url: SQLAlchemy URL: ``sqlite:///file`` or ``postgresql://user:password@host/database``.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    @classmethod
    def configured(cls, url: str, credentials: Mapping[str, str] | None = None) -> Storage:
        """Choose a URL: from ``ADAPTIVE_OPT_TUNING_STORAGE``, the credentials, or ``url``.

        Args:
            url: URL without password.
            credentials: may have ``url``, a URL with password.
        """
        return cls(os.environ.get(URL_VARIABLE) or (credentials or {}).get("url") or url)

    def __repr__(self) -> str:
        return f"Storage({self.name!r})"

    @property
    def name(self) -> str:
        """The URL without its password and query, which can also contain a password.

        Example:
            >>> Storage("postgresql://me:s@cret@host/db?password=secret").name
            'postgresql://me:***@host/db'
        """
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self._url)
            # A password with an unescaped @ ends up in the host, before its last @.
            redacted = url.set(host=(url.host or "").rpartition("@")[2] or None)
            redacted = redacted.difference_update_query(url.query)
            return redacted.render_as_string(hide_password=True)
        except (ArgumentError, ValueError):
            return "the URL of the studies' database"

    @property
    def absent(self) -> bool:
        """Whether the database is a SQLite file that does not exist."""
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self._url)
        except (ArgumentError, ValueError):
            return False
        file = url.get_backend_name() == "sqlite" and url.database
        return bool(file) and not Path(str(file)).exists()

    def open(self, heartbeat_seconds: int = 10) -> RDBStorage:
        """Open the database, and create missing tables.

        Args:
            heartbeat_seconds: interval between two heartbeats of a worker.

        Raises:
            StudyError: the URL is wrong, a driver is missing, or the database cannot be reached,
                read or written.
        """
        import sqlalchemy.exc as sql
        from sqlalchemy.engine import make_url

        try:
            if "@" in (make_url(self._url).host or ""):
                raise StudyError(f"{self.name}: write an @ in the password as %40")
            with self.explained():
                return _open(self._url, heartbeat_seconds, os.getpid())
        except StudyError:
            raise
        except (sql.ArgumentError, sql.NoSuchModuleError, ValueError) as error:
            raise StudyError(
                f"{self.name} is not a supported database URL ({_first_line(error)}); "
                "write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
            ) from None
        except ImportError as error:
            raise StudyError(
                f"{self.name} needs a driver ({_first_line(error)}): "
                "pip install 'adaptive_opt[postgresql]'"
            ) from None
        except (OSError, RuntimeError) as error:
            raise StudyError(f"{self.name}: {_remedy(error)}") from None

    def check(self) -> None:
        """Create and delete a study, to report a faulty database before training starts.

        Raises:
            StudyError: see :meth:`open`; also, the file is damaged.
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
        """Convert database errors to :class:`StudyError` with a remedy."""
        import optuna
        import sqlalchemy.exc as sql

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
                # SharedStudy.heartbeat records the heartbeats.
                warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
                yield
        except (sql.ArgumentError, sql.NoSuchModuleError):
            raise  # an error in the URL: open reports it
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
        "read-only": "the studies cannot be written; use a server that is not a read-only replica",
        "permission denied": "the studies cannot be written; grant the user write access",
        "not a database": "the file is damaged or not a SQLite database; move it away",
        "malformed": "the file is damaged; move it away, or restore a copy",
        "unable to open": "the file cannot be opened; check its folder",
        "password": "the server refused the user or the password",
        "refused": "no server answers; check the host, the port, and that the server runs",
        "resolve": "the host is unknown; check the URL",
        "translate host name": "the host is unknown; check the URL",
        "does not exist": "no such database or user on the server; create it, or check the URL",
        "locked": "another process locked the file for too long; run again",
        "disk is full": "the disk is full; make room and run again",
        "no space left": "the disk is full; make room and run again",
        "closed the connection": "the server closed the connection; restart it and run again",
        "terminating connection": "the server closed the connection; restart it and run again",
        "starting up": "the server is starting up; run again",
        "shutting down": "the server is shutting down; start it and run again",
        "disk i/o error": "the disk cannot be read or written; check it, or restore a copy",
        "no such": "the file is not a database of studies; move it away",
        "has no column": "the file is not a database of studies; move it away",
    }
    for symptom, remedy in remedies.items():
        if symptom in text.lower():
            return f"{remedy} ({first})"
    return first


def _check_sqlite(engine: Any) -> None:
    """Check the whole file: without this, SQLite notices damage only in the pages it reads."""
    import sqlalchemy

    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text("PRAGMA integrity_check(1)")).scalar()
    if found != "ok":
        raise sqlalchemy.exc.SQLAlchemyError(f"malformed: {found}")


@functools.lru_cache(maxsize=4)
def _open(url: str, heartbeat_seconds: int, process: int) -> RDBStorage:
    """Open a database once a process, because opening is slow.

    ``process`` is part of the cache key: a forked child cannot use its parent's connections.
    """
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
        kwargs["connect_args"] = {"timeout": SQLITE_TIMEOUT}
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
                grace_period=MISSED_HEARTBEATS * heartbeat_seconds,
            )
            break
        except sqlalchemy.exc.DBAPIError as error:
            # Another worker created the tables at the same moment.
            if not left or not any(
                symptom in str(error) for symptom in ("already exists", "duplicate", "UNIQUE")
            ):
                raise
            time.sleep(0.5)
    if kind == "sqlite":
        _use_write_ahead_log(storage.engine)
    return storage


def _use_write_ahead_log(engine: Any) -> None:
    """Let SQLite wait for the disk only at its checkpoints, not at every write of a trial.

    A crash of the process loses nothing. A crash of the machine can lose the last trials; the
    next search repeats them.
    """
    import sqlalchemy

    @sqlalchemy.event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    engine.dispose()
