r"""Compare diagonal estimates with a stochastic reference, where the exact diagonal is unknown.

The reference is the mean d̂ of v ⊙ Hv over many Rademacher vectors v, stored as G group means d̂_g.
Their spread gives the noise N² = Σ_i Var(d̂_i), with E‖d̂‖² = ‖d‖² + N². For R independent
estimates a_r, two metrics correct for this noise:

    cosine            mean_r ⟨a_r, d̂⟩ / (‖a_r‖ √(‖d̂‖² − N²))
    relative_error    mean_r √((‖a_r − d̂‖² − N²) / (‖d̂‖² − N²))

The standard error combines the spread over r and the jackknife over groups. Estimates are compared
with d, not with its absolute value, so a denominator of absolute values disagrees wherever d is
negative. Absolute values cannot be estimated equally well, because noise enlarges those of small
entries. N / ‖d‖ is the *reference noise*.

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
    """``v ⊙ Hv`` for probes ``[n, draws]``; returns ``[draws, n]``."""
    product: Tensor = operator @ probe
    return (probe * product).T


def diagonal_groups(operator: Any, draws: int, seed: int = 0) -> Tensor:
    """Means of v ⊙ Hv over groups of Rademacher draws of equal size, ``[GROUPS, n]``.

    Args:
        operator: H, a linear operator ``[n, n]``.
        draws: total number of draws, rounded up to a multiple of ``GROUPS`` (8).
        seed: seed of the draws.
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
    """N / ‖d‖; infinite if the noise exceeds the signal."""
    noise = _noise(groups)
    signal = float(groups.mean(0).square().sum()) - noise
    return (noise / signal) ** 0.5 if signal > 0 else float("inf")


def _noise(groups: Tensor) -> float:
    return float(groups.var(0).sum() / len(groups))


def compare_diagonals(estimates: Tensor, groups: Tensor) -> dict[str, Estimate]:
    """Compute ``METRICS``, defined in :mod:`.diagonal`, with standard errors.

    Args:
        estimates: ``[draws, n]``.
        groups: group means of the reference, ``[groups, n]``.

    Returns:
        An estimate for each metric; NaN if the noise of the reference exceeds its signal, also if
        only with one of its groups left out.

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
    """``[draws, len(METRICS)]``; NaN if the noise of the reference exceeds its signal."""
    mean, noise = groups.mean(0), _noise(groups)
    signal = mean.square().sum() - noise
    signal = torch.where(signal > 0, signal, torch.nan)
    size = torch.linalg.vector_norm(estimates, dim=1)
    cosine = estimates @ mean / (size * signal.sqrt())
    error = (estimates - mean).square().sum(1) - noise
    return torch.stack([cosine, (error.clamp_min(0) / signal).sqrt()], dim=1)
