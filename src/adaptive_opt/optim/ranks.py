"""Averages over the processes of distributed training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .probes import ProbeGenerator

__all__ = ["Ranks"]


class Ranks:
    """The processes that train one model together.

    Args:
        group: a process group; ``"auto"``: the default group where there is one; None: none.
        own_probes: whether each rank draws its probes from a stream of its own.
    """

    def __init__(self, group: Any = "auto", *, own_probes: bool = False) -> None:
        self._group, self.own_probes = group, own_probes
        self._checked = False

    @property
    def active(self) -> bool:
        """Whether there is more than one process."""
        if self._group is None or not (dist.is_available() and dist.is_initialized()):
            return False
        return dist.get_world_size(self.group) > 1

    @property
    def group(self) -> Any:
        """The process group, None for the default one."""
        return None if isinstance(self._group, str) else self._group

    def generator(self, shared: ProbeGenerator) -> ProbeGenerator:
        """The random streams of this rank: the shared ones, or its own."""
        if self.own_probes and self.active:
            shared.separate(dist.get_rank(self.group))
        return shared

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean over the ranks, by one reduction of all tensors.

        Raises:
            RuntimeError: the ranks have gradients of different parameters.
        """
        flat = torch.cat([t.reshape(-1) for t in tensors]) if tensors else torch.empty(0)
        self._check(flat.numel(), flat.device)
        if not len(tensors):
            return []
        dist.all_reduce(flat, group=self.group)
        flat /= dist.get_world_size(self.group)
        parts = flat.split([t.numel() for t in tensors])
        return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]

    def _check(self, size: int, device: torch.device) -> None:
        """Once, as it waits for the device: that all ranks are about to send as much."""
        if self._checked:
            return
        sizes = torch.tensor([size, -size], device=device, dtype=torch.int64)
        dist.all_reduce(sizes, op=dist.ReduceOp.MAX, group=self.group)
        most, least = int(sizes[0]), -int(sizes[1])
        if most != least:
            raise RuntimeError(
                f"curvature cannot be averaged: ranks have gradients of {least:,} to {most:,} "
                "elements. Let every rank's loss reach every parameter "
                "(find_unused_parameters=True of DistributedDataParallel), or set "
                "process_group=None"
            )
        self._checked = True
