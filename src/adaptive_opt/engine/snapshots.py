"""Weights after chosen epochs, with the optimizer's denominators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adaptive_opt.optim import EnsembleOptimizer, Memberwise, SecondOrderOptimizer

__all__ = ["Snapshot", "Snapshots", "read_snapshots"]


@dataclass(frozen=True)
class Snapshot:
    """State of a run after some epochs.

    Attributes:
        seed: of the run.
        epoch: number of finished epochs.
        lr: learning rate of the last step; at epoch 0, of the first step.
        parameters, buffers: by name.
        denominators: divisors of the smoothed gradient, by parameter name; empty if there is no
            division or the divisors are unknown.
        momentum: smoothed gradients of second-order methods, by parameter name.
    """

    seed: int
    epoch: int
    lr: float
    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    denominators: dict[str, Tensor] = field(default_factory=dict)
    momentum: dict[str, Tensor] = field(default_factory=dict)


KINDS = ("parameters", "buffers", "denominators", "momentum")


class Snapshots:
    """Collects snapshots during a run, as a flat dict of tensors.

    Names are ``seed<s>.epoch<e>.<kind>.<name>``, where the kinds are the dict attributes of
    :class:`Snapshot`; ``seed<s>.epoch<e>.lr`` is a number.

    Args:
        epochs: numbers of finished epochs after which to keep weights; 0: the start. Epochs
            after the end of a run, or after all members have diverged, have no snapshot.
        seeds: of the runs to keep.
    """

    def __init__(self, epochs: Sequence[int], seeds: Sequence[int] = (0,)) -> None:
        self.epochs, self.seeds = frozenset(epochs), frozenset(seeds)
        self.tensors: dict[str, Tensor] = {}

    def take(
        self,
        epoch: int,
        seeds: Sequence[int],
        names: Sequence[str],
        params: Sequence[Tensor],
        buffers: Mapping[str, Tensor],
        optimizer: EnsembleOptimizer | Memberwise,
    ) -> None:
        """Copy the members with chosen seeds, if the epoch is chosen.

        Args:
            epoch: number of finished epochs.
            seeds: seeds of all members, in their order.
            names: of the parameters.
            params, buffers: ``[members, ...]`` each.
            optimizer: of the parameters.
        """
        if epoch not in self.epochs or not self.seeds.intersection(seeds):
            return
        named = dict(zip(names, params, strict=True))
        with optimizer.evaluation():
            kept: dict[str, dict[str, Tensor]] = {
                "parameters": {n: p.detach().cpu().clone() for n, p in named.items()}
            }
        kept["buffers"] = dict(buffers)
        denominators = optimizer.denominators()
        kept["denominators"] = {n: denominators[p] for n, p in named.items() if p in denominators}
        if isinstance(optimizer, SecondOrderOptimizer):
            state = optimizer.state
            stepped = {n: state[p] for n, p in named.items() if "momentum" in state.get(p, {})}
            kept["momentum"] = {n: s["momentum"] for n, s in stepped.items()}
        lr = torch.as_tensor(optimizer.param_groups[0]["lr"]).detach().cpu()
        for member, seed in enumerate(seeds):
            if seed in self.seeds:
                prefix = f"seed{seed}.epoch{epoch}"
                self.tensors[f"{prefix}.lr"] = lr.expand(len(seeds))[member].double().clone()
                for kind, tensors in kept.items():
                    for name, t in tensors.items():
                        one = t.detach()[member].cpu().clone(memory_format=torch.contiguous_format)
                        self.tensors[f"{prefix}.{kind}.{name}"] = one

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue with the ``tensors`` of an interrupted run."""
        self.tensors = dict(saved)


def read_snapshots(tensors: Mapping[str, Tensor]) -> list[Snapshot]:
    """Snapshots from the tensors of :class:`Snapshots`, ordered by seed and epoch.

    Example:
        >>> (one,) = read_snapshots({"seed0.epoch3.lr": torch.tensor(0.1)})
        >>> one.seed, one.epoch, round(one.lr, 3), one.parameters
        (0, 3, 0.1, {})
    """
    found: dict[tuple[int, int], Snapshot] = {}
    rates = {tuple(n.split(".")[:2]): float(t) for n, t in tensors.items() if n.endswith(".lr")}
    for (seed, epoch), lr in rates.items():
        key = int(seed.removeprefix("seed")), int(epoch.removeprefix("epoch"))
        found[key] = Snapshot(*key, lr)
    for name, tensor in tensors.items():
        seed, epoch, kind, *rest = name.split(".", 3)
        if kind in KINDS:
            key = int(seed.removeprefix("seed")), int(epoch.removeprefix("epoch"))
            getattr(found[key], kind)[rest[0]] = tensor
    return [found[key] for key in sorted(found)]
