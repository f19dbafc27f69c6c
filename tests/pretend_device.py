"""A simulated GPU: tensors with CPU data that report a second device.

Inside :class:`PretendDevice`, every tensor created on :data:`DEVICE` is a :class:`DeviceTensor`.
Three rules of CUDA apply to it: an operation with a CPU tensor fails, random numbers need a
generator of its device, and every wait of the host for the device is recorded. Its values are
real, so complete training runs work.

It cannot test:

- CUDA kernels: their results, errors and internal waits;
- branches for ``device.type == "cuda"``, because the device is called ``meta``;
- forward-mode derivatives (``torch.func.jvp``), which crash on such tensors; the Gauss–Newton
  products of the analysis need them;
- ``torch.compile``, autocast, CUDA graphs, streams, memory, and a second GPU.

Tests marked ``gpu`` test these on a GPU. PyTorch's ``FakeTensorMode`` is no alternative: without
a driver, it cannot differentiate or create generators on ``cuda``, and its tensors have no values.
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
    """A tensor that reports :data:`DEVICE` as its device; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        tensor: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        tensor.held = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the simulated device outside of PretendDevice")

    def tolist(self) -> Any:
        return self.cpu().tolist()


_device_generators: dict[int, torch.Generator] = {}
"""CPU generators that stand for generators of the simulated device, by address."""


class Wait(NamedTuple):
    """A wait of the host for the device.

    Attributes:
        what: the reason.
        where: call stack inside ``src`` as ``module.function``, innermost first.
    """

    what: str
    where: tuple[str, ...]


class _Generators(type):
    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        if torch.device(device) != DEVICE:
            return _make_generator(device)
        generator = _make_generator()
        _device_generators[generator._cdata] = generator  # a reference, so that its address stays
        return generator

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _make_generator)


class AnyGenerator(metaclass=_Generators):
    """Replacement of ``torch.Generator``."""


def with_upload(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Replace ``torch.tensor``, whose copy to a device no dispatch mode sees, by two steps."""

    def create_and_move(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        tensor = create(*args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return create_and_move


class PretendDevice(TorchDispatchMode):
    """Simulate operations on :data:`DEVICE`: raise the errors of CUDA, and record every wait.

    Attributes:
        waits: the waits of the host, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __enter__(self) -> PretendDevice:
        torch.Generator = AnyGenerator  # type: ignore[assignment, misc]
        torch.tensor, torch.as_tensor = with_upload(_tensor), with_upload(_as_tensor)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.Generator = _make_generator  # type: ignore[misc]
        torch.tensor, torch.as_tensor = _tensor, _as_tensor
        super().__exit__(*error)

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Context manager that raises AssertionError if anything inside waits for the device."""
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
        assert all(t.device == HOST for t in others), f"{func}: a tensor bypassed the mode"
        target = kwargs.get("device")
        if name == "copy_":
            on_device = isinstance(args[0], DeviceTensor)
            asynchronous = len(args) > 2 and args[2]
        else:
            on_device = bool(ours) if target is None else torch.device(target) == DEVICE
            asynchronous = kwargs.get("non_blocking", False)
        if name in ("copy_", "_to_copy"):
            # An asynchronous copy to the device does not wait.
            if (bool(others) if on_device else bool(ours)) and not (on_device and asynchronous):
                self._record("tensors are copied between host and device")
        elif ours:
            self._check(func, name, ours, others)
        for generator in (g for g in leaves if isinstance(g, _make_generator)):
            if on_device != (generator._cdata in _device_generators):
                raise RuntimeError(f"{func}: the generator is not of the tensor's device")
        if target is not None and on_device:
            kwargs["device"] = HOST
        inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda t: t.held, (args, kwargs))
        result = func(*inner_args, **inner_kwargs)
        if not on_device and ours:
            return result
        if on_device:
            result = tree_map_only(torch.Tensor, DeviceTensor, result)
        return return_and_correct_aliasing(func, args, kwargs, result)

    def _check(self, func: Any, name: str, ours: Any, others: Any) -> None:
        """Record a wait, or raise an error if devices are mixed."""
        if name in WAITS:
            self._record(WAITS[name])
        elif name.startswith("index") and len(ours) + len(others) > 1:
            if any(t.dtype == torch.bool for t in ours[1:]):
                self._record("the size of an index by a mask depends on values")
            if any(t.ndim for t in others):
                self._record("an index on the host is copied to the device")
        # Like CUDA, accept scalar CPU tensors, which need no wait.
        elif shapes := [list(t.shape) for t in others if t.ndim]:
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but one has shape "
                f"{shapes[0]} and is on the CPU"
            )

    def _record(self, what: str) -> None:
        where, frame = [], sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.startswith(SOURCE):
                where.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            frame = frame.f_back
        self.waits.append(Wait(what, tuple(where)))
