r"""Eigenpairs, trace, Frobenius norm and density from the products of one block Lanczos iteration.

From a block of b Rademacher vectors V = Q₁R (n × b), step k multiplies A (n × n, symmetric) with
the block Q_k and orthogonalises the image against all blocks so far, twice. With Q = [Q₁ … Q_m],

    A Q = Q T + Q_{m+1} B E_mᵀ,    T = QᵀAQ (mb × mb),

so that m·b products serve for everything:

*Eigenpairs*: T s = θ s gives θ and Qs, with residual ``‖A Q s − θ Q s‖ = ‖B E_mᵀ s‖``, known
without a product.

*Density*: with R e_j the coefficients of the j-th start vector, ‖V_j‖² = n, the quadrature of
:mod:`.spectrum` has nodes θ_i and weights ``(s_iᵀ E₁ R e_j)² / n``; the start vectors are its
draws.

*Trace and Frobenius norm*: exact on the span of Q, ``tr(QᵀAQ) = tr T``,
``‖AQ‖²_F = ‖T‖²_F + ‖B‖²_F``, and from fresh Rademacher vectors on the rest, as in
:func:`.spectrum.moments`.

Restarted Lanczos needs less memory, as it holds a dozen vectors and not all m·b.

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
    """The iteration; everything it gives may be asked for after any step.

    Args:
        operator: A, of curvlinops' kind, symmetric.
        block: b, start vectors.
        seed: of them.

    Raises:
        StudyError: ``block`` is not between 1 and the number of rows.

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
                f"a block of {block} vectors was asked for, of a matrix with {n:,} rows; "
                f"ask for 1 to {n:,}"
            )
        self._stream = torch.Generator(operator.device).manual_seed(seed)
        first, self._start = _orthonormal(self._signs(block))
        self._basis: list[Tensor] = []
        self._next = first
        self._off = torch.zeros(block, block, dtype=torch.float64)
        self._projected = torch.zeros(0, 0, dtype=torch.float64)
        self.exhausted = False
        """Whether the vectors so far span an invariant subspace: there is no further step."""

    def _signs(self, count: int) -> Tensor:
        like = {"dtype": self._operator.dtype, "device": self._operator.device}
        size = (self._operator.shape[0], count)
        return torch.randint(0, 2, size, generator=self._stream, **like).mul_(2).sub_(1)

    @property
    def size(self) -> int:
        """Vectors in the basis: the products made for it."""
        return len(self._projected)

    def step(self) -> None:
        """One more block: b products.

        Raises:
            StudyError: a product is not finite.
        """
        if self.exhausted:
            return
        block, old = self._next.shape[1], self.size
        self._basis.append(self._next)
        image = self._operator @ self._next
        if not image.isfinite().all():
            raise StudyError("a product with the matrix is not finite, so it has no spectrum")
        scale = float(torch.linalg.vector_norm(image))
        coefficients = self._project_out(image)
        coefficients += self._project_out(image)  # what rounding left
        grown = torch.zeros(old + block, old + block, dtype=torch.float64)
        grown[:old, :old] = self._projected
        grown[:, old:] = coefficients
        grown[old:, :old] = coefficients[:old].T
        grown[old:, old:] = (coefficients[old:] + coefficients[old:].T) / 2
        self._projected = grown
        self._next, self._off = _orthonormal(image)
        self._project_out(self._next)  # directions in which the image had all but vanished
        self._next, _ = _orthonormal(self._next)
        epsilon = torch.finfo(image.dtype).eps
        gone = float(torch.linalg.vector_norm(self._off)) <= 10 * epsilon * scale
        self.exhausted = gone or self.size + block > self._operator.shape[0]

    def _project_out(self, vectors: Tensor) -> Tensor:
        """Take the basis out, in place; the coefficients, float64."""
        found = []
        for part in self._basis:
            inner = part.T @ vectors
            for column, weights in zip(vectors.T, inner.T, strict=True):
                column.sub_(part @ weights)
            found.append(inner.double().cpu())
        return torch.cat(found)

    def _ritz(self) -> tuple[Tensor, Tensor]:
        """All θ, ascending, and s."""
        if not self.size:
            raise StudyError("no step of Lanczos was made, so there is nothing to tell")
        values, vectors = torch.linalg.eigh(self._projected)
        return values, vectors

    def eigenvalues(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest, descending, and residuals ``‖Av − λv‖ / |λ|``, ``[count]`` each.

        Raises:
            StudyError: more than there are vectors so far.
        """
        if not 1 <= count <= max(self.size, 1):
            raise StudyError(
                f"{count} eigenvalues were asked for, of a basis of {self.size} vectors; "
                "take more steps or a larger block"
            )
        values, vectors = self._ritz()
        chosen = values.flip(0)[:count]
        last = vectors.flip(1)[-self._off.shape[1] :, :count]
        residuals = torch.linalg.vector_norm(self._off @ last, dim=0)
        return chosen, torch.where(residuals == 0, 0.0, residuals / chosen.abs())

    def eigenpairs(self, count: int, tolerance: float = 1e-3) -> Eigenpairs:
        """The same with the vectors, ``[n, count]``; see :class:`.spectrum.Eigenpairs`."""
        values, residuals = self.eigenvalues(count)
        weights = self._ritz()[1].flip(1)[:, :count].to(self._next)
        vectors = torch.zeros(len(self._next), count).to(self._next)
        for part, mine in zip(self._basis, weights.split(self._off.shape[1]), strict=True):
            for column, w in zip(vectors.T, mine.T, strict=True):
                column.add_(part @ w)
        return Eigenpairs(values, vectors, residuals, tolerance)

    def density(self, points: int = 400, width: float | None = None) -> Density:
        """The smoothed spectral density; see :class:`.spectrum.Density`.

        Args:
            points: of the grid.
            width: σ; default the spectrum's width / (2 m).
        """
        values, vectors = self._ritz()
        weights = (self._start.T @ vectors[: len(self._start)]).square() / len(self._next)
        steps = len(self._basis)
        return quadrature(values.expand_as(weights), weights, steps, points=points, width=width)

    def moments(self, draws: int) -> tuple[Estimate, Estimate]:
        """Trace and Frobenius norm, with standard errors, by so many further products.

        Args:
            draws: of fresh vectors, at least 2.
        """
        inside = float(self._projected.trace())
        square_inside = float(self._projected.square().sum() + self._off.square().sum())
        traces: list[float] = []
        squares: list[float] = []
        block = max(column_block(self._operator), len(self._start))
        for first in range(0, draws, block):
            v = self._signs(min(block, draws - first))
            self._project_out(v)
            image = self._operator @ v
            traces += [float(a @ b) for a, b in zip(v.T, image.T, strict=True)]
            squares += [float(a @ a) for a in image.T]
        trace, square = mean_estimate(traces), mean_estimate(squares)
        norm = (square_inside + square.value) ** 0.5
        half = 0.5 * square.error / norm if norm else 0.0  # of a root: by its derivative
        return Estimate(inside + trace.value, trace.error), Estimate(norm, half)


def _orthonormal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Q and R, float64, of ``[n, b]``."""
    q, r = torch.linalg.qr(vectors)
    return q, r.double().cpu()
