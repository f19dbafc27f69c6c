"""The folder of a run: what it left, or how far it got."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from adaptive_opt.files import at

from .datasets import ParquetDataset, RecordDataset, TensorsDataset

__all__ = ["RunFolder", "RunFolderDataset"]

logger = logging.getLogger(__name__)


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

    def forget(self) -> None:
        """No finished run is here any more; to be called before another is written."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def finished(
        self, digest: str, tensors: Sequence[str] = ("weights",)
    ) -> tuple[Any, ...] | None:
        """What the run left, if it is of this configuration and undamaged.

        Args:
            digest: of the configuration.
            tensors: names of the files of tensors.

        Returns:
            History, tensors of each file, summary.
        """
        try:
            record = self.path / "summary.json"
            if not record.exists():
                return None
            summary: dict[str, Any] = RecordDataset(filepath=str(record)).load()
            if summary.get("digest") != digest:
                return None
            history = ParquetDataset(filepath=str(self.path / "history.parquet")).load()
            files = [str(self.path / f"{name}.safetensors") for name in tensors]
            loaded = [TensorsDataset(filepath=file).load() for file in files]
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
