"""Statistics of Hessians against NumPy, and their computation in background threads."""

import numpy as np
import pytest
import torch

from adaptive_opt.curvature.statistics import (
    COLUMNS,
    PRECISION_COLUMNS,
    TrajectoryStatistics,
    condition_number,
    hessian_statistics,
    precision_statistics,
    zero_tolerance,
)


def symmetric(n=20, count=3, seed=0):
    a = np.random.default_rng(seed).normal(size=(count, n, n))
    h = a + a.transpose(0, 2, 1)
    h[:, 0, :] = h[:, :, 0] = 0  # one exact zero eigenvalue
    return h


def test_columns_equal_their_definitions():
    h = symmetric()
    g = np.random.default_rng(1).normal(size=(3, 20))
    found = hessian_statistics(torch.tensor(h), torch.tensor(g)).numpy()
    for row, matrix, gradient in zip(found, h, g, strict=True):
        values = np.linalg.eigvalsh(matrix)
        nonzero = values[np.abs(values) > 1e-9]
        expected = {
            "hessian_spectral_norm": np.abs(values).max(),
            "hessian_diagonal_norm": np.linalg.norm(np.diag(matrix)),
            "hessian_gradient_norm": np.linalg.norm(gradient),
            "hessian_smallest_eigenvalue": np.abs(nonzero).min(),
            "hessian_eigenvalue_norm": np.linalg.norm(matrix),
            "hessian_positive_eigenvalue_share": (nonzero > 0).sum() / 20,
            "hessian_zero_eigenvalue_share": 1 / 20,
            "hessian_positive_diagonal_share": (np.diag(matrix) > 0).mean(),
        }
        np.testing.assert_allclose(row, [expected[c] for c in COLUMNS], rtol=1e-9)


def test_non_finite_hessian_gives_nan_in_its_own_row_only():
    h = torch.tensor(symmetric())
    h[1, 3, 4] = torch.inf
    found = hessian_statistics(h, torch.ones(3, 20, dtype=torch.float64))
    assert bool(found[1].isnan().all())
    assert bool(found[[0, 2]].isfinite().all())


def test_zero_tolerance_is_n_epsilon_times_the_largest():
    values = torch.tensor([-4.0, 1.0, 0.0], dtype=torch.float64)
    assert float(zero_tolerance(values)) == 3 * np.finfo(np.float64).eps * 4
    assert float(condition_number(values)) == 4.0


def quadratic(points):
    h = torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    return h * points[:, :1, None], points


@pytest.mark.parametrize("count", [0, 1, 7, 50])
def test_results_are_in_the_order_of_submission(count):
    points = torch.arange(1.0, count + 1)[:, None].expand(-1, 5)
    work = TrajectoryStatistics(quadratic, torch.device("cpu"), chunk=3)
    for part in points.split(10):
        work.submit(part)
    seen = []
    rows = work.result(seen.append)
    assert rows.shape == (count, len(COLUMNS))
    np.testing.assert_allclose(rows[:, 0], 5.0 * np.arange(1, count + 1))
    assert work.pending == 0
    assert sum(seen) <= work._submitted


def test_result_raises_the_error_of_a_worker():
    def broken(points):
        raise ArithmeticError("no Hessian here")

    work = TrajectoryStatistics(broken, torch.device("cpu"))
    work.submit(torch.ones(9, 2))
    with pytest.raises(ArithmeticError, match="no Hessian here"):
        work.result()


def test_signs_that_float32_loses_are_counted():
    """The eigenvalues have known sizes; the matrix is rotated, so that rounding matters."""
    values = np.concatenate([np.full(6, 1.0), np.full(4, -0.5), np.full(10, 1e-9), np.zeros(5)])
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(25, 25)))
    h = torch.tensor((q * values) @ q.T)[None]
    row = dict(zip(PRECISION_COLUMNS, precision_statistics(h, h.float())[0].tolist(), strict=True))
    assert (row["eigenvalues"], row["positive"], row["zero"]) == (25, 16, 5)
    assert row["smallest"] == pytest.approx(1e-9, rel=1e-4)
    assert row["below_resolution_float32"] == 15
    assert 5 <= row["wrong_sign_float32"] <= 15
    assert row["smallest_float32"] < 1e-6
    same = precision_statistics(h, h)[0]
    assert same[PRECISION_COLUMNS.index("wrong_sign_float32")] == 5  # rounded zeros have a sign
