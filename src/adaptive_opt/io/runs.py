"""The folder of a run: its results, its checkpoint and the lock of the process that trains."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from kedro.io import DatasetError

from adaptive_opt.files import UnreachableError, at, exists, is_remote, remove

from .datasets import (
    ParquetDataset,
    ReadOnlyDataset,
    RecordDataset,
    TensorsDataset,
    UnreachableDatasetError,
    disk_error,
    load_error,
)

__all__ = ["RunFolder", "RunFolderDataset", "RunSummaryDataset"]

logger = logging.getLogger(__name__)

_LOCKS: dict[Path, FileLock] = {}
"""Locks that this process holds, by folder."""


class RunFolder:
    """Folder of a run's history, weights, snapshots, summary and checkpoint.

    The catalog saves the summary last, and :meth:`forget` deletes the old one before new results
    are saved. A summary therefore shows that the results beside it are complete and its own.

    Args:
        path: path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._holder = path / "training.holder"

    @property
    def checkpoint(self) -> Path:
        """File with the state of an unfinished run."""
        return self.path / "checkpoint.pt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for training; if another process trains here, log it and wait.

        The lock outlasts the block, because the catalog saves the results after it. Saving the
        summary (:class:`RunSummaryDataset`), an error or the end of the process releases it.
        Remote folders are not locked, because object stores have no locks.

        Raises:
            DatasetError: the folder cannot be written to.
        """
        try:
            if not is_remote(self.path) and self.path not in _LOCKS:
                self._lock()
            yield
        except BaseException:
            self.unlock()
            raise

    def _lock(self) -> None:
        lock = FileLock(self.path / "training.lock", thread_local=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.warning("%s: %s trains here; waiting until it ends", self.path, self.holder)
                lock.acquire()
            _LOCKS[self.path] = lock
            self._holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        except OSError as error:
            raise disk_error(self.path, "locked", error) from error

    def unlock(self) -> None:
        """Release the lock, if this process holds it."""
        if (lock := _LOCKS.pop(self.path, None)) is not None:
            self._holder.unlink(missing_ok=True)
            lock.release()

    @property
    def holder(self) -> str:
        """Pid and host of the process that trains here."""
        with suppress(OSError):
            return self._holder.read_text(encoding="utf-8")
        return "another process"

    def forget(self) -> None:
        """Delete the summary of the last run, before new results are saved.

        Raises:
            DatasetError: the summary cannot be deleted.
        """
        summary = self.path / "summary.json"
        try:
            remove(summary)
        except OSError as error:
            raise disk_error(summary, "deleted", error) from error

    def finished(
        self, digest: str, tensors: Sequence[str] = ("weights",), tables: Sequence[str] = ()
    ) -> tuple[Any, ...] | None:
        """Load the results of the finished run in this folder.

        Args:
            digest: digest of the wanted configuration.
            tensors: names of the tensor files.
            tables: names of the tables beside the history.

        Returns:
            History, tensors of each file, each table, summary. None if the folder has no finished
            run, a damaged one, or one of another configuration.

        Raises:
            DatasetError: the storage does not answer.
        """
        record = self.path / "summary.json"
        files: list[Any] = [ParquetDataset(filepath=str(self.path / "history.parquet"))]
        files += [TensorsDataset(filepath=str(self.path / f"{n}.safetensors")) for n in tensors]
        files += [ParquetDataset(filepath=str(self.path / f"{n}.parquet")) for n in tables]
        try:
            if not exists(record):
                return None
            summary = RecordDataset(filepath=str(record)).load()
            if summary.get("digest") != digest:
                return None
            return *(file.load() for file in files), summary
        except UnreachableDatasetError:
            raise
        except UnreachableError as error:
            raise load_error(record, error) from error
        except DatasetError as error:
            logger.warning("Training the run in %s again: %s", self.path, error)
            return None


class RunFolderDataset(ReadOnlyDataset):
    """Passes the folder of a run to its node; the results have datasets of their own.

    Args:
        filepath: path or URL of the folder, which may be missing.
        metadata: for Kedro's plugins.
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__({"filepath": filepath}, metadata)
        self._filepath = filepath

    def load(self) -> RunFolder:
        """Return the folder."""
        return RunFolder(at(self._filepath))


class RunSummaryDataset(RecordDataset):
    """Summary of a run; saving it ends the run."""

    def save(self, data: dict[str, Any]) -> None:
        """Save the summary, delete the checkpoint and release the lock."""
        from adaptive_opt.engine.checkpoint import Checkpoint

        super().save(data)
        folder = RunFolder(at(self._name).parent)
        Checkpoint(folder.checkpoint).remove()
        folder.unlock()
