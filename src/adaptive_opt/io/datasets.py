"""Kedro datasets of local and remote files, written atomically and read without running code.

A crash leaves the old file or the new one, because each file is renamed or uploaded when it is
complete. Files that later runs depend on contain a checksum, so that accidental damage is found.
Anyone who can write a file can also write its checksum. Formats and previews are Kedro's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from fsspec.implementations.local import LocalFileSystem
from kedro.io import AbstractDataset, DatasetError
from kedro_datasets.json import JSONDataset as KedroJSONDataset
from kedro_datasets.matplotlib import MatplotlibDataset as KedroMatplotlibDataset
from kedro_datasets.pandas import CSVDataset as KedroCSVDataset
from kedro_datasets.pandas import ParquetDataset as KedroParquetDataset
from kedro_datasets.plotly import JSONDataset as KedroPlotlyDataset
from kedro_datasets.text import TextDataset as KedroTextDataset

from adaptive_opt.errors import first_line
from adaptive_opt.files import UnreachableError, at, exists, on_disk, write_whole
from adaptive_opt.search.storage import Storage

from .private_interfaces import HTMLPreview, JSONPreview, TablePreview

__all__ = [
    "CSVDataset",
    "JSONDataset",
    "MatplotlibDataset",
    "ParquetDataset",
    "PlotlyDataset",
    "ReadOnlyDataset",
    "RecordDataset",
    "RecordsDataset",
    "StudyStorageDataset",
    "TensorsDataset",
    "TextDataset",
]

CHECKSUM = "checksum"
"""Key of the checksum in a record and in the metadata of a tensor file."""

DIGEST_SIZE = 32
"""Bytes of the checksum in a Parquet file."""

MISMATCH = "the content does not match the checksum"


class UnreachableDatasetError(DatasetError):
    """The storage does not answer, so a file may or may not exist."""


class _AtomicFile:
    """Mixin for a dataset of one file: atomic writes, and errors that name the file.

    The dataset itself only sees a local file: the partial file while saving, a local copy of a
    remote file while loading. A forked process therefore never uses its parent's file system.
    """

    def __init__(self, *, filepath: str, **settings: Any) -> None:
        if settings.get("version"):
            raise DatasetError(f"{filepath}: results have one version; remove `versioned: true`")
        parent: Any = super()
        parent.__init__(filepath=filepath, **settings)
        self._name = str(filepath)  # Kedro's attributes do not keep the host of a URL

    def save(self, data: Any) -> None:
        parent: Any = super()
        path = at(self._name)

        def write(partial: Path) -> None:
            try:
                with self._redirected(partial):
                    parent.save(data)
            except DatasetError as error:
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from error
                raise DatasetError(str(error).replace(partial.as_posix(), str(path))) from error

        try:
            write_whole(path, write)
        except OSError as error:
            raise disk_error(path, "written", error) from error

    def load(self) -> Any:
        """Read the file.

        Raises:
            UnreachableDatasetError: the storage does not answer.
            DatasetError: the file does not exist or is damaged.
        """
        parent: Any = super()
        path = at(self._name)
        try:
            with on_disk(path) as local, self._redirected(local):
                return parent.load()
        except Exception as error:  # each format raises its own
            cause = error.__cause__ if isinstance(error, DatasetError) else error
            raise load_error(path, cause or error) from error

    def _exists(self) -> bool:
        return exists(at(self._name))

    @contextmanager
    def _redirected(self, path: Path) -> Iterator[None]:
        """Let the dataset read and write another, local file."""
        local = {"_filepath": PurePosixPath(path.as_posix()), "_protocol": "file"}
        kept = {name: vars(self).get(name) for name in (*local, "_fs")}
        vars(self).update(local, _fs=LocalFileSystem())
        try:
            yield
        finally:
            vars(self).update(kept)


def disk_error(path: Path, done: str, error: OSError) -> DatasetError:
    """Return the error for a file that cannot be written, locked or deleted."""
    return DatasetError(
        f"{path} cannot be {done} ({error.strerror or error}); make room there or the folder "
        "writable, or name another folder in ADAPTIVE_OPT_FOLDER"
    )


def load_error(path: Path, error: BaseException) -> DatasetError:
    """Return the error for a file that cannot be loaded."""
    if isinstance(error, UnreachableError):
        return UnreachableDatasetError(f"{path} cannot be reached ({error}); run again when it can")
    if isinstance(error, FileNotFoundError):
        return DatasetError(f"{path} does not exist")
    return DatasetError(f"{path} is damaged ({first_line(error)}); delete it and run again")


class CSVDataset(_AtomicFile, KedroCSVDataset):
    """A table for people, as CSV."""


class JSONDataset(_AtomicFile, KedroJSONDataset):
    """A small record, as JSON."""


class PlotlyDataset(_AtomicFile, KedroPlotlyDataset):
    """An interactive figure, as Plotly's JSON."""


class MatplotlibDataset(_AtomicFile, KedroMatplotlibDataset):
    """A figure, as PNG."""


class _CheckedParquet(KedroParquetDataset):
    """Puts the checksum of all other bytes between a Parquet file's data and its footer.

    Readers find the data from the start of the file and the footer from its end.
    """

    def save(self, data: Any) -> None:
        super().save(data)
        file = Path(self._filepath)
        content = file.read_bytes()
        start = _footer_start(content)
        file.write_bytes(content[:start] + _checksum(content).digest() + content[start:])

    def load(self) -> Any:
        content = Path(self._filepath).read_bytes()
        end = _footer_start(content)
        start = end - DIGEST_SIZE
        if content[start:end] != _checksum(content[:start] + content[end:]).digest():
            raise ValueError(MISMATCH)
        return super().load()


def _footer_start(content: bytes) -> int:
    """Return where a Parquet file's footer begins; the file ends with its length and 4 letters."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def _checksum(content: bytes) -> Any:
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE)


class ParquetDataset(_AtomicFile, _CheckedParquet):
    """A table for programs, as Parquet with a checksum."""


def _record_checksum(record: Mapping[str, Any]) -> str:
    """Return a checksum that does not depend on the layout or the order of keys."""
    as_read = json.loads(json.dumps(record))
    return str(_checksum(json.dumps(as_read, sort_keys=True).encode()).hexdigest())


class RecordDataset(JSONDataset):
    """A small record that later runs depend on, as JSON with a checksum as its last key."""

    def save(self, data: dict[str, Any]) -> None:
        """Write the record and its checksum."""
        super().save({**data, CHECKSUM: _record_checksum(data)})

    def load(self) -> dict[str, Any]:
        """Read the record and compare it with its checksum.

        Raises:
            DatasetError: the file does not exist, is damaged, or cannot be reached.
        """
        record = super().load()
        found = record.pop(CHECKSUM, None) if isinstance(record, dict) else None
        if found is None or found != _record_checksum(record):
            raise load_error(at(self._name), ValueError(MISMATCH))
        return dict(record)


class _CheckedTensors(AbstractDataset[Any, Any]):
    """Stores the checksum of names, shapes, dtypes and values in the metadata of a file."""

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath, self.metadata = PurePosixPath(filepath), metadata

    def load(self) -> dict[str, Any]:
        from safetensors import safe_open

        with safe_open(self._filepath, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stored = (file.metadata() or {}).get(CHECKSUM)
        if stored != _tensors_checksum(tensors):
            raise ValueError(MISMATCH)
        return tensors

    def save(self, data: dict[str, Any]) -> None:
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in data.items()}
        content = save(tensors, metadata={CHECKSUM: _tensors_checksum(tensors)})
        Path(self._filepath).write_bytes(content)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


def _tensors_checksum(tensors: dict[str, Any]) -> str:
    from adaptive_opt.tasks.fingerprint import fingerprint

    return fingerprint(dict(sorted(tensors.items())))


class TensorsDataset(_AtomicFile, _CheckedTensors):
    """Tensors by name on the CPU, as safetensors with a checksum."""

    def preview(self) -> TablePreview:
        """Return name, dtype and shape of each tensor, for kedro-viz."""
        from safetensors import safe_open

        with on_disk(at(self._name)) as path, safe_open(path, framework="numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            rows = [[n, p.get_dtype(), str(p.get_shape())] for n, p in parts.items()]
        columns = ["tensor", "dtype", "shape"]
        return TablePreview({"index": [*range(len(rows))], "columns": columns, "data": rows})


class TextDataset(_AtomicFile, KedroTextDataset):
    """A text file in UTF-8."""

    DEFAULT_FS_ARGS: ClassVar[dict[str, Any]] = {
        "open_args_save": {"mode": "w", "encoding": "utf-8"},
        "open_args_load": {"mode": "r", "encoding": "utf-8"},
    }

    def preview(self) -> HTMLPreview:
        """Return Markdown as HTML, and HTML without its head and scripts, for kedro-viz."""
        from markdown_it import MarkdownIt

        text = self.load()
        if self._name.endswith(".md"):
            text = MarkdownIt("commonmark").enable("table").render(text)
        for tag in ("head", "script", "style"):
            text = re.sub(rf"<{tag}\b.*?</{tag}>", "", text, flags=re.DOTALL)
        # kedro-viz shows every line break as the end of a paragraph.
        return HTMLPreview(" ".join(text.split()))


class ReadOnlyDataset(AbstractDataset[Any, Any]):
    """Base of datasets that nodes only load; they always exist.

    Args:
        description: arguments that Kedro's log shows.
        metadata: for Kedro's plugins.
    """

    def __init__(self, description: dict[str, Any], metadata: dict[str, Any] | None) -> None:
        self._description, self.metadata = description, metadata

    def save(self, data: Any) -> None:
        """Raise DatasetError."""
        del data
        raise DatasetError(f"{self} is read-only; save to another dataset")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return self._description


class RecordsDataset(ReadOnlyDataset):
    """All JSON files of a folder.

    Args:
        folder: path of the folder; a missing folder counts as empty.
        pattern: glob pattern of the files' names.
        metadata: for Kedro's plugins.
    """

    def __init__(
        self, *, folder: str, pattern: str = "*.json", metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__({"folder": folder, "pattern": pattern}, metadata)
        self._folder, self._pattern = Path(folder), pattern

    def load(self) -> dict[str, Any]:
        """Return the content of each file by name without suffix, in alphabetical order."""
        files = sorted(self._folder.glob(self._pattern))
        return {file.stem: JSONDataset(filepath=str(file)).load() for file in files}

    def preview(self) -> JSONPreview:
        """Return all contents, for kedro-viz."""
        return JSONPreview(json.dumps(self.load()))


class StudyStorageDataset(ReadOnlyDataset):
    """The Optuna database of the searches: a SQLite file, or a server for many hosts.

    Args:
        url, credentials: see :meth:`.Storage.configured`; credentials
            are in ``conf/local/credentials.yml``.
        metadata: for Kedro's plugins.
    """

    def __init__(
        self,
        *,
        url: str,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._storage = Storage.configured(url, credentials)
        super().__init__({"storage": self._storage.name}, metadata)

    def load(self) -> Storage:
        """Return the database, not yet opened."""
        return self._storage
