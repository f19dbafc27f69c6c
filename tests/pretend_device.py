"""A second device for machines without a GPU: tensors that claim to be there, with CPU data.

Inside :class:`PretendDevice` every tensor made on :data:`DEVICE` is a :class:`DeviceTensor`. Three
rules of CUDA hold for it: an operation that mixes it with a CPU tensor fails, random numbers need a
generator of its device, and every wait of the host for the device is recorded. The values are real,
so whole training runs go through it.

It cannot see:

- CUDA kernels: none runs, so their results, their errors and waits inside them stay unknown;
- branches for ``device.type == "cuda"``: the device is called ``meta``;
- forward-mode derivatives (``torch.func.jvp``), which crash on such tensors; the Gauss–Newton
  products of the analysis need them;
- ``torch.compile``, autocast, CUDA graphs, streams, memory, and a second GPU.

Tests marked ``gpu`` run these on a GPU. PyTorch's own ``FakeTensorMode`` does not serve here:
without a driver it can neither differentiate on ``cuda`` nor make a generator there, and its
tensors have no values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
SOURCE = str(Path(__file__).parents[1] / "src")
HOST = torch.device("cpu")

WAITS = {
    "_local_scalar_dense": "a value is read (item, bool, float, int)",
    "is_nonzero": "a value is read (bool)",
    "equal": "tensors are compared on the host",
    "nonzero": "the size of the result depends on values",
    "masked_select": "the size of the result depends on values",
    "bincount": "the size of the result depends on values",
    "_unique2": "the size of the result depends on values",
    "unique_dim": "the size of the result depends on values",
    "unique_consecutive": "the size of the result depends on values",
    "repeat_interleave": "the size of the result depends on values",
}
"""Operations that make the host wait for a CUDA device."""

_make_generator, _tensor, _as_tensor = torch.Generator, torch.tensor, torch.as_tensor


class DeviceTensor(torch.Tensor):
    """A tensor that says it is on :data:`DEVICE`; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        made.held = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the pretended device outside of PretendDevice")

    def tolist(self) -> Any:
        return self.cpu().tolist()


_on_device: dict[int, torch.Generator] = {}
"""Generators of the pretended device, each one of the CPU, by address."""


class Wait(NamedTuple):
    """The host waits for the device.

    Attributes:
        what: the reason.
        where: functions of ``src`` that are under way, ``module.function``, innermost first.
    """

    what: str
    where: tuple[str, ...]


class _Generators(type):
    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        if torch.device(device) != DEVICE:
            return _make_generator(device)
        made = _make_generator()
        _on_device[made._cdata] = made  # kept, so that no other one gets its address
        return made

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _make_generator)


class AnyGenerator(metaclass=_Generators):
    """Stands for ``torch.Generator``."""


def upload(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Stands for ``torch.tensor``, which calls no operation that the mode would see."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made


class PretendDevice(TorchDispatchMode):
    """Runs operations on :data:`DEVICE`, refuses what CUDA refuses, and notes every wait.

    Attributes:
        waits: when the host waited.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __enter__(self) -> PretendDevice:
        torch.Generator = AnyGenerator  # type: ignore[assignment, misc]
        torch.tensor, torch.as_tensor = upload(_tensor), upload(_as_tensor)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.Generator = _make_generator  # type: ignore[misc]
        torch.tensor, torch.as_tensor = _tensor, _as_tensor
        super().__exit__(*error)

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Raises AssertionError if anything inside waits for the device."""
        before = len(self.waits)
        yield
        assert self.waits[before:] == []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        leaves = tree_flatten((args, kwargs))[0]
        tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
        ours = [t for t in tensors if isinstance(t, DeviceTensor)]
        others = [t for t in tensors if not isinstance(t, DeviceTensor)]
        assert all(t.device == HOST for t in others), f"{func}: a tensor was made past the mode"
        target = kwargs.get("device")
        if name == "copy_":
            on_device = isinstance(args[0], DeviceTensor)
            asynchronous = len(args) > 2 and args[2]
        else:
            on_device = bool(ours) if target is None else torch.device(target) == DEVICE
            asynchronous = kwargs.get("non_blocking", False)
        if name in ("copy_", "_to_copy"):
            # What need not be on the device when the call returns is not waited for.
            if (bool(others) if on_device else bool(ours)) and not (on_device and asynchronous):
                self._note("tensors are copied between host and device")
        elif ours:
            self._check(func, name, ours, others)
        for generator in (g for g in leaves if isinstance(g, _make_generator)):
            if on_device != (generator._cdata in _on_device):
                raise RuntimeError(f"{func}: the generator is not of the tensor's device")
        if target is not None and on_device:
            kwargs["device"] = HOST
        inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda t: t.held, (args, kwargs))
        found = func(*inner_args, **inner_kwargs)
        if not on_device and ours:
            return found
        if on_device:
            found = tree_map_only(torch.Tensor, DeviceTensor, found)
        return return_and_correct_aliasing(func, args, kwargs, found)

    def _check(self, func: Any, name: str, ours: Any, others: Any) -> None:
        """Note a wait, refuse a mixture of devices."""
        if name in WAITS:
            self._note(WAITS[name])
        elif name.startswith("index") and len(ours) + len(others) > 1:
            if any(t.dtype == torch.bool for t in ours[1:]):
                self._note("the size of an index by a mask depends on values")
            if any(t.ndim for t in others):
                self._note("an index on the host is copied to the device")
        # As CUDA does, take numbers in tensors of the CPU: they are read without a wait.
        elif many := [list(t.shape) for t in others if t.ndim]:
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but one has shape "
                f"{many[0]} and is on the CPU"
            )

    def _note(self, what: str) -> None:
        where, frame = [], sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.startswith(SOURCE):
                where.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            frame = frame.f_back
        self.waits.append(Wait(what, tuple(where)))
