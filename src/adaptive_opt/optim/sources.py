"""Curvature sources: the rungs of the information ladder.

The step rule of a second-order method stays the same while the curvature c that it is fed
carries less and less. What a rung still knows, a gain over the rung below is made of.

| source             | c                                        | keeps                         |
|--------------------|------------------------------------------|-------------------------------|
| `exact`            | diag(H)                                  | everything, without noise     |
| `estimate`         | v ⊙ Hv (SSVP: Hv)                        | magnitude, layer, coordinate  |
| `permuted`         | the estimate, permuted within a tensor   | magnitude, layer, spread      |
| `per_tensor`       | its root mean square over each tensor    | magnitude, layer              |
| `per_model`        | its root mean square over all parameters | magnitude                     |
| `gauss_newton`     | N ĝ ⊙ ĝ, ĝ with labels from the model    | all, of the Gauss–Newton matrix |
| `squared_gradient` | g ⊙ g                                    | first-order information       |
| `constant`         | 1                                        | nothing                       |

The permutation is drawn once for a run and then kept: the smoothed curvature D is then
exactly the real one with its coordinates shuffled, its distribution and its course in time
untouched. A permutation drawn anew at each refresh would be averaged away by the smoothing
and be one number per tensor under another name.

All functions take and return one tensor for each parameter. With ``members`` the leading
dimension is the ensemble's, and nothing is ever mixed across it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "CURVATURE_SOURCES",
    "HESSIAN_SOURCES",
    "STATISTICS",
    "Permutation",
    "degrade",
    "estimate_statistics",
    "exact_diagonal",
]

HESSIAN_SOURCES = ("exact", "estimate", "permuted", "per_tensor", "per_model")
CURVATURE_SOURCES = (*HESSIAN_SOURCES, "gauss_newton", "squared_gradient", "constant")

STATISTICS = ("estimate_norm", "positive_estimate_share")
"""What :func:`estimate_statistics` computes."""

HVP = Callable[[Sequence[Tensor]], list[Tensor]]


def exact_diagonal(hvp: HVP, params: Sequence[Tensor], members: int | None) -> list[Tensor]:
    """The exact diagonal of the Hessian, by one Hessian-vector product for each parameter.

    ``diag(H)_i = e_iᵀ H e_i``. In an ensemble the i-th unit vector is used for all members
    at once, so the cost is that of one member's parameter count.

    Args:
        hvp: maps a list of vectors shaped like ``params`` to the products with H; called
            once for each parameter, so it has to keep its graph.
        params: tensors of shape ``[...]``, or ``[members, ...]``.
        members: size of the ensemble, if there is one.

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> exact_diagonal(lambda v: [H @ v[0]], [torch.zeros(2)], None)
        [tensor([2., 3.])]
    """
    rows = members or 1
    diagonal = [torch.zeros_like(p) for p in params]
    unit = [torch.zeros_like(p) for p in params]
    for t, p in enumerate(params):
        e, d = unit[t].view(rows, -1), diagonal[t].view(rows, -1)
        for i in range(p.numel() // rows):
            e[:, i] = 1
            d[:, i] = hvp(unit)[t].reshape(rows, -1)[:, i]
            e[:, i] = 0
    return diagonal


class Permutation:
    """A fixed random permutation of the entries of each tensor, for each member its own.

    It is a function of the seeds alone and is drawn again rather than stored, so a
    checkpoint carries nothing for it.

    Example:
        >>> shuffle = Permutation([0])
        >>> a = shuffle(0, torch.arange(5.0))
        >>> sorted(a.tolist()), torch.equal(a, shuffle(0, torch.arange(5.0)))
        ([0.0, 1.0, 2.0, 3.0, 4.0], True)
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._index: dict[int, Tensor] = {}

    def __call__(self, position: int, tensor: Tensor) -> Tensor:
        """The tensor with its entries shuffled; ``position`` says which of the model's it is."""
        flat = tensor.reshape(len(self._seeds), -1)
        if position not in self._index:
            # Spread over the low 32 bits, which are all that a CPU generator looks at.
            seeds = [(s + 0x9E3779B9 * position) % 2**63 for s in self._seeds]
            streams = [torch.Generator().manual_seed(s) for s in seeds]
            rows = [torch.randperm(flat.shape[1], generator=g) for g in streams]
            # step must not wait for the device.
            self._index[position] = torch.stack(rows).to(flat.device, non_blocking=True)
        return flat.gather(1, self._index[position]).reshape(tensor.shape)


def rms_filled(tensors: Sequence[Tensor], members: int | None, *, per: str) -> list[Tensor]:
    """Every entry replaced by the root mean square over its tensor or over the model.

    Args:
        tensors: curvature estimates.
        members: size of the ensemble, if there is one; each member has its own mean.
        per: ``"tensor"`` or ``"model"``.

    Example:
        >>> rms_filled([torch.tensor([3.0, 4.0])], None, per="tensor")
        [tensor([3.5355, 3.5355])]
    """
    rows = members or 1
    sums = torch.stack([t.reshape(rows, -1).square().sum(1) for t in tensors])
    sizes = [t.numel() // rows for t in tensors]
    if per == "model":
        means = [sums.sum(0) / sum(sizes)] * len(tensors)
    else:
        means = [s / n for s, n in zip(sums, sizes, strict=True)]
    return [
        r.view(rows, *[1] * (t.ndim - 1)).expand_as(t) if members else r[0].expand_as(t)
        for r, t in zip([m.sqrt() for m in means], tensors, strict=True)
    ]


def degrade(
    source: str,
    estimate: Sequence[Tensor],
    *,
    positions: Sequence[int],
    members: int | None,
    permutation: Permutation,
) -> list[Tensor]:
    """What a rung of the ladder keeps of an estimate.

    Args:
        source: one of :data:`HESSIAN_SOURCES`.
        estimate: one tensor for each parameter.
        positions: of these parameters in the model.
        members: size of the ensemble, if there is one.
        permutation: for ``"permuted"``.
    """
    if source == "permuted":
        return [permutation(i, c) for i, c in zip(positions, estimate, strict=True)]
    if source in ("per_tensor", "per_model"):
        return rms_filled(estimate, members, per=source.removeprefix("per_"))
    return list(estimate)


def estimate_statistics(estimate: Sequence[Tensor], members: int | None) -> dict[str, Tensor]:
    """Norm of an estimate and its share of positive entries; 0-dim, or ``[members]``.

    Example:
        >>> estimate_statistics([torch.tensor([3.0, -4.0])], None)["estimate_norm"]
        tensor(5.)
    """
    # Tensor by tensor: one of all would be as large as the model. Without members as they are:
    # a sharded tensor may have no flat view.
    each = list(estimate) if members is None else [c.reshape(members, -1) for c in estimate]
    dim = None if members is None else 1
    norms = torch.stack([torch.linalg.vector_norm(c, dim=dim) for c in each])
    positive = torch.stack([(c > 0).sum(dim) for c in each]).sum(0)
    size = sum(c.numel() for c in each) // (members or 1)
    return {
        "estimate_norm": whole(torch.linalg.vector_norm(norms, dim=0)),
        "positive_estimate_share": whole(positive / size).to(norms.dtype),
    }


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or the full one of one that is spread over ranks."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def check_source(name: str, exact: Any) -> None:
    """Refuse an unknown source, or a diagonal function that would never be called."""
    if name not in CURVATURE_SOURCES:
        raise ValueError(f"unknown curvature source {name!r}; choose from {CURVATURE_SOURCES}")
    if exact is not None and name != "exact":
        raise ValueError("diagonal_fn is only used with curvature='exact'")
