r"""What diagonal estimates are worth where the diagonal is not known but by many probes.

The reference is the mean d̂ of v ⊙ Hv over many Rademacher vectors v, kept as G group means d̂_g,
whose spread gives its noise N² = Σ_i Var(d̂_i), E‖d̂‖² = ‖d‖² + N². Against it, corrected for that
noise, stand R independent estimates a_r:

    cosine            mean_r ⟨a_r, d̂⟩ / (‖a_r‖ √(‖d̂‖² − N²))
    relative_error    mean_r √((‖a_r − d̂‖² − N²) / (‖d̂‖² − N²))

The standard error has two parts, the spread over r and the jackknife over the groups. Signs count:
a denominator of absolute values disagrees with d wherever d is negative; its size cannot be known
as well, because noise makes it larger wherever an entry is small. N / ‖d‖ is the *reference's
noise*.

Sources: Bekas, Kokiopoulou & Saad, *An estimator for the diagonal of a matrix* (2007); Efron, *The
Jackknife, the Bootstrap and Other Resampling Plans* (1982).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .spectrum import Estimate, column_block

__all__ = ["METRICS", "compare_diagonals", "diagonal_groups", "one_draw", "reference_noise"]

METRICS = ("cosine", "relative_error")

GROUPS = 8


def one_draw(operator: Any, probe: Tensor) -> Tensor:
    """``v ⊙ Hv``, the columns of ``[n, draws]`` turned into rows."""
    product: Tensor = operator @ probe
    return (probe * product).T


def diagonal_groups(operator: Any, draws: int, seed: int = 0) -> Tensor:
    """Means of v ⊙ Hv over equal groups of Rademacher draws, ``[groups, n]``.

    Args:
        operator: H.
        draws: of all groups; at least ``GROUPS`` are made.
        seed: of the draws.
    """
    each = -(-draws // GROUPS)
    stream = torch.Generator(operator.device).manual_seed(seed)
    n, block = operator.shape[0], column_block(operator)
    groups = torch.zeros(GROUPS, n, dtype=operator.dtype, device=operator.device)
    for group in groups:
        for first in range(0, each, block):
            size = (n, min(block, each - first))
            probe = torch.randint(0, 2, size, generator=stream, device=operator.device)
            probe = probe.to(operator.dtype).mul_(2).sub_(1)
            group += one_draw(operator, probe).sum(0) / each
    return groups


def reference_noise(groups: Tensor) -> float:
    """N / ‖d‖; infinite where the groups show nothing but noise."""
    noise = _noise(groups)
    signal = float(groups.mean(0).square().sum()) - noise
    return (noise / signal) ** 0.5 if signal > 0 else float("inf")


def _noise(groups: Tensor) -> float:
    return float(groups.var(0).sum() / len(groups))


def compare_diagonals(estimates: Tensor, groups: Tensor) -> dict[str, Estimate]:
    """Each of ``METRICS`` with its standard error, as the module's page defines them.

    NaN where the reference is nothing but noise, if only with one of its groups left out.

    Args:
        estimates: ``[draws, n]``.
        groups: of the reference, ``[groups, n]``.

    Example:
        >>> d = torch.tensor([3.0, -4.0])
        >>> found = compare_diagonals(d[None] * 2, d.expand(4, 2))
        >>> round(found["cosine"].value, 6), round(found["relative_error"].value, 6)
        (1.0, 1.0)
    """
    estimates, groups = estimates.double(), groups.double()
    count = len(groups)
    each = _metrics(estimates, groups)
    left_out = torch.stack(
        [
            _metrics(estimates, torch.cat([groups[:g], groups[g + 1 :]])).mean(0)
            for g in range(count)
        ]
    )
    jackknife = left_out.var(0, correction=0) * (count - 1)
    spread = each.var(0) / len(each) if len(each) > 1 else torch.zeros_like(jackknife)
    error = (jackknife + spread).sqrt()
    value = torch.where(error.isfinite(), each.mean(0), torch.nan)
    values: Iterable[tuple[float, float]] = zip(value.tolist(), error.tolist(), strict=True)
    return {name: Estimate(*v) for name, v in zip(METRICS, values, strict=True)}


def _metrics(estimates: Tensor, groups: Tensor) -> Tensor:
    """``[draws, len(METRICS)]``; NaN where the reference is nothing but noise."""
    mean, noise = groups.mean(0), _noise(groups)
    signal = mean.square().sum() - noise
    signal = torch.where(signal > 0, signal, torch.nan)
    size = torch.linalg.vector_norm(estimates, dim=1)
    cosine = estimates @ mean / (size * signal.sqrt())
    error = (estimates - mean).square().sum(1) - noise
    return torch.stack([cosine, (error.clamp_min(0) / signal).sqrt()], dim=1)
