"""Results of block Lanczos against exact dense matrices."""

import numpy as np
import pytest
import torch

from adaptive_opt.curvature.block_lanczos import BlockLanczos
from adaptive_opt.errors import StudyError

from .test_spectrum import DOUBLE, Matrix, _gaussian_mixture, make_with_matrices


def run_lanczos(operator, steps, **options):
    lanczos = BlockLanczos(operator, **options)
    for _ in range(steps):
        lanczos.step()
    return lanczos


@pytest.fixture(params=["resnet", "transformer"])
def hessian(request):
    loss, matrices = make_with_matrices(request.param)
    return loss, matrices["hessian"]


@pytest.mark.parametrize("block", [1, 2, 5])
def test_top_eigenpairs(hessian, block):
    loss, matrix = hessian
    found = run_lanczos(loss.operator("hessian"), 90 // block, block=block).eigenpairs(2, 1e-6)
    exact = torch.linalg.eigvalsh(matrix).flip(0)[:2]
    torch.testing.assert_close(found.values, exact, rtol=1e-6, atol=0)
    assert found.good.all()
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(2, dtype=DOUBLE))
    residual = (matrix @ found.vectors - found.values * found.vectors).norm(dim=0)
    assert (residual / found.values).max() < 1e-6


def test_residuals_are_correct_before_convergence(hessian):
    loss, matrix = hessian
    found = run_lanczos(loss.operator("hessian"), 4).eigenpairs(2)
    assert not found.good.all()
    residual = (matrix @ found.vectors - found.values * found.vectors).norm(dim=0)
    torch.testing.assert_close(found.residuals, residual / found.values.abs(), rtol=1e-6, atol=0)


def test_double_eigenvalue_is_found_twice():
    stream = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(300, 300, dtype=DOUBLE, generator=stream))
    spectrum = torch.linspace(0, 1, 300, dtype=DOUBLE)
    spectrum[:2] = 3.0
    operator = Matrix(basis * spectrum @ basis.T)
    assert run_lanczos(operator, 20).eigenvalues(2)[0].tolist() == pytest.approx([3, 3], rel=1e-9)


def test_trace_and_norm_are_within_their_standard_errors(hessian):
    """Over 30 seeds they are unbiased, and their spread is the reported standard error."""
    operator, matrix = Matrix(hessian[1]), hessian[1]
    found = [run_lanczos(operator, 6, seed=s).moments(8) for s in range(30)]
    exact = matrix.trace(), torch.linalg.matrix_norm(matrix)
    for quantity, truth in zip(zip(*found, strict=True), exact, strict=True):
        values = np.array([e.value for e in quantity])
        stated = np.sqrt(np.mean([e.error**2 for e in quantity]))
        assert abs(values.mean() - float(truth)) < 4 * stated / 30**0.5 + 0.02 * stated
        assert 0.6 < values.std(ddof=1) / stated < 1.6


def test_density_is_within_its_standard_error(hessian):
    """Over 12 seeds, each with two start vectors."""
    operator, matrix = Matrix(hessian[1]), hessian[1]
    exact = torch.linalg.eigvalsh(matrix)
    width = float(exact.max() - exact.min()) / 20
    grid, values = None, []
    for seed in range(12):
        found = run_lanczos(operator, 30, seed=seed).density(width=width)
        assert abs(float(torch.trapezoid(found.value, found.grid)) - 1) < 1e-3
        grid = found.grid if grid is None else grid
        values.append(np.interp(grid.numpy(), found.grid.numpy(), found.value.numpy()))
    truth = _gaussian_mixture(grid, exact, torch.full_like(exact, 1 / len(exact)), width).numpy()
    error = np.std(values, axis=0, ddof=1) / 12**0.5
    z = (np.mean(values, axis=0) - truth) / np.maximum(error, 1e-3 * truth.max())
    assert np.abs(z).max() < 5
    assert np.mean(z**2) < 3


@pytest.mark.parametrize("block", [1, 3])
def test_results_are_exact_if_the_basis_spans_the_space(block):
    matrix = torch.diag(torch.arange(1.0, 13, dtype=DOUBLE))
    lanczos = run_lanczos(Matrix(matrix), 50, block=block)
    assert lanczos.exhausted
    assert lanczos.size == 12
    torch.testing.assert_close(lanczos.eigenvalues(12)[0], matrix.diag().flip(0))
    trace, norm = lanczos.moments(2)
    assert trace.value == pytest.approx(78)
    assert norm.value == pytest.approx(650**0.5)


def test_low_rank_matrix():
    vectors = torch.randn(200, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    matrix = vectors @ vectors.T
    lanczos = run_lanczos(Matrix(matrix), 20)
    exact = torch.linalg.eigvalsh(matrix).flip(0)[:3]
    torch.testing.assert_close(lanczos.eigenvalues(3)[0], exact)
    assert lanczos.moments(2)[0].value == pytest.approx(float(matrix.trace()))


def test_invalid_input_raises_a_clear_error():
    zero = Matrix(torch.zeros(5, 5, dtype=DOUBLE))
    with pytest.raises(StudyError, match="the block size is 6, but the matrix has 5 rows"):
        BlockLanczos(zero, 6)
    with pytest.raises(StudyError, match="the Lanczos basis is empty"):
        BlockLanczos(zero).eigenvalues(1)
    with pytest.raises(
        StudyError, match="3 eigenvalues were requested, but the basis has 2 vectors"
    ):
        run_lanczos(zero, 1).eigenvalues(3)
    with pytest.raises(StudyError, match="not finite"):
        run_lanczos(Matrix(torch.full((5, 5), torch.nan, dtype=DOUBLE)), 1)
