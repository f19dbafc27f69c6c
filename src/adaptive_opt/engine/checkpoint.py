"""The state of a run on disk, to go on after a crash."""

from __future__ import annotations

import logging
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from adaptive_opt.errors import StudyError
from adaptive_opt.files import (
    UnreachableError,
    clear_half_written,
    exists,
    on_disk,
    remove,
    write_whole,
)

__all__ = ["Checkpoint"]

logger = logging.getLogger(__name__)


class Checkpoint:
    """One file with the newest state of a run, kept until the next is complete.

    A file that is damaged, or of another configuration, is not used: the run starts anew and
    the log says why. A disk that is full does not stop a run either: the old checkpoint is
    kept and a later save may succeed.

    Args:
        path: of the file, see :func:`adaptive_opt.files.at`; None: nothing is ever saved.
        digest: of the configuration, see ``adaptive_opt.parameters.configuration_digest``.
        every: seconds between two saves.
    """

    def __init__(self, path: Path | None, digest: str = "", every: float = 60.0) -> None:
        self.path, self.digest, self.every = path, digest, every
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and time.monotonic() - self._last >= self.every

    def save(self, state: dict[str, Any]) -> None:
        """Write the state: tensors, numbers, text, and lists and dicts of them."""
        if self.path is None:
            return
        self._last = time.monotonic()

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                torch.save({"digest": self.digest, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())

        try:
            write_whole(self.path, write)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as the latter
            logger.warning("checkpoint %s was not written (%s); going on", self.path, error)

    def load(self) -> dict[str, Any] | None:
        """The state saved last, or None where there is none to go on from.

        Raises:
            StudyError: whether there is one cannot be found out.
        """
        if self.path is None:
            return None
        try:
            if not exists(self.path):
                return None
            with on_disk(self.path) as file:
                # torch does not look at the checksums that it writes.
                with zipfile.ZipFile(file) as archive:
                    if (part := archive.testzip()) is not None:
                        raise ValueError(f"{part} is not what its checksum says")
                # Only tensors and plain values are unpickled, whoever wrote the file.
                saved = torch.load(file, map_location="cpu", weights_only=True)
            digest, state = saved["digest"], saved["state"]
        except UnreachableError as error:  # what is there is good, and would be written over
            raise StudyError(
                f"checkpoint {self.path} cannot be reached ({error}); run again when it can"
            ) from error
        except Exception as error:
            # zipfile, pickle and torch raise what they like on a damaged file.
            logger.warning(
                "checkpoint %s is damaged (%s); the run starts anew",
                self.path, str(error).split("\n")[0],
            )  # fmt: skip
            return None
        if digest != self.digest:
            logger.info("checkpoint %s is of another configuration; the run starts anew", self.path)
            return None
        found: dict[str, Any] = state
        return found

    def remove(self) -> None:
        """Delete the file: its run is finished and saved."""
        if self.path is not None:
            try:
                remove(self.path)
            except OSError as error:  # of no use any more, and of no harm
                logger.warning("checkpoint %s was not deleted (%s)", self.path, error)
            clear_half_written(self.path)
