"""Spectra from Hessian-vector products against exact dense matrices in float64."""

from functools import cache

import numpy as np
import pytest
import torch
from curvlinops._torch_base import PyTorchLinearOperator
from torch import nn
from torch.func import functional_call, jacrev

from adaptive_opt.curvature import deep_linear
from adaptive_opt.curvature.arithmetic import differentiable_kernels
from adaptive_opt.curvature.operators import NetworkLoss, Scaled, load_weights
from adaptive_opt.curvature.spectrum import density, eigenpairs, moments
from adaptive_opt.curvature.surface import along_line, buffers_of, extent, on_plane
from adaptive_opt.errors import StudyError
from adaptive_opt.tasks.models import ResNet, TransformerLanguageModel
from adaptive_opt.tasks.rr_functions import synthesise

DOUBLE = torch.float64


def network(name):
    if name == "resnet":
        return ResNet(1, 3, [3, 5], [1, 1])
    return TransformerLanguageModel(
        7, width=8, heads=2, feedforward=8, layers=1, dropout=0.3, window=6
    )


def make(name, dtype=DOUBLE, **options):
    """A small network with running statistics of the data, and two batches of unequal size."""
    torch.manual_seed(5)
    net = network(name)
    if name == "resnet":
        x, y = torch.randn(21, 1, 6, 6), torch.randint(3, (21,))
        with torch.no_grad():
            for _ in range(20):
                net(x)
    else:
        x, y = torch.randint(7, (5, 6)), torch.randint(7, (5, 6))
    cut = 12 if name == "resnet" else 3
    batches = [(x[:cut], y[:cut]), (x[cut:], y[cut:])]
    return NetworkLoss(net, batches, dtype=dtype, **options), x, y


def dense(loss, x, y):
    """H by autograd over all data; G from Jacobians and the Hessian of the cross-entropy."""
    named = {k: p.detach() for k, p in loss.network.named_parameters()}
    shapes = [p.shape for p in named.values()]

    def logits(flat):
        parts = flat.split([s.numel() for s in shapes])
        own = {k: p.view(s) for k, p, s in zip(named, parts, shapes, strict=True)}
        x_like = x.to(flat) if x.is_floating_point() else x
        return functional_call(loss.network, own, (x_like,)).flatten(0, -2)

    def value(flat):
        return nn.functional.cross_entropy(logits(flat), y.reshape(-1))

    point = loss.get()
    with differentiable_kernels():
        hessian = torch.autograd.functional.hessian(value, point)
        jacobian = jacrev(logits)(point)
        p = logits(point).softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gauss_newton = torch.einsum("nci,ncd,ndj->ij", jacobian, inner, jacobian) / len(p)
    return {"hessian": hessian, "gauss_newton": gauss_newton}


@cache
def make_with_matrices(name):
    loss, x, y = make(name)
    assert loss.size <= 2000
    return loss, dense(loss, x, y)


@pytest.fixture(params=["resnet", "transformer"])
def case(request):
    return request.param, *make_with_matrices(request.param)


@pytest.fixture(params=["hessian", "gauss_newton"])
def pair(request, case):
    return case[1].operator(request.param), case[2][request.param]


class Matrix(PyTorchLinearOperator):
    """Linear operator of a dense matrix, for tests with thousands of products."""

    SELF_ADJOINT = True
    device, dtype = torch.device("cpu"), DOUBLE

    def __init__(self, matrix):
        super().__init__([(len(matrix),)], [(len(matrix),)])
        self.matrix = matrix

    def _matmat(self, columns):
        return [self.matrix @ columns[0]]


def test_products_equal_those_of_the_dense_matrix(pair):
    operator, matrix = pair
    columns = torch.randn(len(matrix), 3, dtype=DOUBLE)
    torch.testing.assert_close(operator @ columns, matrix @ columns, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(operator @ columns[:, 0], matrix @ columns[:, 0])
    torch.testing.assert_close(matrix, matrix.T)


def test_micro_batches_and_single_precision_change_only_rounding(case):
    name, loss, matrices = case
    v = torch.randn(loss.size, dtype=DOUBLE)
    for kind, matrix in matrices.items():
        small, *_ = make(name, micro_batch=2)
        torch.testing.assert_close(small.operator(kind) @ v, matrix @ v)
        single, *_ = make(name, dtype=torch.float32)
        error = (single.operator(kind) @ v.float()).double() - matrix @ v
        assert error.norm() < 1e-5 * (matrix @ v).norm()
    assert len(small.data) > len(loss.data)


@pytest.mark.parametrize("which", ["largest", "magnitude"])
def test_top_eigenpairs(pair, which):
    operator, matrix = pair
    exact = torch.linalg.eigvalsh(matrix)
    order = (exact.abs() if which == "magnitude" else exact).argsort(descending=True)[:5]
    found = eigenpairs(operator, 5, which=which, tolerance=1e-8)
    torch.testing.assert_close(found.values, exact[order], rtol=1e-6, atol=0)
    assert found.good.all()
    residual = matrix @ found.vectors - found.values * found.vectors
    relative = residual.norm(dim=0) / found.values.abs()
    torch.testing.assert_close(found.residuals, relative, rtol=1e-3, atol=1e-12)


def test_unconverged_pairs_are_not_good():
    operator = Matrix(torch.diag(torch.linspace(0, 1, 500, dtype=DOUBLE)))
    found = eigenpairs(operator, 2, tolerance=1e-10, max_restarts=2)
    assert found.values.shape == (2,)
    assert not found.good.all()
    assert eigenpairs(operator, 2, tolerance=1e-10, max_restarts=500).good.all()


def test_eigenpairs_of_a_zero_matrix():
    found = eigenpairs(Matrix(torch.zeros(200, 200, dtype=DOUBLE)), 2)
    assert found.values.tolist() == [0, 0]
    assert found.good.all()


def test_all_eigenvalues_can_be_requested():
    loss = NetworkLoss(nn.Linear(2, 3), [(torch.randn(9, 2), torch.arange(9) % 3)], dtype=DOUBLE)
    matrix = loss.operator("hessian") @ torch.eye(9, dtype=DOUBLE)
    found = eigenpairs(loss.operator("hessian"), 9)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matrix).flip(0))


@pytest.mark.parametrize("deflated", [False, True])
def test_trace_and_norm_are_within_their_standard_errors(pair, deflated):
    """Over 30 seeds they are unbiased, and their spread is the reported standard error."""
    operator, matrix = Matrix(pair[1]), pair[1]
    basis = eigenpairs(operator, 2).vectors if deflated else None
    exact = matrix.trace(), torch.linalg.matrix_norm(matrix)
    found = [moments(operator, 8, basis=basis, seed=s) for s in range(30)]
    for quantity, truth in zip(zip(*found, strict=True), exact, strict=True):
        values = np.array([e.value for e in quantity])
        stated = np.sqrt(np.mean([e.error**2 for e in quantity]))
        assert abs(values.mean() - float(truth)) < 4 * stated / 30**0.5 + 0.02 * stated
        assert 0.6 < values.std(ddof=1) / stated < 1.6


def test_deflated_outliers_add_no_noise():
    stream = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(200, 200, dtype=DOUBLE, generator=stream))
    spectrum = torch.rand(200, dtype=DOUBLE, generator=stream)
    spectrum[:2] = torch.tensor([500.0, 300.0])
    operator = Matrix(basis * spectrum @ basis.T)
    plain = moments(operator, 10)
    deflated = moments(operator, 10, basis=eigenpairs(operator, 2, tolerance=1e-8).vectors)
    for before, after in zip(plain, deflated, strict=True):
        assert after.error < before.error / 50


def test_density_is_within_its_standard_error(pair):
    operator, matrix = Matrix(pair[1]), pair[1]
    exact = torch.linalg.eigvalsh(matrix)
    width = float(exact.max() - exact.min()) / 20
    found = density(operator, steps=40, draws=12, width=width, seed=1)
    truth = _gaussian_mixture(found.grid, exact, torch.full_like(exact, 1 / len(exact)), width)
    assert abs(float(torch.trapezoid(found.value, found.grid)) - 1) < 1e-3
    z = (found.value - truth) / found.error.clamp_min(1e-3 * truth.max())
    assert z.abs().max() < 5
    assert z.square().mean() < 3


def _gaussian_mixture(grid, nodes, weights, width):
    kernel = torch.distributions.Normal(nodes, width)
    return (kernel.log_prob(grid[:, None]).exp() * weights).sum(1)


# Short implementations of PyHessian's algorithms (Yao et al., 2020).


def power_iteration(matrix, count, steps=1500):
    """The largest eigenvalues by magnitude, by power iteration with deflation."""
    values, vectors = [], []
    for i in range(count):
        v = torch.randn(len(matrix), dtype=DOUBLE, generator=torch.Generator().manual_seed(i))
        for _ in range(steps):
            for u in vectors:
                v = v - (u @ v) * u
            v = v / v.norm()
            v = matrix @ v
        values.append(float(orthogonalise(v, vectors) @ (matrix @ orthogonalise(v, vectors))))
        vectors.append(orthogonalise(v, vectors))
    return values


def orthogonalise(v, vectors):
    for u in vectors:
        v = v - (u @ v) * u
    return v / v.norm()


def test_against_pyhessian(pair):
    operator, matrix = pair
    found = eigenpairs(operator, 2, which="magnitude", tolerance=1e-9)
    operator = Matrix(matrix)
    np.testing.assert_allclose(found.values, power_iteration(matrix, 2), rtol=1e-6)

    stream = torch.Generator().manual_seed(3)
    v = torch.randint(0, 2, (400, len(matrix)), generator=stream).to(DOUBLE) * 2 - 1
    products = ((v @ matrix) * v).sum(1)
    ours, _ = moments(operator, 100, seed=3)
    error = (float(products.var()) / 400 + ours.error**2) ** 0.5
    assert abs(ours.value - float(products.mean())) < 4 * error

    width = float(found.values[0].abs()) / 10
    ours = density(operator, steps=40, draws=12, width=width, seed=3)
    theirs = torch.stack([lanczos_density(matrix, ours.grid, width, s) for s in range(12)])
    error = (ours.error.square() + theirs.var(0) / 12).sqrt()
    floor = 1e-3 * ours.value.max()
    assert ((ours.value - theirs.mean(0)) / error.clamp_min(floor)).abs().max() < 5


def lanczos_density(matrix, grid, width, seed, steps=40):
    """Density by Lanczos from a Rademacher vector, with full reorthogonalisation."""
    stream = torch.Generator().manual_seed(seed)
    v = torch.randint(0, 2, (len(matrix),), generator=stream).to(DOUBLE) * 2 - 1
    basis, alphas, betas = [v / v.norm()], [], []
    for _ in range(steps):
        w = matrix @ basis[-1]
        alphas.append(basis[-1] @ w)
        for _ in range(2):
            w = w - torch.stack(basis).T @ (torch.stack(basis) @ w)
        betas.append(w.norm())
        basis.append(w / w.norm())
    off = torch.diag(torch.stack(betas[:-1]), 1)
    nodes, vectors = torch.linalg.eigh(torch.diag(torch.stack(alphas)) + off + off.T)
    return _gaussian_mixture(grid, nodes, vectors[0].square(), width)


def test_against_the_closed_form_of_rahimi_recht():
    f = synthesise(
        "singular_values", condition=50.0, x_dim=3, hidden_dim=4, y_dim=5, layers=2, samples=40,
        seed=1,
    )  # fmt: skip
    net = nn.Sequential(*(nn.Linear(*w.shape[::-1], bias=False) for w in f.weights))
    load_weights(net, {f"{i}.weight": w for i, w in enumerate(f.weights)})
    data = [(f.inputs, f.inputs @ f.target.T)]
    loss = NetworkLoss(net, data, dtype=DOUBLE, micro_batch=9, criterion=nn.MSELoss())
    weights = [p.detach() for p in net.parameters()]
    exact = deep_linear.hessian(weights, f.target.double(), f.gram.double(), "mse")
    operator = loss.operator("hessian")
    eye = torch.eye(loss.size, dtype=DOUBLE)
    torch.testing.assert_close(operator @ eye, exact, rtol=1e-5, atol=1e-5)
    top = torch.linalg.eigvalsh(exact).flip(0)[:3]
    torch.testing.assert_close(eigenpairs(operator, 3).values, top, rtol=1e-6, atol=0)


def test_preconditioned_operator_has_the_eigenvalues_of_the_preconditioned_hessian(case):
    _, loss, matrices = case
    denominator = torch.rand(loss.size, dtype=DOUBLE) + 0.1
    scaled = Scaled(loss.operator("hessian"), denominator.rsqrt())
    quotient = torch.linalg.eigvals(matrices["hessian"] / denominator[:, None]).real
    found = eigenpairs(scaled, 2, tolerance=1e-8)
    expected = quotient.sort(descending=True).values[:2]
    torch.testing.assert_close(found.values, expected, rtol=1e-6, atol=0)


def test_surface_near_the_centre_equals_the_quadratic_model(case):
    _, loss, matrices = case
    values, vectors = torch.linalg.eigh(matrices["hessian"])
    before, centre = loss.get(), loss.value()
    small = 1e-6 * extent(centre, float(values[-1]))  # small enough to cross no kink of a ReLU
    a, b, found = on_plane(loss, vectors[:, [-1, -2]], (small, small), 3)
    assert torch.equal(loss.get(), before)
    assert found[1, 1] == pytest.approx(centre, rel=1e-12)
    curved = (found[1, 0] - 2 * found[1, 1] + found[1, 2]) / a[2] ** 2
    assert float(curved) == pytest.approx(float(values[-1]), rel=1e-3)
    curved = (found[0, 1] - 2 * found[1, 1] + found[2, 1]) / b[2] ** 2
    assert float(curved) == pytest.approx(float(values[-2]), rel=1e-3)


def test_line_ends_have_the_losses_of_the_two_solutions():
    (one, *_), (two, *_) = make("resnet"), make("resnet")
    with torch.no_grad():
        for tensor in (*two.network.parameters(), *buffers_of(two.network)):
            tensor.add_(1)
    tensors = [
        [t.detach().clone() for t in (*loss.parameters, *buffers_of(loss.network))]
        for loss in (one, two)
    ]
    ends = one.value(), two.value()
    found = along_line(one, *tensors, torch.tensor([0.0, 0.5, 1.0]))
    assert found[[0, 2]].tolist() == pytest.approx(ends)
    assert found[1] != pytest.approx(sum(ends) / 2)


def test_invalid_input_raises_a_clear_error():
    loss, *_ = make("resnet")
    with pytest.raises(StudyError, match=r"9,999 eigenpairs|9999 eigenpairs"):
        eigenpairs(loss.operator("hessian"), 9999)
    with pytest.raises(StudyError, match="no batches to compute the curvature on"):
        NetworkLoss(network("resnet"), [])
    other = dict(ResNet(1, 3, [3, 4], [1, 1]).state_dict())
    with pytest.raises(StudyError, match=r"another architecture.* has shape"):
        load_weights(loss.network, other)
    with pytest.raises(StudyError, match=r"another architecture.* has no conv1\.weight"):
        load_weights(loss.network, network("transformer").state_dict())
    loss.set(torch.full_like(loss.get(), torch.nan))
    with pytest.raises(StudyError, match="loss over 21 targets is nan"):
        loss.value()
    with pytest.raises(StudyError, match="zero or not finite"):
        density(loss.operator("hessian"), steps=2, draws=2)
