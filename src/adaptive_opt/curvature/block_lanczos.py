r"""Block Lanczos: eigenpairs, trace, Frobenius norm and spectral density from one iteration.

The iteration starts from a block of b Rademacher vectors V = Q₁R (n × b). Step k multiplies the
symmetric matrix A (n × n) by the block Q_k, and orthogonalises the result twice against all
blocks so far. With Q = [Q₁ … Q_m],

    A Q = Q T + Q_{m+1} B E_mᵀ,    T = QᵀAQ (mb × mb),

so the same m·b products give:

*Eigenpairs*: T s = θ s gives eigenvalues θ and vectors Qs. Their residual
``‖A Q s − θ Q s‖ = ‖B E_mᵀ s‖`` needs no further product.

*Density*: R e_j holds the coefficients of the j-th start vector, and ‖V_j‖² = n. The quadrature
of :mod:`.spectrum` has nodes θ_i and weights ``(s_iᵀ E₁ R e_j)² / n``; each start vector is a
draw.

*Trace and Frobenius norm*: exact on the span of Q, ``tr(QᵀAQ) = tr T`` and
``‖AQ‖²_F = ‖T‖²_F + ‖B‖²_F``; on the complement, estimated from new Rademacher vectors as in
:func:`.spectrum.moments`.

The iteration keeps all m·b vectors. Restarted Lanczos (:func:`.spectrum.eigenpairs`) keeps about
a dozen.

Source: Golub & Underwood, *The Block Lanczos Method for Computing Eigenvalues* (1977); Saad,
*Numerical Methods for Large Eigenvalue Problems* (2011), chapter 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptive_opt.errors import StudyError

from .spectrum import Density, Eigenpairs, Estimate, column_block, mean_estimate, quadrature

__all__ = ["BlockLanczos"]


class BlockLanczos:
    """Block Lanczos iteration; its results are available after each step.

    Args:
        operator: A, a symmetric linear operator of curvlinops, ``[n, n]``.
        block: b, the number of start vectors.
        seed: seed of the random vectors.

    Raises:
        StudyError: ``block`` is not between 1 and n.

    Example:
        >>> from torch.nn import Linear
        >>> from adaptive_opt.curvature.operators import NetworkLoss
        >>> loss = NetworkLoss(Linear(1, 2, bias=False), [(torch.ones(1, 1), torch.tensor([0]))])
        >>> loss.set(torch.zeros(2))  # H = ½ [[½, −½], [−½, ½]]
        >>> lanczos = BlockLanczos(loss.operator("hessian"), block=2)
        >>> lanczos.step()
        >>> round(float(lanczos.eigenvalues(1)[0]), 4)
        0.5
    """

    def __init__(self, operator: Any, block: int = 2, seed: int = 0) -> None:
        self._operator = operator
        n = operator.shape[0]
        if not 1 <= block <= n:
            raise StudyError(
                f"the block size is {block}, but the matrix has {n:,} rows; "
                f"choose a size from 1 to {n:,}"
            )
        self._stream = torch.Generator(operator.device).manual_seed(seed)
        first, self._start_coefficients = _orthonormal(self._rademacher(block))
        self._basis: list[Tensor] = []
        self._next_block = first
        self._coupling = torch.zeros(block, block, dtype=torch.float64)
        self._projected = torch.zeros(0, 0, dtype=torch.float64)
        self.exhausted = False
        """Whether no further step is possible: the basis spans an invariant subspace, or n is
        too small for another block."""

    def _rademacher(self, count: int) -> Tensor:
        like = {"dtype": self._operator.dtype, "device": self._operator.device}
        size = (self._operator.shape[0], count)
        return torch.randint(0, 2, size, generator=self._stream, **like).mul_(2).sub_(1)

    @property
    def size(self) -> int:
        """Number of vectors in the basis, and of products computed for it."""
        return len(self._projected)

    def step(self) -> None:
        """Add a block to the basis, with b products; does nothing if :attr:`exhausted`.

        Raises:
            StudyError: a product is not finite.
        """
        if self.exhausted:
            return
        block, old = self._next_block.shape[1], self.size
        self._basis.append(self._next_block)
        image = self._operator @ self._next_block
        if not image.isfinite().all():
            raise StudyError("a product with the matrix is not finite, so it has no spectrum")
        scale = float(torch.linalg.vector_norm(image))
        coefficients = self._project_out(image)
        coefficients += self._project_out(image)  # again, because of rounding
        grown = torch.zeros(old + block, old + block, dtype=torch.float64)
        grown[:old, :old] = self._projected
        grown[:, old:] = coefficients
        grown[old:, :old] = coefficients[:old].T
        grown[old:, old:] = (coefficients[old:] + coefficients[old:].T) / 2
        self._projected = grown
        self._next_block, self._coupling = _orthonormal(image)
        self._project_out(self._next_block)  # QR amplifies rounding in nearly zero directions
        self._next_block, _ = _orthonormal(self._next_block)
        epsilon = torch.finfo(image.dtype).eps
        converged = float(torch.linalg.vector_norm(self._coupling)) <= 10 * epsilon * scale
        self.exhausted = converged or self.size + block > self._operator.shape[0]

    def _project_out(self, vectors: Tensor) -> Tensor:
        """Orthogonalise vectors against the basis, in place; returns the coefficients, float64."""
        found = []
        for part in self._basis:
            inner = part.T @ vectors
            for column, weights in zip(vectors.T, inner.T, strict=True):
                column.sub_(part @ weights)
            found.append(inner.double().cpu())
        return torch.cat(found)

    def _ritz_pairs(self) -> tuple[Tensor, Tensor]:
        """All eigenvalues θ of T, ascending, and eigenvectors s."""
        if not self.size:
            raise StudyError("the Lanczos basis is empty; call step() first")
        values, vectors = torch.linalg.eigh(self._projected)
        return values, vectors

    def eigenvalues(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest eigenvalues, descending, and their residuals ``‖Av − λv‖ / |λ|``.

        Returns:
            Two tensors ``[count]``, float64.

        Raises:
            StudyError: ``count`` exceeds the number of vectors in the basis.
        """
        if not 1 <= count <= max(self.size, 1):
            raise StudyError(
                f"{count} eigenvalues were requested, but the basis has {self.size} vectors; "
                "take more steps or a larger block"
            )
        values, vectors = self._ritz_pairs()
        chosen = values.flip(0)[:count]
        last = vectors.flip(1)[-self._coupling.shape[1] :, :count]
        residuals = torch.linalg.vector_norm(self._coupling @ last, dim=0)
        return chosen, torch.where(residuals == 0, 0.0, residuals / chosen.abs())

    def eigenpairs(self, count: int, tolerance: float = 1e-3) -> Eigenpairs:
        """The largest eigenvalues with eigenvectors; see :func:`.spectrum.eigenpairs`."""
        values, residuals = self.eigenvalues(count)
        weights = self._ritz_pairs()[1].flip(1)[:, :count].to(self._next_block)
        vectors = torch.zeros(len(self._next_block), count).to(self._next_block)
        for part, mine in zip(self._basis, weights.split(self._coupling.shape[1]), strict=True):
            for column, w in zip(vectors.T, mine.T, strict=True):
                column.add_(part @ w)
        return Eigenpairs(values, vectors, residuals, tolerance)

    def density(self, points: int = 400, width: float | None = None) -> Density:
        """The smoothed spectral density; see :func:`.spectrum.density`."""
        values, vectors = self._ritz_pairs()
        weights = (
            self._start_coefficients.T @ vectors[: len(self._start_coefficients)]
        ).square() / len(self._next_block)
        steps = len(self._basis)
        return quadrature(values.expand_as(weights), weights, steps, points=points, width=width)

    def moments(self, draws: int) -> tuple[Estimate, Estimate]:
        """Estimate trace and Frobenius norm, with standard errors.

        Args:
            draws: number of new random vectors, each with a product; at least 2.
        """
        inside = float(self._projected.trace())
        square_inside = float(self._projected.square().sum() + self._coupling.square().sum())
        traces: list[float] = []
        squares: list[float] = []
        block = max(column_block(self._operator), len(self._start_coefficients))
        for first in range(0, draws, block):
            v = self._rademacher(min(block, draws - first))
            self._project_out(v)
            image = self._operator @ v
            traces += [float(a @ b) for a, b in zip(v.T, image.T, strict=True)]
            squares += [float(a @ a) for a in image.T]
        trace, square = mean_estimate(traces), mean_estimate(squares)
        norm = (square_inside + square.value) ** 0.5
        error = 0.5 * square.error / norm if norm else 0.0  # delta method for the square root
        return Estimate(inside + trace.value, trace.error), Estimate(norm, error)


def _orthonormal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """QR decomposition of ``[n, b]``; R is float64, on the CPU."""
    q, r = torch.linalg.qr(vectors)
    return q, r.double().cpu()
