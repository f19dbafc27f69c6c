"""Communication between the processes of distributed training."""

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
        group: a process group; ``"auto"`` (default): torch's default group if it is initialised;
            None: no communication.
        own_probes: draw other probes on each rank; default False.
    """

    def __init__(self, group: Any = "auto", *, own_probes: bool = False) -> None:
        self._group, self.own_probes = group, own_probes
        self._checked = False

    @property
    def active(self) -> bool:
        """Whether there is more than one process to communicate with."""
        if self._group is None or not (dist.is_available() and dist.is_initialized()):
            return False
        return dist.get_world_size(self.group) > 1

    @property
    def group(self) -> Any:
        """The process group; None for torch's default group."""
        return None if isinstance(self._group, str) else self._group

    def generator(self, shared: ProbeGenerator) -> ProbeGenerator:
        """Return the generators for this rank, made specific to it if ``own_probes``."""
        if self.own_probes and self.active:
            shared.separate(dist.get_rank(self.group))
        return shared

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Average tensors over the ranks, with one reduction for each device and type."""
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
        """Check that all ranks have an estimate for the same parameters.

        The check synchronises with the device, so later calls skip it once it has passed.

        Args:
            estimated: whether this rank has an estimate for the next step.
            reached: for each parameter, whether it has a gradient on this rank.
            device: device of the parameters.

        Raises:
            RuntimeError: the ranks differ.
        """
        if self._checked:
            return
        if not self._equal_on_all_ranks([int(estimated)], device):
            raise RuntimeError(
                "curvature cannot be averaged: some ranks made no estimate. Call "
                "optimizer.backward(loss) instead of loss.backward() on every rank, or set "
                "process_group=None"
            )
        # Compare lengths first, because a reduction of unequal lengths would hang.
        same_length = self._equal_on_all_ranks([len(reached)], device)
        if not (same_length and self._equal_on_all_ranks(reached, device)):
            raise RuntimeError(
                "curvature cannot be averaged: ranks have gradients of different parameters. Let "
                "every rank's loss depend on every parameter (find_unused_parameters=True of "
                "DistributedDataParallel), or set process_group=None"
            )
        self._checked = estimated

    def _equal_on_all_ranks(self, numbers: Sequence[int], device: torch.device) -> bool:
        """Whether all ranks have the same numbers."""
        largest = torch.tensor([*numbers, *(-n for n in numbers)], device=device, dtype=torch.int64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        # max(n) + max(−n) is zero only if all n are equal.
        return not largest.view(2, -1).sum(0).any()
