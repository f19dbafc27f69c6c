"""Saving and loading an optimizer, with torch's own functions and with ``torch.distributed``'s.

``torch.distributed.checkpoint.state_dict`` keeps the state of each parameter and the entries of
the parameter groups, and drops everything else in a state dict. So all that the next step
depends on is in one of these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Counter", "SavedOptimizer"]

COUNTERS = ("gradient_count", "hvp_count", "curvature_cost")

FORMER_NAMES = {name: name for name in (*COUNTERS, "last_estimate")} | {
    "probe_generator": "probe_state"
}
"""Entries that states of earlier versions have beside the groups, and their names in the groups."""

Number = TypeVar("Number", int, float)


class Counter(Generic[Number]):
    """A count of the whole optimizer, kept in each parameter group as ``step`` is."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, optimizer: None, owner: type) -> Counter[Number]: ...

    @overload
    def __get__(self, optimizer: Optimizer, owner: type) -> Number: ...

    def __get__(self, optimizer: Optimizer | None, owner: type) -> Counter[Number] | Number:
        if optimizer is None:
            return self
        count: Number = optimizer.param_groups[0][self.name]
        return count

    def __set__(self, optimizer: Optimizer, value: Number) -> None:
        for group in optimizer.param_groups:
            group[self.name] = value


class SavedOptimizer(Optimizer):
    """An optimizer whose progress is saved and loaded.

    A subclass names the state of a parameter in :meth:`_state_names`, and has two methods for
    what belongs to the whole optimizer: :meth:`_extras` and :meth:`_load_extras`. The extras are
    in the groups of a state dict only; between calls their entries in ``param_groups`` are None.
    """

    extras: tuple[str, ...] = ()

    gradient_count = Counter[int]()
    hvp_count = Counter[int]()
    curvature_cost = Counter[float]()

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of the state tensors of each parameter of the group."""
        raise NotImplementedError

    def _extras(self) -> dict[str, Any]:
        """What a state dict holds for the whole optimizer: one entry for each of ``extras``."""
        return {}

    def _load_extras(self, extras: dict[str, Any]) -> None:
        """Inverse of :meth:`_extras`; an entry is None if the state dict lacks it."""

    def _states(self, params: Sequence[Tensor], *names: str) -> list[list[Tensor]]:
        """State tensors by name, zeros where a parameter has none yet."""
        for p in params:
            state = self.state[p]
            for name in names:
                if name not in state:
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [[self.state[p][name] for p in params] for name in names]

    def _gradient_norm(self) -> Tensor | None:
        """Norm of all gradients; None if there is none."""
        raise NotImplementedError

    def _initializes(self) -> bool:
        """Whether this step is torch's way to create the state: learning rate and gradients 0.

        The gradients are read, which waits for the device, only if every learning rate is 0.
        """
        rates = [group["lr"] for group in self.param_groups]
        if any(isinstance(lr, Tensor) and (lr.ndim or not lr.is_cpu) for lr in rates):
            return False
        if any(float(lr) != 0 for lr in rates):
            return False
        norm = self._gradient_norm()
        if norm is None:
            return False
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return bool((whole == 0).all())

    def _initialize(self) -> None:
        """Create the state of every parameter that has a gradient; no step is made."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            self._states(params, *self._state_names(group))

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on; loads with ``weights_only=True``."""
        for group in self.param_groups:
            group.update(self._extras())
        try:
            return super().state_dict()
        finally:
            self._clear_extras()

    def _clear_extras(self) -> None:
        for group in self.param_groups:
            group.update(dict.fromkeys(self.extras))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of ``state_dict``; also reads the states of earlier versions."""
        beside = {new: state_dict[old] for old, new in FORMER_NAMES.items() if old in state_dict}
        groups = [{**_with_betas(group), **beside} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
        found = {
            name: next((g[name] for g in self.param_groups if g.get(name) is not None), None)
            for name in self.extras
        }
        self._clear_extras()
        self._load_extras(found)


def _with_betas(group: dict[str, Any]) -> dict[str, Any]:
    """A saved group whose β1 and β2 stood by themselves, as groups are now."""
    if "betas" in group or "beta1" not in group:
        return group
    rest = {name: value for name, value in group.items() if name not in ("beta1", "beta2")}
    return {**rest, "betas": (group["beta1"], group["beta2"])}
