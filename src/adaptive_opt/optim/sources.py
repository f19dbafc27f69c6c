"""Curvature sources: the rungs of the information ladder.

Each of the first five rungs, and at last ``constant``, gives the same step rule a curvature c with
less information than the rung above. A gain over the rung below is due to the information lost
there. ``gauss_newton``, ``empirical_fisher`` and ``squared_gradient`` replace the Hessian. v is the
probe, g the gradient of the batch, g_i that of sample i of N.

| source             | c                                        | keeps                         |
|--------------------|------------------------------------------|-------------------------------|
| `exact`            | diag(H)                                  | everything, without noise     |
| `estimate`         | v ⊙ Hv (SSVP: Hv)                        | magnitude, layer, coordinate  |
| `permuted`         | the estimate, permuted within a tensor   | magnitude, layer, spread      |
| `per_tensor`       | its root mean square over each tensor    | magnitude, layer              |
| `per_model`        | its root mean square over all parameters | magnitude                     |
| `gauss_newton`     | N ĝ ⊙ ĝ, ĝ with sampled labels           | all, of the Gauss–Newton matrix |
| `empirical_fisher` | Σ_i g_i ⊙ g_i / N                        | all, of the empirical Fisher  |
| `squared_gradient` | g ⊙ g                                    | first-order information       |
| `constant`         | 1                                        | nothing                       |

The permutation is drawn once for a run. The smoothed curvature D is then that of ``estimate``
with its coordinates shuffled, with the same distribution at every step. If it were drawn again
at each refresh, smoothing would average it to one number for each tensor.

All functions take and return one tensor for each parameter. With ``members`` the leading
dimension is that of the members, which never mix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "CURVATURE_SOURCES",
    "HESSIAN_SOURCES",
    "SAMPLE_SOURCES",
    "STATISTICS",
    "Permutation",
    "apply_source",
    "estimate_statistics",
    "exact_diagonal",
]

HESSIAN_SOURCES = ("exact", "estimate", "permuted", "per_tensor", "per_model")
SAMPLE_SOURCES = ("gauss_newton", "empirical_fisher")
"""Sources that need gradients besides that of the loss."""
CURVATURE_SOURCES = (*HESSIAN_SOURCES, *SAMPLE_SOURCES, "squared_gradient", "constant")

STATISTICS = ("estimate_norm", "positive_estimate_share")
"""Names of the statistics that :func:`estimate_statistics` returns."""

HVP = Callable[[Sequence[Tensor]], list[Tensor]]


def exact_diagonal(hvp: HVP, params: Sequence[Tensor], members: int | None) -> list[Tensor]:
    """Exact diagonal of the Hessian, from one Hessian-vector product for each element.

    ``diag(H)_i = e_iᵀ H e_i``. All members use the i-th unit vector together, so an ensemble
    takes as many products as one member.

    Args:
        hvp: maps vectors shaped like ``params`` to their products with H; called many times, so
            it must keep its graph.
        params: tensors of shape ``[...]``, or ``[members, ...]``.
        members: ensemble size; None: a single model.

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
    """Fixed random permutation of the entries of each tensor, another one for each member.

    It is a function of the seeds, so checkpoints do not store it.

    Args:
        seeds: one seed for each member.

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
        """Permute the entries of a tensor; ``position`` is its index among the parameters."""
        flat = tensor.reshape(len(self._seeds), -1)
        if position not in self._index:
            # Vary the low 32 bits, because a CPU generator ignores the others.
            seeds = [(s + 0x9E3779B9 * position) % 2**63 for s in self._seeds]
            streams = [torch.Generator().manual_seed(s) for s in seeds]
            rows = [torch.randperm(flat.shape[1], generator=g) for g in streams]
            # Non-blocking, because step must not wait for the device.
            self._index[position] = torch.stack(rows).to(flat.device, non_blocking=True)
        return flat.gather(1, self._index[position]).reshape(tensor.shape)


def fill_with_rms(tensors: Sequence[Tensor], members: int | None, *, per: str) -> list[Tensor]:
    """Replace every entry by the root mean square over its tensor or over the model.

    Args:
        tensors: curvature estimates.
        members: ensemble size, each member with its own mean; None: a single model.
        per: ``"tensor"`` or ``"model"``.

    Example:
        >>> fill_with_rms([torch.tensor([3.0, 4.0])], None, per="tensor")
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


def apply_source(
    source: str,
    estimate: Sequence[Tensor],
    *,
    positions: Sequence[int],
    members: int | None,
    permutation: Permutation,
) -> list[Tensor]:
    """Transform an estimate as a curvature source requires.

    Args:
        source: ``permuted``, ``per_tensor`` or ``per_model``; others leave the estimate as it is.
        estimate: one tensor for each parameter.
        positions: indices of these parameters in the model.
        members: ensemble size; None: a single model.
        permutation: the permutation for ``permuted``.
    """
    if source == "permuted":
        return [permutation(i, c) for i, c in zip(positions, estimate, strict=True)]
    if source in ("per_tensor", "per_model"):
        return fill_with_rms(estimate, members, per=source.removeprefix("per_"))
    return list(estimate)


def estimate_statistics(estimate: Sequence[Tensor], members: int | None) -> dict[str, Tensor]:
    """Norm of an estimate, and share of its positive entries; each 0-dim, or ``[members]``.

    Example:
        >>> estimate_statistics([torch.tensor([3.0, -4.0])], None)["estimate_norm"]
        tensor(5.)
    """
    # Tensor by tensor, because a joined tensor would be as large as the model. Not flattened
    # without members, because a sharded tensor may have no flat view.
    each = list(estimate) if members is None else [c.reshape(members, -1) for c in estimate]
    dim = None if members is None else 1
    norms = torch.stack([torch.linalg.vector_norm(c, dim=dim) for c in each])
    positive = torch.stack([(c > 0).sum(dim) for c in each]).sum(0)
    size = sum(c.numel() for c in each) // (members or 1)
    return {
        "estimate_norm": full_tensor(torch.linalg.vector_norm(norms, dim=0)),
        "positive_estimate_share": full_tensor(positive / size).to(norms.dtype),
    }


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor (``DTensor``); return any other unchanged."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def check_source(name: str, exact: Any) -> None:
    """Raise ValueError for an unknown source, or a diagonal function that would be unused."""
    if name not in CURVATURE_SOURCES:
        raise ValueError(f"unknown curvature source {name!r}; choose from {CURVATURE_SOURCES}")
    if exact is not None and name != "exact":
        raise ValueError("diagonal_fn is only used with curvature='exact'")
