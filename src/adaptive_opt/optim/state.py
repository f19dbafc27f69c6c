"""Save and load optimizers with ``torch.save`` and with ``torch.distributed.checkpoint``.

``torch.distributed.checkpoint.state_dict`` saves only the state of parameters and the entries of
parameter groups. Therefore these hold everything that the next step depends on.
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
"""Entries of the state dicts of earlier versions, mapped to their names in the groups."""

Number = TypeVar("Number", int, float)


class Counter(Generic[Number]):
    """Attribute of an optimizer that is stored in every parameter group, as ``step`` is."""

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
    """Optimizer with a complete ``state_dict``.

    A subclass names the state of a parameter in :meth:`_state_names`. State of the whole
    optimizer (*extras*) is returned by :meth:`_extras` and restored by :meth:`_load_extras`.
    Only state dicts contain extras; their entries in ``param_groups`` are None.
    """

    extras: tuple[str, ...] = ()

    gradient_count = Counter[int]()
    hvp_count = Counter[int]()
    curvature_cost = Counter[float]()

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of the state tensors of a group's parameters."""
        raise NotImplementedError

    def _extras(self) -> dict[str, Any]:
        """State of the whole optimizer: a value for each name in ``extras``."""
        return {}

    def _load_extras(self, extras: dict[str, Any]) -> None:
        """Restore the result of :meth:`_extras`; values missing in the state dict are None."""

    def _states(self, params: Sequence[Tensor], *names: str) -> list[list[Tensor]]:
        """State tensors of ``params``, one list for each name; creates missing ones as zeros."""
        for p in params:
            state = self.state[p]
            for name in names:
                if name not in state:
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [[self.state[p][name] for p in params] for name in names]

    def _gradient_norm(self) -> Tensor | None:
        """Norm of all gradients; None if there is no gradient."""
        raise NotImplementedError

    def _is_initialization_step(self) -> bool:
        """Whether torch calls ``step`` only to create the state: learning rates and gradients 0.

        Reading the gradients synchronises; it is done only if every learning rate is 0.
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

    def _create_state(self) -> None:
        """Create the state of every parameter that has a gradient, without a step."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            self._states(params, *self._state_names(group))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on; loads with ``weights_only=True``."""
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
        """Restore a ``state_dict``, also one of an earlier version."""
        former = {new: state_dict[old] for old, new in FORMER_NAMES.items() if old in state_dict}
        groups = [{**_with_betas(group), **former} for group in state_dict["param_groups"]]
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
    """Convert a saved group of an earlier version, with ``beta1`` and ``beta2``, to ``betas``."""
    if "betas" in group or "beta1" not in group:
        return group
    rest = {name: value for name, value in group.items() if name not in ("beta1", "beta2")}
    return {**rest, "betas": (group["beta1"], group["beta2"])}
