"""What an optimizer that estimates curvature keeps: probes, the estimate for the coming step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import EnsembleOptimizer
from .probes import ProbeGenerator
from .sources import STATISTICS, Permutation

__all__ = ["CurvatureState"]


class CurvatureState(EnsembleOptimizer):
    """An optimizer with random streams of probes and an estimate that waits for ``step``.

    Args:
        seed: of the probes; for an ensemble one seed for each member.
        members: size of the ensemble.
        **rest: of :class:`.base.EnsembleOptimizer`.

    Raises:
        ValueError: another number of seeds than of members.
    """

    extras = ("probe_state", "last_estimate")

    def __init__(
        self, *args: Any, seed: int | Sequence[int], members: int | None, **rest: Any
    ) -> None:
        self._generator = ProbeGenerator(seed)
        seeds = self._generator.seeds
        if members is not None and self._generator.members is None:
            raise ValueError(f"an ensemble of {members} needs {members} seeds, got one")
        if self._generator.members != members:
            raise ValueError(f"{len(seeds)} seeds for an ensemble of {members}")
        self._permutation = Permutation(seeds)
        self._pending: dict[Tensor, Tensor] = {}
        self._probe: dict[Tensor, Tensor] = {}
        self._held: dict[Tensor, Tensor] = {}
        self._last_estimate: dict[str, Tensor] = {}
        super().__init__(*args, members=members, **rest)

    def _forget(self) -> None:
        super()._forget()
        self._pending.clear()
        self._probe.clear()
        self._held.clear()

    def _extras(self) -> dict[str, Any]:
        # Probes as text: torch.distributed.checkpoint wants all tensors on one device, and every
        # list of one length.
        probes = json.dumps(self._generator.state_dict())
        return {"probe_state": probes, "last_estimate": dict(self._last_estimate)}

    def _load_extras(self, extras: dict[str, Any]) -> None:
        probes = extras["probe_state"]
        if probes is not None:
            self._generator.load_state_dict(
                json.loads(probes) if isinstance(probes, str) else probes
            )
            self._permutation = Permutation(self._generator.seeds)
        device = self.param_groups[0]["params"][0].device
        last = extras["last_estimate"] or {}
        self._last_estimate = {name: value.to(device) for name, value in last.items()}

    def _initialize(self) -> None:
        super()._initialize()
        first = self.param_groups[0]["params"][0]
        shape = () if self.members is None else (self.members,)
        zero = torch.zeros(shape, dtype=first.dtype, device=first.device)
        self._last_estimate = dict.fromkeys(STATISTICS, zero)

    def __getstate__(self) -> dict[str, Any]:
        names = ("_permutation", "diagonal_fn", "hvp", "_ranks", "_checked")
        extra = {name: getattr(self, name) for name in names}
        return {**super().__getstate__(), **extra, "_generator": self._generator.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_generator", None)
        if saved is not None:
            seeds = saved["seeds"]
            self._generator = ProbeGenerator(seeds[0] if saved["members"] is None else seeds)
            self._generator.load_state_dict(saved)
            self._pending, self._probe, self._held = {}, {}, {}
        super().__setstate__(state)
