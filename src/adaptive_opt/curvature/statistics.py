"""Statistics of exact Hessians, in float64.

An eigenvalue counts as zero if ``|λ| ≤ n ε |λ|_max``, with ε the machine epsilon of float64: its
sign is then due to rounding. This is the usual tolerance of numerical rank (Golub & Van Loan,
§5.4). Zero eigenvalues are counted separately.
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
    """Largest magnitude that counts as zero; maps eigenvalues ``[..., n]`` to ``[...]``."""
    n = eigenvalues.shape[-1]
    return n * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().amax(-1)


def condition_number(eigenvalues: Tensor) -> Tensor:
    """``|λ|_max / |λ|_min`` over the nonzero eigenvalues; maps ``[..., n]`` to ``[...]``.

    Example:
        >>> condition_number(torch.tensor([0.0, -2.0, 8.0], dtype=torch.float64))
        tensor(4., dtype=torch.float64)
    """
    size = eigenvalues.abs()
    nonzero = size > zero_tolerance(eigenvalues)[..., None]
    return size.amax(-1) / size.masked_fill(~nonzero, torch.inf).amin(-1)


def hessian_statistics(hessian: Tensor, gradient: Tensor) -> Tensor:
    """Compute :data:`COLUMNS` for a batch of Hessians.

    Args:
        hessian: ``[batch, n, n]``, float64, symmetric.
        gradient: ``[batch, n]``.

    Returns:
        ``[batch, len(COLUMNS)]``; NaN in rows with a non-finite Hessian.
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
    """Compare eigenvalues in float32 with those in float64: compute :data:`PRECISION_COLUMNS`.

    ``eigenvalues``, ``positive`` and ``zero`` are numbers of float64 eigenvalues; ``smallest`` is
    their smallest nonzero magnitude. ``positive_float32`` and ``smallest_float32`` apply no zero
    tolerance. ``wrong_sign_float32`` counts eigenvalues, in ascending order, whose sign differs
    from float64, where zero has the sign 0. ``below_resolution_float32`` counts eigenvalues that
    are zero by the tolerance of float32 (:func:`zero_tolerance`): their signs are due to rounding.

    Args:
        double: Hessians in float64, ``[batch, n, n]``.
        single: the same Hessians in float32.

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
    """Compute Hessian statistics along a trajectory in background threads.

    LAPACK's symmetric eigensolver takes one matrix at a time, and threads do not speed it up at a
    few hundred rows. Therefore each worker thread solves its own matrices. During training there
    is one worker fewer than cores; in :meth:`result` and :meth:`wait` the caller's thread works
    too. On a GPU, nothing is computed before these calls.

    Args:
        hessian_fn: maps points ``[batch, n]`` (float64) to ``(Hessians, gradients)``.
        device: device to compute on.
        chunk: points to process at a time; default: 4 on a CPU, where their Hessians fit into a
            core's cache at a few hundred parameters; 256 on a GPU, to keep it busy.

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
        workers = _cores() - 1 if device.type == "cpu" else 0
        self._threads = [
            threading.Thread(target=self._run_worker, daemon=True) for _ in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, points: Tensor) -> None:
        """Queue points, ``[count, n]``."""
        for part in points.split(self._chunk):
            self._queue.put((self._submitted, part))
            self._submitted += 1

    def wait(self) -> Array:
        """Wait for the points submitted so far, and return what :meth:`result` would return.

        More points can be submitted afterwards.
        """
        while self._process_chunk(block=False):
            continue
        while self.pending:
            time.sleep(0.001)
        if self._errors:
            raise self._errors[0]
        return self._rows()

    def restore(self, rows: Array) -> None:
        """Continue from earlier results of :meth:`wait`; call it before :meth:`submit`."""
        self._results[0] = rows
        self._submitted = 1

    @property
    def pending(self) -> int:
        """Number of unfinished chunks."""
        return self._submitted - len(self._results)

    def result(self, progress: Callable[[int], Any] = lambda _: None) -> Array:
        """Finish all points and stop the workers.

        Args:
            progress: called with the number of chunks finished since its last call.

        Returns:
            ``[points, len(COLUMNS)]``, in the order of submission.
        """
        for _ in self._threads:
            self._queue.put(None)
        reported = 0
        while self._process_chunk(block=False):
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

    def _run_worker(self) -> None:
        torch.set_num_threads(1)
        while self._process_chunk(block=True):
            continue

    def _process_chunk(self, *, block: bool) -> bool:
        """Process one chunk; returns False if the queue is empty or closed."""
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
    """Number of cores that this process may use, or of all cores if that is unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
