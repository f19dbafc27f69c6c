"""Probes: the vector v of a Hessian-vector product.

For a random probe with independent entries of mean 0 and variance 1,
``E[v ⊙ Hv] = diag(H)`` (Hutchinson 1990; Bekas, Kokiopoulou & Saad 2007), so ``v ⊙ Hv`` is an
unbiased estimate of the diagonal. Rademacher entries have the smallest variance,
``Σ_{j≠i} H_ij²``, and are exact if H is diagonal. Gaussian entries have ``Σ_j H_ij² + H_ii²``.

With the constant probe (every entry −1) ``v ⊙ Hv`` is the row sum of H, biased by every
off-diagonal entry. A published implementation used it by mistake; it is kept to reproduce that
result. The momentum probes measure the curvature along the direction of the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["MOMENTUM_PROBES", "PROBES", "RANDOM_PROBES", "ProbeGenerator", "draw", "is_sharded"]

RANDOM_PROBES = ("rademacher", "gaussian")
MOMENTUM_PROBES = ("momentum_sign", "momentum_sign_cumulative")
PROBES = (*RANDOM_PROBES, "constant", *MOMENTUM_PROBES)


class ProbeGenerator:
    """Random generators of a run, or of each member of an ensemble.

    A member's random numbers depend only on its seed: in an ensemble it gets the same probes as
    when trained alone.

    Args:
        seed: one seed, or a sequence with one for each member.

    Example:
        >>> g = ProbeGenerator(0)
        >>> v = draw("rademacher", g, [torch.zeros(4)])[0]
        >>> v.abs().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, seed: int | Sequence[int]) -> None:
        single = isinstance(seed, Integral)
        self.members = None if single else len(cast(Sequence[int], seed))
        self._seeds = [int(s) for s in cast(Sequence[int], [seed] if single else seed)]
        self._generators: list[torch.Generator] = []
        self._saved: list[str | Tensor] | None = None
        self._rank: int | None = None
        self._draws = 0

    @property
    def seeds(self) -> list[int]:
        """The seed of each generator."""
        return list(self._seeds)

    def on(self, device: torch.device) -> list[torch.Generator]:
        """Return the generators for the next probe; the first call creates them on ``device``."""
        if not self._generators:
            self._generators = [torch.Generator(device).manual_seed(s) for s in self._seeds]
            if self._saved is not None:
                self._restore_states(self._saved)
        if self._rank is not None:
            offset = 0x9E3779B9 * self._rank + 0x85EBCA6B * self._draws
            for generator, seed in zip(self._generators, self._seeds, strict=True):
                generator.manual_seed((seed + offset) % 2**63)
        self._draws += 1
        return self._generators

    def separate(self, rank: int) -> None:
        """Draw other probes on each rank.

        Each probe is a function of seed, rank and number of the probe, so any rank can continue
        from a state that another rank saved.
        """
        self._rank = rank

    def _restore_states(self, states: list[str | Tensor]) -> None:
        for generator, saved in zip(self._generators, states, strict=True):
            state = saved if isinstance(saved, Tensor) else torch.tensor(list(bytes.fromhex(saved)))
            try:
                generator.set_state(state.to("cpu", torch.uint8))
            except RuntimeError as error:
                raise ValueError(
                    "the probe's random state was saved on another kind of device than "
                    f"{generator.device}; continue on that kind, or start the run again"
                ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return seeds and generator states, in types that JSON supports."""
        states = [bytes(g.get_state().tolist()).hex() for g in self._generators] or self._saved
        return {
            "members": self.members,
            "seeds": list(self._seeds),
            "states": None if self._rank is not None else states,
            "draws": self._draws,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`.

        Raises:
            ValueError: the state is that of an ensemble of another size.
        """
        if state["members"] != self.members:
            raise ValueError(
                f"the saved probe generator is for {state['members']} members, "
                f"this optimizer's for {self.members}"
            )
        self._seeds = list(state["seeds"])
        self._saved = state["states"]
        self._draws = state.get("draws", 0)  # earlier versions did not save it
        self._generators = []


def draw(name: str, generator: ProbeGenerator, params: Sequence[Tensor]) -> list[Tensor]:
    """Draw a random or constant probe.

    Args:
        name: ``"rademacher"``, ``"gaussian"`` or ``"constant"``.
        generator: the random generators; if it has a seed for each member, the parameters have
            shape ``[members, ...]``.
        params: tensors that give the probe's shapes, types and devices.

    Returns:
        One tensor for each parameter. All come from one draw, so the random numbers used depend
        only on the number of elements. With sharded parameters every rank draws the whole probe,
        as a single process would, and keeps its shard.
    """
    if name == "constant":
        return [torch.full_like(p, -1.0) for p in params]
    streams = generator.on(params[0].device)
    rows = len(streams)
    sizes = [p.numel() // rows for p in params]
    flat = torch.empty(rows, sum(sizes), device=params[0].device, dtype=params[0].dtype)
    for row, stream in zip(flat, streams, strict=True):
        if name == "rademacher":
            row.random_(0, 2, generator=stream)
        else:
            row.normal_(generator=stream)
    if name == "rademacher":
        flat.mul_(2).sub_(1)
    parts = flat.split(sizes, dim=1)
    return [_shaped_like(p, part) for part, p in zip(parts, params, strict=True)]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, whose shape is that of all shards together."""
    return hasattr(tensor, "device_mesh")


def _shaped_like(p: Tensor, part: Tensor) -> Tensor:
    """Give a part of a probe the shape, device, type, memory format and sharding of ``p``."""
    shaped = part.reshape(p.shape).to(device=p.device, dtype=p.dtype)
    if is_sharded(p):
        from torch.distributed.tensor import DTensor, distribute_tensor

        # Every rank drew the same numbers, so each keeps its shard without communication.
        of = cast(DTensor, p)
        return distribute_tensor(shaped, of.device_mesh, of.placements, src_data_rank=None)
    if p.is_contiguous():
        return shaped
    return torch.empty_like(p, memory_format=torch.preserve_format).copy_(shaped)
