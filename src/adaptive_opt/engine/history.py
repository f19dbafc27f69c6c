"""History of a run, recorded without waiting for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Recorder"]

Array = NDArray[np.float32]


class Recorder:
    """Collects values per member on the device and moves them to the host in blocks.

    Args:
        members: size of the ensemble.
    """

    def __init__(self, members: int) -> None:
        self.members = members
        self._rows: dict[int, dict[str, Tensor | float]] = {}
        self._columns: dict[str, dict[int, Array]] = {}

    def add(self, iteration: int, **values: Tensor | float) -> None:
        """Record values of an iteration: ``[members]`` tensors, or one number for all."""
        self._rows.setdefault(iteration, {}).update(values)

    def flush(self) -> dict[int, dict[str, Array]]:
        """Move new values to the host, one transfer per column, and return them."""
        by_column: dict[str, list[tuple[int, Tensor | float]]] = {}
        for iteration, row in self._rows.items():
            for name, value in row.items():
                by_column.setdefault(name, []).append((iteration, value))
        for name, entries in by_column.items():
            tensors = [v.expand(self.members) for _, v in entries if isinstance(v, Tensor)]
            devices = {t.device for t in tensors}
            if len(devices) > 1:  # some were restored from a checkpoint
                tensors = [t.cpu() for t in tensors]
            moved = iter(torch.stack(tensors).detach().cpu().numpy() if tensors else ())
            column = self._columns.setdefault(name, {})
            for iteration, value in entries:
                column[iteration] = (
                    next(moved) if isinstance(value, Tensor) else np.full(self.members, value)
                )
        moved_rows: dict[int, dict[str, Array]] = {
            iteration: {name: self._columns[name][iteration] for name in row}
            for iteration, row in self._rows.items()
        }
        self._rows.clear()
        return moved_rows

    def state_dict(self) -> dict[str, Any]:
        """All recorded values, as tensors and numbers."""
        columns = {
            name: {
                "iterations": torch.tensor(list(column), dtype=torch.int64),
                "values": torch.from_numpy(np.stack(list(column.values()))),
            }
            for name, column in self._columns.items()
        }
        rows = {
            iteration: {k: v.cpu() if isinstance(v, Tensor) else v for k, v in row.items()}
            for iteration, row in self._rows.items()
        }
        return {"columns": columns, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._rows = state["rows"]
        self._columns = {
            name: dict(zip(c["iterations"].tolist(), c["values"].numpy(), strict=True))
            for name, c in state["columns"].items()
        }

    def blank(self, member: int, start: int) -> None:
        """Set a frozen member's values to NaN, from iteration ``start`` on."""
        for name, column in self._columns.items():
            if name in ("lr", "gradient_equivalents", "device_seconds"):
                continue
            for iteration, row in column.items():
                if iteration >= start:
                    column[iteration] = row.copy()
                    column[iteration][member] = np.nan

    def to_frame(self) -> pd.DataFrame:
        """Long format: one row per (member, iteration); float32 except ``device_seconds``."""
        iterations = sorted({i for column in self._columns.values() for i in column})
        missing = np.full(self.members, np.nan)
        frame = pd.DataFrame(
            {
                "member": np.repeat(np.arange(self.members), len(iterations)),
                "iteration": np.tile(np.asarray(iterations, dtype=np.int64), self.members),
            }
        )
        for name, column in self._columns.items():
            rows = np.stack([column.get(i, missing) for i in iterations])
            dtype = np.float64 if name == "device_seconds" else np.float32
            frame[name] = rows.T.reshape(-1).astype(dtype)
        return frame
