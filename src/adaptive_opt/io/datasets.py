"""Datasets that are written whole or not at all, and tensors without pickles.

A file is written beside its destination and renamed over it, so a crash leaves the old file
or the new one, never half of one. What later runs build on has a checksum. Kedro's own
datasets do the formats and the previews.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets.json import JSONDataset as KedroJSONDataset
from kedro_datasets.matplotlib import MatplotlibDataset as KedroMatplotlibDataset
from kedro_datasets.pandas import CSVDataset as KedroCSVDataset
from kedro_datasets.pandas import ParquetDataset as KedroParquetDataset
from kedro_datasets.plotly import JSONDataset as KedroPlotlyDataset

from adaptive_opt.files import UnreachableError, at, exists, on_disk, write_whole

from .checksums import (
    KEY,
    MISMATCH,
    check_parquet,
    seal_parquet,
    sealed,
    tensors_checksum,
    unsealed,
)
from .private_interfaces import HTMLPreview, JSONPreview, TablePreview

__all__ = [
    "CSVDataset",
    "JSONDataset",
    "MatplotlibDataset",
    "ParquetDataset",
    "PlotlyDataset",
    "RecordDataset",
    "RecordsDataset",
    "TensorsDataset",
    "TextDataset",
]


class _Whole:
    """Mixin for Kedro's file datasets: write whole or not at all, wherever the file is.

    Kedro's dataset sees a file of this machine alone, which is fetched from elsewhere before, or
    taken there after. So no file system is used in a process that was forked from its own.
    """

    _fs: Any
    _filepath: PurePosixPath
    _protocol: str
    _version: Any

    def __init__(self, *, filepath: str, **settings: Any) -> None:
        parent: Any = super()
        parent.__init__(filepath=filepath, **settings)
        self._name = str(filepath)  # of which Kedro keeps no host

    def save(self, data: Any) -> None:
        parent: Any = super()
        if self._version is not None:
            parent.save(data)
            return
        place = self._place()

        def write(partial: Path) -> None:
            try:
                with self._at(partial):
                    parent.save(data)
                self._finish(partial)
            except DatasetError as error:
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from error
                named = str(error).replace(partial.as_posix(), str(place))
                raise DatasetError(named) from error

        _write(place, write)

    def load(self) -> Any:
        """What is in the file.

        Raises:
            DatasetError: it is not there, or damaged.
        """
        parent: Any = super()
        if self._version is not None:
            return parent.load()
        place = self._place()
        try:
            with on_disk(place) as path:
                self._check(path)
                with self._at(path):
                    return parent.load()
        except Exception as error:  # each format raises its own
            cause = error.__cause__ if isinstance(error, DatasetError) else error
            raise _fault(place, cause or error) from error

    def _exists(self) -> bool:
        parent: Any = super()
        return parent._exists() if self._version is not None else exists(self._place())

    def _place(self) -> Path:
        return at(self._name)

    @contextmanager
    def _at(self, path: Path) -> Iterator[None]:
        """Let Kedro's dataset see another file in the place of its own."""
        kept = self._filepath, self._protocol, self._fs
        self._filepath, self._protocol = PurePosixPath(path.as_posix()), "file"
        self._fs = LocalFileSystem()
        try:
            yield
        finally:
            self._filepath, self._protocol, self._fs = kept

    def _finish(self, partial: Path) -> None:
        """Do what is to be done to a file before it is there."""

    def _check(self, path: Path) -> None:
        """Raise ValueError at a file whose checksum is not its own."""


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """As :func:`adaptive_opt.files.write_whole`; what the disk says against it is a sentence."""
    try:
        write_whole(path, write)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(
            f"{path} cannot be written ({reason}); make room there, or the folder writable, "
            "or name another folder in ADAPTIVE_OPT_FOLDER, and run again"
        ) from error


class UnreachableDatasetError(DatasetError):
    """A file may be there, but cannot be fetched now."""


def _fault(path: Any, error: BaseException) -> DatasetError:
    if isinstance(error, UnreachableError):
        return UnreachableDatasetError(f"{path} cannot be reached ({error}); run again when it can")
    if isinstance(error, FileNotFoundError):
        return DatasetError(f"{path} does not exist")
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return DatasetError(f"{path} is damaged ({reason}); delete it and run again")


class CSVDataset(_Whole, KedroCSVDataset):
    """A table for people."""


class ParquetDataset(_Whole, KedroParquetDataset):
    """A table for programs, with a checksum."""

    def _finish(self, partial: Path) -> None:
        seal_parquet(partial)

    def _check(self, path: Path) -> None:
        check_parquet(path.read_bytes())


class JSONDataset(_Whole, KedroJSONDataset):
    """A small record."""


class RecordDataset(JSONDataset):
    """A small record that later runs build on, with a checksum."""

    def save(self, data: dict[str, Any]) -> None:
        """Write it, and the checksum as its last key."""
        super().save(sealed(data))

    def load(self) -> dict[str, Any]:
        """The record without its checksum.

        Raises:
            DatasetError: it is not there, or damaged.
        """
        record = super().load()
        try:
            return unsealed(record)
        except ValueError as error:
            raise _fault(self._place(), error) from error


class PlotlyDataset(_Whole, KedroPlotlyDataset):
    """An interactive figure."""


class MatplotlibDataset(_Whole, KedroMatplotlibDataset):
    """A figure as PNG."""


class _FileDataset(AbstractDataset[Any, Any]):
    """What the two formats below share."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._name = str(filepath)
        self.metadata = metadata

    @property
    def _filepath(self) -> Path:
        return at(self._name)  # made anew, as a process that was forked needs its own

    def _exists(self) -> bool:
        return exists(self._filepath)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class TensorsDataset(_FileDataset):
    """A flat dict of tensors as safetensors: data only, no code, whoever wrote the file."""

    def load(self) -> dict[str, Any]:
        """The tensors, on the CPU."""
        from safetensors import safe_open

        try:
            with on_disk(self._filepath) as path, safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                known = file.metadata() or {}
            if known.get(KEY) != tensors_checksum(tensors):
                raise ValueError(MISMATCH)
        except Exception as error:  # safetensors, torch and the disk raise their own
            raise _fault(self._filepath, error) from error
        return tensors

    def save(self, data: dict[str, Any]) -> None:
        """Write the tensors, from whatever device."""
        from safetensors.torch import save

        tensors = {name: t.detach().cpu().contiguous() for name, t in data.items()}
        content = save(tensors, metadata={KEY: tensors_checksum(tensors)})
        _write(self._filepath, lambda partial: partial.write_bytes(content))

    def preview(self) -> TablePreview:
        """Name, kind and shape of each tensor, for kedro-viz."""
        from safetensors import safe_open

        with on_disk(self._filepath) as path, safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            rows = [[n, p.get_dtype(), str(p.get_shape())] for n, p in parts.items()]
        columns = ["tensor", "kind", "shape"]
        return TablePreview({"index": [*range(len(rows))], "columns": columns, "data": rows})


class TextDataset(_FileDataset):
    """A text file, UTF-8."""

    def load(self) -> str:
        """The text."""
        try:
            with on_disk(self._filepath) as path:
                return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _fault(self._filepath, error) from error

    def save(self, data: str) -> None:
        """Write the text."""
        _write(self._filepath, lambda partial: partial.write_text(data, encoding="utf-8"))

    def preview(self) -> HTMLPreview:
        """Markdown as HTML, and of a page what it has without its scripts, for kedro-viz."""
        from markdown_it import MarkdownIt

        text = self.load()
        if self._filepath.suffix == ".md":
            text = MarkdownIt("commonmark").enable("table").render(text)
        for tag in ("head", "script", "style"):
            text = re.sub(rf"<{tag}\b.*?</{tag}>", "", text, flags=re.DOTALL)
        # kedro-viz takes the end of a line for a paragraph's.
        return HTMLPreview(" ".join(text.split()))


def _record(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _fault(file, error) from error


class RecordsDataset(AbstractDataset[Any, dict[str, Any]]):
    """The JSON files of a folder, to be read; none where there are none.

    Args:
        folder: where they are.
        pattern: of their names.
        metadata: for Kedro's plugins.
    """

    def __init__(
        self, *, folder: str, pattern: str = "*.json", metadata: dict[str, Any] | None = None
    ) -> None:
        self._folder, self._pattern = Path(folder), pattern
        self.metadata = metadata

    def load(self) -> dict[str, Any]:
        """What is in each, by its name without the ending, in alphabetical order."""
        return {file.stem: _record(file) for file in sorted(self._folder.glob(self._pattern))}

    def preview(self) -> JSONPreview:
        """All of it, for kedro-viz."""
        return JSONPreview(json.dumps(self.load()))

    def save(self, data: Any) -> None:
        """Refused: they are made elsewhere."""
        del data
        raise DatasetError(f"the records in {self._folder} are not made here")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"folder": str(self._folder), "pattern": self._pattern}
