"""Reading Rahimi–Recht functions that somebody else made.

Two formats: ``.npz`` with arrays ``A, X`` and optionally ``W1 … WL`` (the initial weights),
and the ``.pth`` of the original study, a pickled module of a class that does not exist
here. A pickle can run code, so it is never loaded as one: :class:`_TensorUnpickler` knows
how to build arrays and inert attribute holders, and refuses a file that asks for more.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_opt.errors import StudyError

__all__ = ["read_function_file"]

Array = NDArray[np.float64]

_DTYPES: dict[str, Any] = {"FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8")}
_INERT = {
    ("models.RahimiRechtFunc", "RahimiRechtFuncModule"),
    ("torch.nn.modules.container", "Sequential"),
    ("torch.nn.modules.linear", "Linear"),
}
_LIMIT = 256 * 2**20


def read_function_file(path: str | Path) -> tuple[Array, Array, list[Array]]:
    """``(A, X, [W1, …, WL])`` of a function file; the list is empty if it has no weights.

    Args:
        path: an ``.npz`` or ``.pth`` file.

    Raises:
        StudyError: the file is missing, damaged, of another kind, would run code, or its
            arrays do not fit together.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".pth": _read_pth}
    if path.suffix not in readers:
        raise StudyError(
            f"function file {path}: expected .npz or .pth, got {path.suffix or 'none'!r}"
        )
    if not path.is_file():
        raise StudyError(
            f"function file {path} does not exist; put it there, or set "
            "rr_synthesis.<task>.source to 'singular_values' or 'row_scaled'"
        )
    try:
        arrays = readers[path.suffix](path)
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(
            f"function file {path} is damaged or not a {path.suffix} file: {error}"
        ) from error
    return _checked(path, arrays)


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_pth(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _LIMIT:
            raise StudyError(f"function file {path} unpacks to more than {_LIMIT >> 20} MiB")
        names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(names) != 1:
            raise StudyError(f"function file {path} is not a torch archive")
        root = names[0].removesuffix("data.pkl")
        module = _TensorUnpickler(path, archive, root).load()
    attributes = vars(module)
    layers = vars(attributes["_modules"]["layers"])["_modules"].values()
    arrays = {"A": attributes["Atrue"], "X": attributes["X"]}
    for i, layer in enumerate(layers, start=1):
        arrays[f"W{i}"] = vars(layer)["_parameters"]["weight"]
    return arrays


class _Inert:
    """Stands in for an instance of an unknown class: holds attributes, does nothing."""


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors (as arrays), ordered dicts, sets and :class:`_Inert`, and nothing else."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._path, self._archive, self._root = path, archive, root

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("__builtin__", "set"): set,
            ("builtins", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            **dict.fromkeys(_INERT, _Inert),
        }
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) not in allowed:
            raise StudyError(
                f"function file {self._path} asks for {module}.{name}, which may run code; "
                "it is refused"
            )
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Array:
        kind, storage, key = pid[0], str(pid[1]), str(pid[2])
        if kind != "storage" or not key.isalnum():
            raise StudyError(f"function file {self._path} has a storage of an unknown kind")
        flat = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), dtype=_DTYPES[storage])
        return np.asarray(flat, dtype=np.float64)


def _rebuild_tensor(storage: Array, offset: int, size: Any, stride: Any, *_: Any) -> Array:
    if math.prod(size) > storage.size:
        raise ValueError(f"a tensor of {math.prod(size)} numbers from a storage of {storage.size}")
    index = np.full(size, offset, dtype=np.int64)
    for axis, (n, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[axis] = n
        index += (np.arange(n) * step).reshape(shape)
    return np.asarray(storage[index])


def _checked(path: Path, arrays: dict[str, Any]) -> tuple[Array, Array, list[Array]]:
    for name in ("A", "X"):
        if name not in arrays:
            raise StudyError(f"function file {path} has no array {name}")
    weights: list[Any] = []
    while f"W{len(weights) + 1}" in arrays:
        weights.append(arrays[f"W{len(weights) + 1}"])
    try:
        a, x, *weights = (
            np.asarray(w, dtype=np.float64) for w in (arrays["A"], arrays["X"], *weights)
        )
    except (TypeError, ValueError) as error:
        raise StudyError(f"function file {path} holds something else than numbers") from error
    for name, array in {"A": a, "X": x, **{f"W{i + 1}": w for i, w in enumerate(weights)}}.items():
        if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
            raise StudyError(f"function file {path}: {name} is not a finite, non-empty matrix")
    dims = [x.shape[1], *(w.shape[0] for w in weights)]
    chained = all(w.shape[1] == d for w, d in zip(weights, dims, strict=False))
    if a.shape[1] != x.shape[1] or not chained or (weights and dims[-1] != a.shape[0]):
        raise StudyError(f"function file {path}: the shapes of A, X and the weights do not fit")
    return a, x, weights
