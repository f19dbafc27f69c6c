"""Local and remote (fsspec) files, written atomically."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .processes import is_running

__all__ = [
    "CHECKOUT",
    "PROJECT",
    "UnreachableError",
    "at",
    "changed_at",
    "clear_half_written",
    "exists",
    "is_remote",
    "on_disk",
    "read_record",
    "remove",
    "write_record",
    "write_whole",
]

CHECKOUT = Path(__file__).parents[2]
"""Root folder of the source checkout. For an installed wheel, it is a folder of Python."""


def _project() -> Path:
    if named := os.environ.get("ADAPTIVE_OPT_FOLDER"):
        return Path(named).expanduser().absolute()
    return CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()


PROJECT = _project()
"""Folder of all data and records. Relative paths start here.

It is the environment variable ``ADAPTIVE_OPT_FOLDER`` if set, else the checkout, or for an
installed wheel the working directory.
"""

LOCAL = ("file", "local")
"""URL protocols of local files."""


class UnreachableError(OSError):
    """A remote file system did not answer or refused access: its files may or may not exist."""


def at(name: str | Path) -> Path:
    """Return the path of a file name or URL such as ``s3://bucket/folder``; it may be missing.

    Example:
        >>> at("file:///data/base").as_posix(), is_remote(at("memory://data"))
        ('/data/base', True)
    """
    protocol, separator, rest = str(name).partition("://")
    if not separator:
        return Path(name)
    if protocol in LOCAL:
        return Path(rest)
    from upath import UPath

    # No cache of listings, because other processes and hosts also write there.
    path: Any = UPath(str(name), use_listings_cache=False)
    return path  # type: ignore[no-any-return]  # has all methods of Path that are used here


def is_remote(path: Path) -> bool:
    """Return whether a path from :func:`at` is on a remote file system."""
    return not isinstance(path, Path)


def changed_at(path: Path) -> float:
    """Return a file's modification time in seconds since the epoch; 0 if there is no file."""
    try:
        return path.stat().st_mtime if path.is_file() else 0.0
    except OSError:
        return 0.0


def exists(path: Path) -> bool:
    """Return whether a file exists.

    Raises:
        UnreachableError: the remote file system does not answer, so it is not known.
    """
    if not is_remote(path):
        return path.is_file()
    remote: Any = path
    try:
        with _client_errors():
            remote.fs.info(remote.path)
    except FileNotFoundError:
        return False
    return True


def remove(path: Path) -> None:
    """Delete a file if it exists.

    Raises:
        OSError: it cannot be deleted.
    """
    if not is_remote(path):
        path.unlink(missing_ok=True)
        return
    remote: Any = path
    with contextlib.suppress(FileNotFoundError), _client_errors():
        remote.fs.rm_file(remote.path)


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Context manager: a local copy of a remote file, deleted at exit; a local file itself.

    Raises:
        FileNotFoundError: the remote file does not exist.
        UnreachableError: the remote file cannot be downloaded.
    """
    if not is_remote(path):
        yield path
        return
    remote: Any = path
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        with _client_errors():
            remote.fs.get_file(remote.path, str(copy))
        yield copy


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file atomically: write a temporary file, then move it to ``path``.

    Partial files that killed processes of this host left are deleted. For a remote path, the
    temporary file is local and then uploaded. An object store shows only complete uploads; other
    servers can show a partial file after an interrupted one.

    Args:
        path: the file to write; missing folders are created.
        write: writes the content to the path that it receives.

    Raises:
        OSError: the file cannot be written.
    """
    if is_remote(path):
        remote: Any = path
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, path.name)
            write(partial)
            with _client_errors():
                remote.parent.mkdir(parents=True, exist_ok=True)
                remote.fs.put_file(str(partial), remote.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_half_written(path)
    partial = path.with_name(f"{_partial_prefix(path)}{os.getpid()}{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON object atomically.

    Raises:
        OSError: the file cannot be written.
        ValueError: a number is not finite.
    """
    text = json.dumps(record, allow_nan=False)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def clear_half_written(path: Path) -> None:
    """Delete the partial files that dead processes of this host left while writing a file."""
    if is_remote(path):
        return
    prefix = _partial_prefix(path)
    for partial in path.parent.glob(f"{prefix}*{path.suffix}"):
        pid = partial.name.removeprefix(prefix).removesuffix(path.suffix)
        if pid.isdecimal() and not is_running(int(pid)):
            partial.unlink(missing_ok=True)


def _partial_prefix(path: Path) -> str:
    return f".{path.stem}.{socket.gethostname()}-"


@contextmanager
def _client_errors() -> Iterator[None]:
    """Convert errors of a remote file system's client to :class:`UnreachableError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UnreachableError(f"{type(error).__name__}: {error}".split("\n")[0]) from error
