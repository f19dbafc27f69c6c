"""Files on a disk, or wherever fsspec reaches: found by name, and written whole or not at all."""

from __future__ import annotations

import contextlib
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
    "remove",
    "write_whole",
]

CHECKOUT = Path(__file__).parents[2]
"""Folder of a checkout; of an installed wheel some folder of Python's."""


def _project() -> Path:
    if named := os.environ.get("ADAPTIVE_OPT_FOLDER"):
        return Path(named).expanduser().absolute()
    return CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()


PROJECT = _project()
"""Folder of all data and records, where relative paths start.

It is ``ADAPTIVE_OPT_FOLDER`` if that is set, else the checkout, and for a wheel the working
directory.
"""

LOCAL = ("file", "local")
"""Protocols of URLs that are files of this machine."""


class UnreachableError(OSError):
    """Another file system did not answer, or refused: what is there is not known."""


def at(name: str | Path) -> Path:
    """The path of a name, or of a URL such as ``s3://bucket/folder``; it need not exist.

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

    # Other processes and hosts write there too: what was listed before says nothing.
    made: Any = UPath(str(name), use_listings_cache=False)
    return made  # type: ignore[no-any-return]  # all that is asked of it here it can do


def is_remote(path: Path) -> bool:
    """Whether a path of :func:`at` is on another file system than this machine's."""
    return not isinstance(path, Path)


def changed_at(path: Path) -> float:
    """When a file was written, in seconds; 0 if there is none."""
    try:
        return path.stat().st_mtime if path.is_file() else 0.0
    except OSError:
        return 0.0


def exists(path: Path) -> bool:
    """Whether there is a file; one that cannot be asked for is not taken for absent.

    Raises:
        UnreachableError: nobody knows.
    """
    if not is_remote(path):
        return path.is_file()
    remote: Any = path
    try:
        with _reaching():
            remote.fs.info(remote.path)
    except FileNotFoundError:
        return False
    return True


def remove(path: Path) -> None:
    """Delete a file, if there is one.

    Raises:
        OSError: it cannot be deleted.
    """
    if not is_remote(path):
        path.unlink(missing_ok=True)
        return
    remote: Any = path
    with contextlib.suppress(FileNotFoundError), _reaching():
        remote.fs.rm_file(remote.path)


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """A file for programs that read from a disk alone: itself, or a copy that is gone afterwards.

    Raises:
        FileNotFoundError: it does not exist.
        UnreachableError: it cannot be fetched.
    """
    if not is_remote(path):
        yield path
        return
    remote: Any = path
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        with _reaching():
            remote.fs.get_file(remote.path, str(copy))
        yield copy


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a file beside ``path``, then put it in its place.

    What processes of this host that were killed left half-written of the same file is deleted. On
    another file system the place beside it is a temporary folder here; an object store shows a
    file when all of it has arrived, other servers may show a part of one that was broken off.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(path):
        remote: Any = path
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder, path.name)
            write(partial)
            with _reaching():
                remote.parent.mkdir(parents=True, exist_ok=True)
                remote.fs.put_file(str(partial), remote.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_half_written(path)
    partial = path.with_name(f"{_mark(path)}{os.getpid()}{path.suffix}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def clear_half_written(path: Path) -> None:
    """Delete what processes of this host that are dead were writing of a file."""
    if is_remote(path):
        return
    mark = _mark(path)
    for left in path.parent.glob(f"{mark}*{path.suffix}"):
        pid = left.name.removeprefix(mark).removesuffix(path.suffix)
        if pid.isdecimal() and not is_running(int(pid)):
            left.unlink(missing_ok=True)


def _mark(path: Path) -> str:
    return f".{path.stem}.{socket.gethostname()}-"


@contextmanager
def _reaching() -> Iterator[None]:
    """What the client of a store raises, for those who expect what a disk raises."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UnreachableError(f"{type(error).__name__}: {error}".split("\n")[0]) from error
