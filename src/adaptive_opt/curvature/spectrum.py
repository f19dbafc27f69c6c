r"""Spectra of a symmetric linear operator A (n × n) from its products with vectors.

*Top eigenpairs* come from implicitly restarted Lanczos (ARPACK). The residual
``‖Av − λv‖ / |λ|`` bounds the relative distance of λ to an eigenvalue.

*Trace and Frobenius norm* are estimated as in Hutch++. With Q an orthonormal basis (n × q) of the
top eigenvectors, which hold most of a network's trace, P = I − QQᵀ and E[vvᵀ] = I,

    tr A   = tr(QᵀAQ) + E[vᵀ P A P v],
    ‖A‖²_F = ‖AQ‖²_F + E[‖A P v‖²].

The terms with Q are exact, so the standard error is that of the mean over the draws of v.

*Spectral density* is estimated by stochastic Lanczos quadrature. From a random unit vector, m
steps of Lanczos give nodes θ_i and weights τ_i² (squared first components of the eigenvectors of
the tridiagonal matrix), and

    φ_σ(t) = (1/n) Σ_j N(t; λ_j, σ²) ≈ E[Σ_i τ_i² N(t; θ_i, σ²)],

also a mean over independent draws with a standard error. The quadrature is exact for polynomials
of degree 2m − 1, so σ should not be far below the width of the spectrum / m.

Sources: Lehoucq, Sorensen & Yang, *ARPACK Users' Guide* (1998); Meyer et al., *Hutch++* (2021);
Ubaru, Chen & Saad, *Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature* (2017);
Papyan, *Traces of Class/Cross-Class Structure Pervade Deep Learning Spectra* (2020), whose
Lanczos iteration in curvlinops is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh
from torch import Tensor

from adaptive_opt.errors import StudyError

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "column_block",
    "density",
    "eigenpairs",
    "mean_estimate",
    "moments",
    "quadrature",
]

DENSE_SIZE = 64
"""Up to this size the full matrix is computed, which takes no more products than Lanczos."""

BLOCK_ELEMENTS = 2**22
"""Most elements of vectors to multiply at a time: some megabytes."""

WHICH = {"largest": "LA", "magnitude": "LM"}


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs in descending order of eigenvalues, or of magnitudes.

    Attributes:
        values: eigenvalues, ``[k]``, float64; NaN where the iteration did not converge.
        vectors: eigenvectors of unit norm, ``[n, k]``.
        residuals: ``‖Av − λv‖ / |λ|``, ``[k]``.
        tolerance: largest residual of a good pair.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    tolerance: float

    @property
    def good(self) -> Tensor:
        """Whether the residual is at most the tolerance, ``[k]``."""
        return self.residuals <= self.tolerance


@dataclass(frozen=True)
class Estimate:
    """An estimated value with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Density:
    """A smoothed spectral density.

    Attributes:
        grid: eigenvalues t, ``[points]``.
        value: φ_σ(t), ``[points]``; its integral is 1.
        error: standard error of the mean over draws, ``[points]``.
        width: σ.
    """

    grid: Tensor
    value: Tensor
    error: Tensor
    width: float


def eigenpairs(
    operator: Any,
    count: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-3,
    basis: int | None = None,
    max_restarts: int = 100,
    seed: int = 0,
) -> Eigenpairs:
    """Compute the top eigenpairs of a symmetric operator.

    Args:
        operator: a symmetric linear operator of curvlinops, ``[n, n]``.
        count: k, the number of pairs.
        which: ``largest``, or ``magnitude`` for the largest absolute values.
        tolerance: largest residual of a pair that is :attr:`Eigenpairs.good`.
        basis: number of Lanczos vectors in memory; default max(2k + 1, 12).
        max_restarts: maximal number of restarts; pairs that have not converged then are NaN.
        seed: seed of the start vector.

    Raises:
        StudyError: ``count`` is not between 1 and n.
    """
    n = operator.shape[0]
    if not 1 <= count <= n:
        raise StudyError(
            f"{count} eigenpairs were requested, but the matrix has {n:,} rows; "
            f"choose a number from 1 to {n:,}"
        )
    if n <= DENSE_SIZE or count > n // 2:
        values, vectors = _dense(operator, count, which)
    else:
        size = min(n, basis or max(2 * count + 1, 12))
        values, vectors = _arpack(operator, count, which, tolerance, size, max_restarts, seed)
    products = operator @ vectors
    residuals = torch.linalg.vector_norm(products - vectors * values.to(vectors), dim=0)
    residuals = residuals.double().cpu()
    exact = residuals == 0  # eigenvalues of a zero matrix are zero; avoid 0 / 0
    relative = torch.where(exact, 0.0, residuals / values.abs())
    return Eigenpairs(values, vectors, relative, tolerance)


def _dense(operator: Any, count: int, which: str) -> tuple[Tensor, Tensor]:
    n = operator.shape[0]
    eye = torch.eye(n, dtype=operator.dtype, device=operator.device)
    matrix = operator @ eye
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    order = (values.abs() if which == "magnitude" else values).argsort(descending=True)[:count]
    return values[order].double().cpu(), vectors[:, order]


def _arpack(
    operator: Any, count: int, which: str, tolerance: float, size: int, restarts: int, seed: int
) -> tuple[Tensor, Tensor]:
    n = operator.shape[0]
    precision = np.float64 if operator.dtype == torch.float64 else np.float32
    start = np.random.default_rng(seed).standard_normal(n).astype(precision)
    try:
        values, vectors = eigsh(
            operator.to_scipy(dtype=np.dtype(precision)),
            k=count,
            which=WHICH[which],
            v0=start,
            ncv=size,
            tol=tolerance / 10,
            maxiter=restarts,
        )
    except ArpackNoConvergence as unfinished:
        values, vectors = unfinished.eigenvalues, unfinished.eigenvectors
    except ArpackError:
        image = operator @ torch.as_tensor(start, device=operator.device)
        if image.any() or not image.isfinite().all():
            raise
        values, vectors = np.zeros(count, precision), np.eye(n, count, dtype=precision)
    key = np.abs(values) if which == "magnitude" else values
    order = np.argsort(-key)
    missing = count - len(order)
    found = torch.from_numpy(
        np.pad(values[order].astype(np.float64), (0, missing), constant_values=np.nan)
    )
    columns = np.pad(vectors[:, order], ((0, 0), (0, missing)), constant_values=np.nan)
    return found, torch.as_tensor(columns, dtype=operator.dtype, device=operator.device)


def moments(
    operator: Any, draws: int, *, basis: Tensor | None = None, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Estimate trace and Frobenius norm with standard errors, as defined in :mod:`.spectrum`.

    Args:
        operator: A, a symmetric linear operator ``[n, n]``.
        draws: number of Rademacher vectors, at least 2.
        basis: Q, ``[n, q]``, with orthonormal columns; those that are not finite are ignored.
        seed: seed of the draws.
    """
    stream = torch.Generator(operator.device).manual_seed(seed)
    n, like = operator.shape[0], {"dtype": operator.dtype, "device": operator.device}
    if basis is None:
        basis = torch.zeros(n, 0, **like)
    basis = basis[:, basis.isfinite().all(0)]
    trace_inside = square_inside = 0.0
    if basis.shape[1]:
        image = operator @ basis
        trace_inside = float((basis * image).sum(dtype=torch.float64))
        square_inside = float(image.double().square().sum())
    traces, squares = [], []
    block = column_block(operator)
    for first in range(0, draws, block):
        size = (n, min(block, draws - first))
        v = torch.randint(0, 2, size, generator=stream, **like).mul_(2).sub_(1)
        v -= basis @ (basis.T @ v)
        image = operator @ v
        traces += (v * image).sum(0, dtype=torch.float64).tolist()
        squares += image.square().sum(0, dtype=torch.float64).tolist()
    trace, square = mean_estimate(traces), mean_estimate(squares)
    norm = (square_inside + square.value) ** 0.5
    error = 0.5 * square.error / norm if norm else 0.0  # delta method for the square root
    return Estimate(trace_inside + trace.value, trace.error), Estimate(norm, error)


def column_block(operator: Any) -> int:
    """Number of vectors to multiply at a time, because they share forward and backward passes."""
    return int(max(1, min(8, BLOCK_ELEMENTS // operator.shape[0])))


def mean_estimate(values: list[float]) -> Estimate:
    """Mean and standard error of independent draws, at least 2."""
    array = np.asarray(values)
    return Estimate(float(array.mean()), float(array.std(ddof=1) / len(array) ** 0.5))


def density(
    operator: Any,
    *,
    steps: int = 40,
    draws: int = 4,
    points: int = 400,
    width: float | None = None,
    grid: Tensor | None = None,
    seed: int = 0,
) -> Density:
    """Estimate the smoothed spectral density, as defined in :mod:`.spectrum`.

    Args:
        operator: A, a symmetric linear operator ``[n, n]``.
        steps: m, the number of Lanczos steps.
        draws: number of independent start vectors, at least 2.
        points: number of grid points.
        width: σ; default: width of the spectrum / (2 m).
        grid: eigenvalues t to evaluate at; default: range of the spectrum, and 4 σ beyond it.
        seed: seed of the draws.

    Raises:
        StudyError: the operator is zero, or a product is not finite.
    """
    steps = min(steps, operator.shape[0])
    devices = [operator.device] if operator.device.type == "cuda" else []
    found = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for _ in range(draws):
            nodes, vectors = fast_lanczos(operator, steps)
            found.append((nodes.double().cpu(), vectors[0].double().cpu().square()))
    nodes, weights = (torch.stack(parts) for parts in zip(*found, strict=True))
    return quadrature(nodes, weights, steps, points=points, width=width, grid=grid)


def quadrature(
    nodes: Tensor,
    weights: Tensor,
    steps: int,
    *,
    points: int = 400,
    width: float | None = None,
    grid: Tensor | None = None,
) -> Density:
    """Compute the density from nodes and weights of every draw.

    Args:
        nodes: θ_i, ``[draws, nodes]``.
        weights: τ_i², ``[draws, nodes]``; the sum of each draw is 1.
        steps: m, the number of Lanczos steps.
        points, width, grid: see :func:`density`.

    Raises:
        StudyError: a node is not finite.
    """
    if not nodes.isfinite().all():
        raise StudyError(
            "the spectral density cannot be computed, because the matrix is zero or not finite"
        )
    low, high = float(nodes.min()), float(nodes.max())
    width = width or max((high - low) / (2 * steps), torch.finfo(torch.float32).tiny)
    if grid is None:
        grid = torch.linspace(low - 4 * width, high + 4 * width, points, dtype=torch.float64)
    each = torch.stack([_smooth(grid, n, w, width) for n, w in zip(nodes, weights, strict=True)])
    return Density(grid, each.mean(0), each.std(0) / len(each) ** 0.5, width)


def _smooth(grid: Tensor, nodes: Tensor, weights: Tensor, width: float) -> Tensor:
    """``Σ_i w_i N(t; θ_i, σ²)`` on the grid."""
    distance = (grid[:, None] - nodes) / width
    smooth: Tensor = (torch.exp(-0.5 * distance**2) @ weights) / (width * (2 * torch.pi) ** 0.5)
    return smooth
