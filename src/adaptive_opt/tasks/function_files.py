"""Read Rahimi–Recht functions from files.

Two formats: ``.npz`` with arrays ``A``, ``X`` and optional initial weights ``W1 … WL``, and the
``.pth`` of the original study, a pickled module whose class does not exist here. Unpickling can
run code, so ``pickle`` never loads the file. :class:`_TensorReader` interprets only the
instructions that build arrays and attribute holders, and refuses all others.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_opt.errors import StudyError

__all__ = ["read_function_file"]

Array = NDArray[np.float64]

_DTYPES: dict[str, Any] = {"FloatStorage": np.dtype("<f4"), "DoubleStorage": np.dtype("<f8")}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MODULES = {
    ("models.RahimiRechtFunc", "RahimiRechtFuncModule"),
    ("torch.nn.modules.container", "Sequential"),
    ("torch.nn.modules.linear", "Linear"),
}
_UNPACKED_LIMIT = 64 * 2**20
_PICKLE_LIMIT = 64 * 2**10


def read_function_file(path: str | Path) -> tuple[Array, Array, list[Array]]:
    """Read ``(A, X, [W1, …, WL])`` from a file; the list is empty if it has no weights.

    Args:
        path: an ``.npz`` or ``.pth`` file.

    Returns:
        float64 arrays: A ``[y_dim, x_dim]``, X ``[samples, x_dim]``, W_i ``[d_out, d_in]``.

    Raises:
        StudyError: the file is missing or damaged, has another format, would run code, or its
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
    return _validate(path, arrays)


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        _check_size(path, archive)
    with np.load(path, allow_pickle=False) as arrays:
        names = [n for n in arrays.files if n in ("A", "X") or n.startswith("W")]
        return {name: arrays[name] for name in names}


def _check_size(path: Path, archive: zipfile.ZipFile) -> None:
    if sum(entry.file_size for entry in archive.infolist()) > _UNPACKED_LIMIT:
        raise StudyError(f"function file {path} unpacks to more than {_UNPACKED_LIMIT >> 20} MiB")


def _read_pth(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        _check_size(path, archive)
        names = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        if len(names) != 1:
            raise StudyError(f"function file {path} is not a torch archive")
        root = names[0].removesuffix("data.pkl")
        if archive.getinfo(names[0]).file_size > _PICKLE_LIMIT:
            raise ValueError(f"its pickle is longer than {_PICKLE_LIMIT} bytes")
        attributes = _TensorReader(path, archive, root).load().state
    layers = attributes["_modules"]["layers"].state["_modules"].values()
    arrays = {"A": attributes["Atrue"], "X": attributes["X"]}
    for i, layer in enumerate(layers, start=1):
        arrays[f"W{i}"] = layer.state["_parameters"]["weight"]
    return arrays


class _Module:
    """Placeholder for an instance of an unavailable class; holds its state only."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}


class _TensorReader:
    """Interpreter of the few pickle instructions that saved modules consist of.

    It imports nothing and calls nothing from the file. A fixed table maps names to functions
    that build arrays, dicts, sets and :class:`_Module`.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, root: str) -> None:
        self._path, self._archive, self._root = path, archive, root
        self._storages: dict[str, Array] = {}
        self._total_numbers = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Build the object that the file describes."""
        for opcode, argument, _ in pickletools.genops(self._archive.read(f"{self._root}data.pkl")):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._execute(opcode.name, argument)
        raise ValueError("its pickle has no STOP instruction")

    def _execute(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in ("BININT", "BININT1", "BININT2", "BINUNICODE", "BINFLOAT"):
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TUPLES:
            self._push_tuple(len(stack) - _TUPLES[name])
        elif name == "TUPLE":
            self._push_tuple(self._marks.pop())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            stack.append(self._resolve_name(*argument.split(" ")))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, call = stack.pop(), stack.pop()
            stack.append(call(*arguments))
        elif name == "BINPERSID":
            stack.append(self._read_storage(stack.pop()))
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(len(stack) - 2 if name == "SETITEM" else self._marks.pop())
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], _Module):
                raise ValueError("its pickle sets the state of an object without state")
            stack[-1].state = dict(state)
        elif name != "PROTO":
            raise StudyError(f"function file {self._path} is refused: saved modules do not use "
                             f"the pickle instruction {name}")  # fmt: skip

    def _push_tuple(self, start: int) -> None:
        items = tuple(self._stack[start:])
        self._stack[start:] = [items]

    def _set_items(self, start: int) -> None:
        items = self._stack[start:]
        del self._stack[start:]
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or not isinstance(target, dict):
                raise ValueError("a dict key is not a string")
            target[key] = value

    def _resolve_name(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) in _MODULES:
            return _Module
        if module == "torch" and name.endswith("Storage"):
            return lambda: name
        table: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): dict,
            ("__builtin__", "set"): set,
            ("builtins", "set"): set,
            ("torch._utils", "_rebuild_tensor_v2"): self._build_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if (module, name) not in table:
            raise StudyError(
                f"function file {self._path} is refused: it loads {module}.{name}, which may "
                "run code"
            )
        return table[module, name]

    def _read_storage(self, pid: Any) -> Array:
        kind, storage, key = pid[0], pid[1](), str(pid[2])
        if kind != "storage" or not key.isalnum():
            raise ValueError("unknown storage type")
        if storage not in _DTYPES:
            raise ValueError(f"{storage} is not a storage of 32- or 64-bit floats")
        if key not in self._storages:
            content = self._archive.read(f"{self._root}data/{key}")
            self._storages[key] = np.frombuffer(content, dtype=_DTYPES[storage])
        return self._storages[key]

    def _build_tensor(self, storage: Array, offset: int, size: Any, stride: Any, *_: Any) -> Array:
        numbers = math.prod(size)
        self._total_numbers += numbers
        if numbers > storage.size or self._total_numbers > _UNPACKED_LIMIT // 8:
            raise ValueError(f"a tensor of {numbers} numbers from a storage of {storage.size}")
        index = np.full(size, offset, dtype=np.int64)
        for axis, (n, step) in enumerate(zip(size, stride, strict=True)):
            shape = [1] * len(size)
            shape[axis] = n
            index += (np.arange(n) * step).reshape(shape)
        return np.asarray(storage[index], dtype=np.float64)


def _validate(path: Path, arrays: dict[str, Any]) -> tuple[Array, Array, list[Array]]:
    for name in ("A", "X"):
        if name not in arrays:
            raise StudyError(f"function file {path} has no array {name}")
    names = [f"W{i}" for i in range(1, len(arrays) - 1)]
    if len(names) == 1 or set(arrays) != {"A", "X", *names}:
        raise StudyError(
            f"function file {path}: expected no weights, or W1, W2, … without a gap and at "
            f"least two; got {', '.join(sorted(set(arrays) - {'A', 'X'}))}"
        )
    weights: list[Any] = [arrays[name] for name in names]
    try:
        a, x, *weights = (
            np.asarray(w, dtype=np.float64) for w in (arrays["A"], arrays["X"], *weights)
        )
    except (TypeError, ValueError) as error:
        raise StudyError(f"function file {path} has values that are not numbers") from error
    for name, array in {"A": a, "X": x, **{f"W{i + 1}": w for i, w in enumerate(weights)}}.items():
        if array.ndim != 2 or array.size == 0 or not np.isfinite(array).all():
            raise StudyError(f"function file {path}: {name} is not a finite, non-empty matrix")
    dims = [x.shape[1], *(w.shape[0] for w in weights)]
    chained = all(w.shape[1] == d for w, d in zip(weights, dims, strict=False))
    if a.shape[1] != x.shape[1] or not chained or (weights and dims[-1] != a.shape[0]):
        raise StudyError(
            f"function file {path}: shapes of A, X and the weights do not fit together"
        )
    return a, x, weights
