"""The folder of a run: its results, its checkpoint and the lock of the process that trains."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from kedro.io import AbstractDataset, DatasetError

from adaptive_opt.files import UnreachableError, at, exists, is_remote, remove

from .datasets import ParquetDataset, RecordDataset, TensorsDataset, UnreachableDatasetError

__all__ = ["RunFolder", "RunFolderDataset", "RunSummaryDataset"]

logger = logging.getLogger(__name__)

_LOCKS: dict[Path, FileLock] = {}
"""Locks that this process holds, by folder."""


class RunFolder:
    """Where a run's history, weights, snapshots, summary and checkpoint are.

    The catalog writes the summary last, and :meth:`forget` takes the old one away before new
    results are written, so a summary says that the run beside it is complete and its own.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """The file of the state of a run that is not finished."""
        return self.path / "checkpoint.pt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Train in this folder alone: another process waits, and logs who holds the lock.

        The lock outlasts the block, as the catalog saves the results after it. Saving the summary
        (:class:`RunSummaryDataset`), an error or the end of the process releases it. Object
        stores have no locks.

        Raises:
            DatasetError: the folder cannot be written to.
        """
        if not is_remote(self.path) and self.path not in _LOCKS:
            self._lock()
        try:
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
            self.unlock()
            raise DatasetError(
                f"{self.path} cannot be locked ({error.strerror or error}); make the folder "
                "writable, or name another one in ADAPTIVE_OPT_FOLDER"
            ) from error

    def unlock(self) -> None:
        """Release the lock, if this process holds it."""
        if (lock := _LOCKS.pop(self.path, None)) is not None:
            self._holder.unlink(missing_ok=True)
            lock.release()

    @property
    def _holder(self) -> Path:
        return self.path / "training.holder"

    @property
    def holder(self) -> str:
        """The process that trains here."""
        try:
            return self._holder.read_text(encoding="utf-8")
        except OSError:
            return "another process"

    def forget(self) -> None:
        """No finished run is here any more; to be called before another is written.

        Raises:
            DatasetError: the old summary cannot be taken away.
        """
        try:
            remove(self.path / "summary.json")
        except OSError as error:
            raise DatasetError(
                f"{self.path}/summary.json cannot be deleted ({error.strerror or error}); make the "
                "folder writable, or run again when it can be reached"
            ) from error

    def finished(
        self, digest: str, tensors: Sequence[str] = ("weights",), tables: Sequence[str] = ()
    ) -> tuple[Any, ...] | None:
        """Load the results of the finished run in this folder.

        Args:
            digest: digest of the configuration that is wanted.
            tensors: names of the files of tensors.
            tables: names of the tables beside the history.

        Returns:
            History, tensors of each file, each table, summary. None if there is no finished run, or
            one of another configuration, or a damaged one.

        Raises:
            DatasetError: the storage cannot be reached.
        """
        record = self.path / "summary.json"
        try:
            if not exists(record):
                return None
            summary: dict[str, Any] = RecordDataset(filepath=str(record)).load()
            if summary.get("digest") != digest:
                return None
            history = ParquetDataset(filepath=str(self.path / "history.parquet")).load()
            files = [str(self.path / f"{name}.safetensors") for name in tensors]
            loaded = [TensorsDataset(filepath=file).load() for file in files]
            parquet = [str(self.path / f"{name}.parquet") for name in tables]
            loaded += [ParquetDataset(filepath=file).load() for file in parquet]
        except UnreachableDatasetError:
            raise
        except UnreachableError as error:
            raise UnreachableDatasetError(
                f"{record} cannot be reached ({error}); run again when it can"
            ) from error
        except DatasetError as error:
            logger.warning("the run in %s is made again: %s", self.path, error)
            return None
        return history, *loaded, summary


class RunFolderDataset(AbstractDataset[Any, RunFolder]):
    """Hands a run's folder to the node that makes the run; nothing is saved here."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = filepath
        self.metadata = metadata

    def load(self) -> RunFolder:
        """The folder, which need not exist."""
        return RunFolder(at(self._filepath))

    def save(self, data: Any) -> None:
        """Refused: the parts have datasets of their own."""
        del data
        raise DatasetError("a run's folder is not saved as a whole")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath}


class RunSummaryDataset(RecordDataset):
    """The summary of a run. It is saved last: the checkpoint and the lock are not needed after."""

    def save(self, data: dict[str, Any]) -> None:
        """Write the summary, delete the checkpoint, release the lock."""
        from adaptive_opt.engine.checkpoint import Checkpoint

        super().save(data)
        folder = RunFolder(self._place().parent)
        Checkpoint(folder.checkpoint).remove()
        folder.unlock()
