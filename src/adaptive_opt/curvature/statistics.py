"""Statistics of exact Hessians, in float64.

Which eigenvalues count as zero is stated and counted apart, because their signs are
rounding: an eigenvalue is zero when ``|λ| ≤ n ε |λ|_max`` with ε the unit round-off of
float64, the tolerance that numerical rank is usually taken with (Golub & Van Loan, §5.4).
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "COLUMNS",
    "PRECISION_COLUMNS",
    "TrajectoryStatistics",
    "condition_number",
    "hessian_statistics",
    "precision_statistics",
    "zero_tolerance",
]

COLUMNS = (
    "hessian_spectral_norm",
    "hessian_diagonal_norm",
    "hessian_gradient_norm",
    "hessian_smallest_eigenvalue",
    "hessian_eigenvalue_norm",
    "hessian_positive_eigenvalue_share",
    "hessian_zero_eigenvalue_share",
    "hessian_positive_diagonal_share",
)

PRECISION_COLUMNS = (
    "eigenvalues",
    "positive",
    "zero",
    "smallest",
    "positive_float32",
    "smallest_float32",
    "wrong_sign_float32",
    "below_resolution_float32",
)

Array = NDArray[np.float64]
HessianFn = Callable[[Tensor], tuple[Tensor, Tensor]]


def zero_tolerance(eigenvalues: Tensor) -> Tensor:
    """Below this magnitude an eigenvalue counts as zero; shape ``[...]``."""
    n = eigenvalues.shape[-1]
    return n * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().amax(-1)


def condition_number(eigenvalues: Tensor) -> Tensor:
    """``|λ|_max / |λ|_min`` over the eigenvalues that are not zero.

    Example:
        >>> condition_number(torch.tensor([0.0, -2.0, 8.0], dtype=torch.float64))
        tensor(4., dtype=torch.float64)
    """
    size = eigenvalues.abs()
    nonzero = size > zero_tolerance(eigenvalues)[..., None]
    return size.amax(-1) / size.masked_fill(~nonzero, torch.inf).amin(-1)


def hessian_statistics(hessian: Tensor, gradient: Tensor) -> Tensor:
    """The columns of :data:`COLUMNS` for a batch of Hessians.

    Args:
        hessian: ``[batch, n, n]``, float64, symmetric.
        gradient: ``[batch, n]``.

    Returns:
        ``[batch, len(COLUMNS)]``. Rows with a non-finite Hessian are NaN.
    """
    finite = torch.linalg.vector_norm(hessian, dim=(-2, -1)).isfinite()
    if not finite.all():
        hessian = torch.where(finite[:, None, None], hessian, torch.zeros_like(hessian))
    eigenvalues = torch.linalg.eigvalsh(hessian)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    size = eigenvalues.abs()
    zero = size <= zero_tolerance(eigenvalues)[:, None]
    columns = torch.stack(
        [
            size.amax(-1),
            torch.linalg.vector_norm(diagonal, dim=-1),
            torch.linalg.vector_norm(gradient, dim=-1),
            size.masked_fill(zero, torch.inf).amin(-1),
            torch.linalg.vector_norm(eigenvalues, dim=-1),
            ((eigenvalues > 0) & ~zero).double().mean(-1),
            zero.double().mean(-1),
            (diagonal > 0).double().mean(-1),
        ],
        dim=-1,
    )
    return torch.where(finite[:, None], columns, torch.nan)


def precision_statistics(double: Tensor, single: Tensor) -> Tensor:
    """What float32 makes of the eigenvalues of Hessians: the columns :data:`PRECISION_COLUMNS`.

    In float64 numbers of eigenvalues, of positive and of zero ones, and the smallest that is
    not zero by magnitude; in float32, taken as they come, the positive ones and the smallest
    by magnitude; how many, in ascending order, have another sign than in float64, zero being
    a sign of its own; and how many are zero to float32's own tolerance (:func:`zero_tolerance`),
    so that their signs are rounding.

    Args:
        double, single: the same Hessians in both precisions, ``[batch, n, n]``.

    Returns:
        ``[batch, len(PRECISION_COLUMNS)]``, float64.

    Example:
        >>> h = torch.diag(torch.tensor([-1e-9, 0.0, 1.0], dtype=torch.float64))[None]
        >>> row = precision_statistics(h, h.float())[0]
        >>> dict(zip(PRECISION_COLUMNS, row.tolist()))["below_resolution_float32"]
        2.0
    """
    exact = torch.linalg.eigvalsh(double)
    rounded = torch.linalg.eigvalsh(single).double()
    size, number = exact.abs(), exact.shape[-1]
    zero = size <= zero_tolerance(exact)[:, None]
    sign = exact.sign().masked_fill(zero, 0.0)
    resolution = number * torch.finfo(torch.float32).eps * size.amax(-1, keepdim=True)
    columns = [
        torch.full_like(exact[:, 0], number),
        (sign > 0).sum(-1),
        zero.sum(-1),
        size.masked_fill(zero, torch.inf).amin(-1),
        (rounded > 0).sum(-1),
        rounded.abs().amin(-1),
        (rounded.sign() != sign).sum(-1),
        (size <= resolution).sum(-1),
    ]
    return torch.stack([c.double() for c in columns], dim=-1)


class TrajectoryStatistics:
    """Statistics at the points of a trajectory, on idle cores, as the points come in.

    LAPACK's symmetric eigensolver takes one matrix at a time and gains nothing from threads
    at a few hundred rows, so matrices go to single-threaded workers: one fewer than there
    are cores while training goes on, and the caller's own thread too in :meth:`result`.
    On a GPU everything waits for :meth:`result`.

    Args:
        hessian_fn: maps points ``[batch, n]`` (float64) to ``(Hessians, gradients)``.
        device: where to compute.
        chunk: points at a time; default: as many Hessians as a core's cache holds at a few
            hundred parameters, or as keep a GPU busy.

    Example:
        >>> def quadratic(points):
        ...     h = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
        ...     return h.expand(len(points), 2, 2), points @ h
        >>> work = TrajectoryStatistics(quadratic, torch.device("cpu"))
        >>> work.submit(torch.ones(3, 2))
        >>> work.result()[:, 0].tolist()  # spectral norms
        [4.0, 4.0, 4.0]
    """

    def __init__(
        self, hessian_fn: HessianFn, device: torch.device, chunk: int | None = None
    ) -> None:
        self._hessian_fn, self._device = hessian_fn, device
        self._chunk = chunk or (4 if device.type == "cpu" else 256)
        self._queue: queue.SimpleQueue[tuple[int, Tensor] | None] = queue.SimpleQueue()
        self._results: dict[int, Array] = {}
        self._errors: list[Exception] = []
        self._submitted = 0
        helpers = _cores() - 1 if device.type == "cpu" else 0
        self._threads = [threading.Thread(target=self._help, daemon=True) for _ in range(helpers)]
        for thread in self._threads:
            thread.start()

    def submit(self, points: Tensor) -> None:
        """Queue points, ``[count, n]``."""
        for part in points.split(self._chunk):
            self._queue.put((self._submitted, part))
            self._submitted += 1

    def wait(self) -> Array:
        """Wait for the points so far, without ending; the same as :meth:`result` gives.

        On a GPU, where nothing is done before :meth:`result`, this does it.
        """
        while self._work(block=False):
            continue
        while self.pending:
            time.sleep(0.001)
        if self._errors:
            raise self._errors[0]
        return self._rows()

    def restore(self, rows: Array) -> None:
        """Go on from what :meth:`wait` once gave, before anything is submitted."""
        self._results[0] = rows
        self._submitted = 1

    @property
    def pending(self) -> int:
        """Chunks that are not done."""
        return self._submitted - len(self._results)

    def result(self, progress: Callable[[int], Any] = lambda _: None) -> Array:
        """Wait for all points, helping along.

        Args:
            progress: told the number of chunks done since the last call.

        Returns:
            ``[points, len(COLUMNS)]``, in the order of submission.
        """
        for _ in self._threads:
            self._queue.put(None)
        reported = 0
        while self._work(block=False):
            progress(len(self._results) - reported)
            reported = len(self._results)
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        progress(len(self._results) - reported)
        return self._rows()

    def _rows(self) -> Array:
        rows = [self._results[i] for i in range(self._submitted)]
        return np.concatenate(rows) if rows else np.empty((0, len(COLUMNS)))

    def _help(self) -> None:
        torch.set_num_threads(1)
        while self._work(block=True):
            continue

    def _work(self, *, block: bool) -> bool:
        """One chunk; False when the queue has come to an end."""
        try:
            item = self._queue.get(block=block)
        except queue.Empty:
            return False
        if item is None:
            if threading.current_thread() not in self._threads:
                self._queue.put(None)
            return False
        index, points = item
        try:
            rows = hessian_statistics(*self._hessian_fn(points.to(self._device, torch.float64)))
            self._results[index] = np.asarray(rows.cpu().numpy(), dtype=np.float64)
        except Exception as error:
            self._errors.append(error)
            self._results[index] = np.full((len(points), len(COLUMNS)), np.nan)
        return True


def _cores() -> int:
    """Cores this process may use, where the platform tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
