"""Weights after chosen epochs, with what the optimizer divided by there."""

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
    """A run after some epochs.

    Attributes:
        seed, epoch: whose; how many epochs were done.
        lr: the learning rate of the step before, or of the first.
        parameters, buffers: by name.
        denominators: what the smoothed gradient was divided by, by the parameter's name; empty
            where by nothing, or nothing is known.
        momentum: the smoothed gradient of second-order methods, likewise.
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
    """Collects them during a run, as a flat dict of tensors.

    A tensor's name is ``seed<s>.epoch<e>.<kind>.<name>``, the kinds being those attributes of
    :class:`Snapshot` that are dicts; ``seed<s>.epoch<e>.lr`` is a number.

    Args:
        epochs: after which weights are kept; 0: at the start. Those beyond the end of a run, or
            of when all of it had diverged, are left out.
        seeds: of which.
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
        """Copy the members whose seeds are wanted, if the epoch is.

        Args:
            epoch: number of those that are done.
            seeds: of the members.
            names: of the parameters.
            params, buffers: ``[members, ...]``.
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
            seen = {n: state[p] for n, p in named.items() if "momentum" in state.get(p, {})}
            kept["momentum"] = {n: s["momentum"] for n, s in seen.items()}
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
        """Go on from ``tensors`` of the same run."""
        self.tensors = dict(saved)


def read_snapshots(tensors: Mapping[str, Tensor]) -> list[Snapshot]:
    """Those that :class:`Snapshots` collected, by seed and epoch.

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
