"""Rahimi–Recht functions: linear regression targets with a prescribed condition number.

A function is a matrix A, inputs X ~ N(0, 1), targets Y = X Aᵀ exactly, and one set of
initial weights. Source: Rahimi & Recht, *Reflections on random kitchen sinks* (2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptive_opt.curvature import deep_linear
from adaptive_opt.curvature.statistics import condition_number, zero_tolerance
from adaptive_opt.errors import StudyError

from .digest import function_digest
from .function_files import read_function_file

__all__ = [
    "RRFunction",
    "check_dimensions",
    "draw_weights",
    "function_report",
    "global_minimum",
    "import_function",
    "synthesise",
]

MAX_DRAWS = 200_000  # ten times what the published condition numbers need


@dataclass(frozen=True)
class RRFunction:
    """A Rahimi–Recht function.

    Attributes:
        target: A, ``[y_dim, x_dim]``, float64.
        inputs: X, ``[samples, x_dim]``, float64.
        weights: initial weights ``W_1 … W_L``, ``[d_out, d_in]`` each, float64.
    """

    target: Tensor
    inputs: Tensor
    weights: tuple[Tensor, ...]

    @property
    def dims(self) -> list[int]:
        """Layer widths ``[x_dim, hidden, …, y_dim]``."""
        return [self.target.shape[1], *(w.shape[0] for w in self.weights)]

    @property
    def gram(self) -> Tensor:
        """``XᵀX / samples``; the full-batch loss depends on X only through it."""
        return self.inputs.T @ self.inputs / len(self.inputs)

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name: ``A``, ``X``, ``W1`` … ``WL``."""
        named = {f"W{i}": w for i, w in enumerate(self.weights, start=1)}
        return {"A": self.target, "X": self.inputs, **named}

    def digest(self) -> str:
        """Hash of A, X and the initial weights."""
        return function_digest(self.to_tensors())

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> RRFunction:
        """Inverse of :meth:`to_tensors`."""
        layers = len(tensors) - 2
        weights = tuple(tensors[f"W{i}"] for i in range(1, layers + 1))
        return cls(tensors["A"], tensors["X"], weights)


def draw_weights(dims: list[int], generator: torch.Generator) -> list[Tensor]:
    """Standard normal weights for the given layer widths."""
    shapes = zip(dims[1:], dims[:-1], strict=True)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]


def check_dimensions(condition: float, x_dim: int, hidden_dim: int, y_dim: int) -> None:
    """Check that a function with this condition number and these dimensions exists.

    Raises:
        StudyError: it does not exist; the message says why.
    """
    rank = min(x_dim, y_dim)
    if condition < 1:
        raise StudyError(f"condition number {condition:g} is below 1, the smallest of any matrix")
    if rank == 1 and condition != 1:
        raise StudyError(
            f"a {y_dim}×{x_dim} matrix has condition number 1, never {condition:g}; "
            "x_dim and y_dim must be at least 2"
        )
    if hidden_dim < rank:
        raise StudyError(
            f"hidden_dim {hidden_dim} is below min(x_dim, y_dim) = {rank}, "
            "so no network can fit the targets; raise it"
        )


def synthesise(
    source: str,
    *,
    condition: float,
    x_dim: int,
    hidden_dim: int,
    y_dim: int,
    layers: int,
    samples: int,
    seed: int,
) -> RRFunction:
    """Draw a function whose A has a prescribed condition number.

    Args:
        source: ``"singular_values"``: A = U diag(s) Vᵀ with Haar-random U, V and s spaced
            evenly in logarithm from ``condition`` down to 1, so that cond(A) = condition
            to rounding. ``"row_scaled"``: the published method,
            A = diag(linspace(1, condition, y_dim)) · U[0,1]^{y_dim × x_dim}, redrawn
            until cond(A) is within 5 % of ``condition``.
        condition: condition number of A, ≥ 1.
        x_dim, hidden_dim, y_dim: widths of the input, hidden and output layers.
        layers: number of weight matrices.
        samples: number of inputs.
        seed: of all random draws.

    Raises:
        StudyError: no such function exists, or too many draws miss the condition number.
    """
    check_dimensions(condition, x_dim, hidden_dim, y_dim)
    generator = torch.Generator().manual_seed(seed)
    if source == "singular_values":
        target = _by_singular_values(condition, x_dim, y_dim, generator)
    else:
        target = _by_row_scaling(condition, x_dim, y_dim, generator)
    inputs = torch.randn(samples, x_dim, generator=generator, dtype=torch.float64)
    dims = [x_dim, *[hidden_dim] * (layers - 1), y_dim]
    return RRFunction(target, inputs, tuple(draw_weights(dims, generator)))


def _by_singular_values(condition: float, x_dim: int, y_dim: int, g: torch.Generator) -> Tensor:
    rank = min(x_dim, y_dim)
    u = torch.linalg.qr(torch.randn(y_dim, rank, generator=g, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(x_dim, rank, generator=g, dtype=torch.float64)).Q
    exponents = torch.linspace(1, 0, rank, dtype=torch.float64)
    target: Tensor = u @ torch.diag(condition**exponents) @ v.T
    return target


def _by_row_scaling(condition: float, x_dim: int, y_dim: int, g: torch.Generator) -> Tensor:
    scale = torch.linspace(1, condition, y_dim, dtype=torch.float64)[:, None]
    batch = 1000
    for _ in range(MAX_DRAWS // batch):
        draws = scale * torch.rand(batch, y_dim, x_dim, generator=g, dtype=torch.float64)
        conditions = torch.linalg.cond(draws)
        hits = ((conditions / condition - 1).abs() <= 0.05).nonzero()
        if len(hits):
            return draws[int(hits[0])]
    raise StudyError(
        f"{MAX_DRAWS:,} row-scaled {y_dim}×{x_dim} matrices all miss condition number "
        f"{condition:g} by more than 5 %; use source: singular_values, or other dimensions"
    )


def import_function(path: str, layers: int, hidden_dim: int, seed: int) -> RRFunction:
    """Read a function from a file; draw initial weights if the file has none.

    Args:
        path: an ``.npz`` or ``.pth`` file.
        layers, hidden_dim, seed: of the drawn weights; unused if the file has weights.

    Raises:
        StudyError: the file cannot be read, A is rank-deficient, or a layer is too narrow.
    """
    a, x, weights = read_function_file(path)
    if weights:
        tensors = [torch.from_numpy(w) for w in weights]
    else:
        dims = [x.shape[1], *[hidden_dim] * (layers - 1), a.shape[0]]
        tensors = draw_weights(dims, torch.Generator().manual_seed(seed))
    target = torch.from_numpy(a)
    rank = int(torch.linalg.matrix_rank(target))
    if rank < min(a.shape):
        raise StudyError(
            f"function file {path}: A has rank {rank}; use an A of full rank {min(a.shape)}"
        )
    if min(w.shape[0] for w in tensors[:-1]) < rank:
        raise StudyError(
            f"function file {path}: a hidden layer narrower than {rank} cannot represent A"
        )
    return RRFunction(target, torch.from_numpy(x), tuple(tensors))


def global_minimum(function: RRFunction) -> list[Tensor]:
    """Balanced weights whose product is A; each ``W_i`` has singular values ``s^{1/L}``."""
    dims, layers = function.dims, len(function.weights)
    u, s, vt = torch.linalg.svd(function.target, full_matrices=False)
    root = torch.diag(s ** (1 / layers))
    weights = [torch.zeros(o, i, dtype=s.dtype) for o, i in zip(dims[1:], dims[:-1], strict=True)]
    rank = len(s)
    weights[0][:rank, :] = root @ vt
    for w in weights[1:-1]:
        w[:rank, :rank] = root
    weights[-1][:, :rank] = u @ root
    return weights


def function_report(function: RRFunction, loss: str) -> dict[str, Any]:
    """Condition numbers of A and of the Hessian, with the spectra that they come from.

    The Hessian's condition number excludes zero eigenvalues; the report counts them. The Hessian
    at the initial weights is that of the task's loss. At a global minimum it is that of the mean
    squared error, because the root's curvature is unbounded there.

    Args:
        function: the function.
        loss: the task's loss, ``"rmse"`` or ``"mse"``.
    """
    singular_values = torch.linalg.svdvals(function.target)
    start = deep_linear.hessian(function.weights, function.target, function.gram, loss)
    weights = global_minimum(function)
    minimum = deep_linear.hessian(weights, function.target, function.gram, "mse")
    report: dict[str, Any] = {
        "condition_number": float(singular_values[0] / singular_values[-1]),
        "singular_values": singular_values.tolist(),
        "dims": function.dims,
        "samples": len(function.inputs),
        "parameters": sum(w.numel() for w in function.weights),
    }
    for name, hessian, kind in (("start", start, loss), ("minimum", minimum, "mse")):
        eigenvalues = torch.linalg.eigvalsh(hessian)
        report[f"hessian_at_{name}"] = {
            "loss": kind,
            "condition_number": float(condition_number(eigenvalues)),
            "zero_eigenvalues": int((eigenvalues.abs() <= zero_tolerance(eigenvalues)).sum()),
            "negative_eigenvalues": int((eigenvalues < -zero_tolerance(eigenvalues)).sum()),
            "zero_tolerance": float(zero_tolerance(eigenvalues)),
            "eigenvalues": eigenvalues.tolist(),
        }
    return report
