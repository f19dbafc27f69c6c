"""Checkpoints: the state of a run on disk, to resume after an interruption."""

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
    """One file with the latest state of a run, kept until the next file is complete.

    A damaged file, or one of another configuration, is not used: the run starts from iteration 0
    and the log says why. A full disk does not stop a run: the old checkpoint stays, and a later
    save may succeed.

    Args:
        path: of the file, see :func:`adaptive_opt.files.at`; None disables checkpoints.
        digest: of the configuration, see ``adaptive_opt.parameters.configuration_digest``.
        every: seconds between saves.
    """

    def __init__(self, path: Path | None, digest: str = "", every: float = 60.0) -> None:
        self.path, self.digest, self.every = path, digest, every
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.path is not None and time.monotonic() - self._last >= self.every

    def save(self, state: dict[str, Any]) -> None:
        """Write a state of tensors, numbers, strings, and lists and dicts of them."""
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
            logger.warning(
                "checkpoint %s was not written (%s); training continues", self.path, error
            )

    def load(self) -> dict[str, Any] | None:
        """Load the latest state; None if there is none to resume from.

        Raises:
            StudyError: the storage cannot be reached.
        """
        if self.path is None:
            return None
        try:
            if not exists(self.path):
                return None
            with on_disk(self.path) as file:
                # torch.load does not verify the checksums of the archive.
                with zipfile.ZipFile(file) as archive:
                    if (part := archive.testzip()) is not None:
                        raise ValueError(f"{part} does not match its checksum")
                # weights_only: a file from any writer yields tensors and plain values only.
                saved = torch.load(file, map_location="cpu", weights_only=True)
            digest, state = saved["digest"], saved["state"]
        except UnreachableError as error:  # starting over would overwrite a good file
            raise StudyError(
                f"checkpoint {self.path} cannot be reached ({error}); run again when it can"
            ) from error
        except Exception as error:
            # zipfile, pickle and torch raise many types on a damaged file.
            logger.warning(
                "checkpoint %s is damaged (%s); the run starts from iteration 0",
                self.path, str(error).split("\n")[0],
            )  # fmt: skip
            return None
        if digest != self.digest:
            logger.info(
                "checkpoint %s is of another configuration; the run starts from iteration 0",
                self.path,
            )
            return None
        found: dict[str, Any] = state
        return found

    def remove(self) -> None:
        """Delete the file of a finished run."""
        if self.path is not None:
            try:
                remove(self.path)
            except OSError as error:  # an obsolete checkpoint is harmless
                logger.warning("checkpoint %s was not deleted (%s)", self.path, error)
            clear_half_written(self.path)
