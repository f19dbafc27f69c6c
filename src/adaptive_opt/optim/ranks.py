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
        """Mean over the ranks, by one reduction for each device and type."""
        kinds: dict[Any, list[int]] = {}
        for i, t in enumerate(tensors):
            kinds.setdefault((t.device, t.dtype), []).append(i)
        means = list(tensors)
        for indices in kinds.values():
            flat = torch.cat([tensors[i].reshape(-1) for i in indices])
            dist.all_reduce(flat, group=self.group)
            flat /= dist.get_world_size(self.group)
            parts = flat.split([tensors[i].numel() for i in indices])
            for i, part in zip(indices, parts, strict=True):
                means[i] = part.view_as(tensors[i])
        return means

    def check(self, estimated: bool, reached: Sequence[bool], device: torch.device) -> None:
        """Check that all ranks have an estimate, of the same parameters.

        Only once, as it waits for the device.

        Args:
            estimated: whether this rank has made an estimate for the coming step.
            reached: for each parameter, whether it has a gradient on this rank.
            device: of the parameters.

        Raises:
            RuntimeError: the ranks differ.
        """
        if self._checked:
            return
        if not self._equal([int(estimated)], device):
            raise RuntimeError(
                "curvature cannot be averaged: some ranks made no estimate. Call "
                "optimizer.backward(loss) instead of loss.backward() on every rank, or set "
                "process_group=None"
            )
        # The number first: a reduction of lists of different lengths would wait forever.
        if not (self._equal([len(reached)], device) and self._equal(reached, device)):
            raise RuntimeError(
                "curvature cannot be averaged: ranks have gradients of different parameters. Let "
                "every rank's loss reach every parameter (find_unused_parameters=True of "
                "DistributedDataParallel), or set process_group=None"
            )
        self._checked = estimated

    def _equal(self, numbers: Sequence[int], device: torch.device) -> bool:
        """Whether all ranks have the same numbers."""
        most = torch.tensor([*numbers, *(-n for n in numbers)], device=device, dtype=torch.int64)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.group)
        return not most.view(2, -1).sum(0).any()
