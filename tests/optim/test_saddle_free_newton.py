"""Saddle-free Newton: steps on quadratics, the diagonal arm as a special case, ensembles, state."""

import copy
import io

import numpy as np
import pytest
import torch

from adaptive_opt.optim import SADH, SaddleFreeNewton

from .problems import (
    ensemble_parameters,
    flat,
    flat_start,
    gradient_np,
    hessian_np,
    loss,
    matrix,
    parameters,
    run,
)

FAR = 1e9
"""A clip radius that clips nothing."""


def quadratic(params, h):
    """½ θᵀ h θ."""
    theta = torch.cat([p.reshape(-1) for p in params])
    return 0.5 * theta @ h @ theta


def steps_on(h, params, optimizer, count, path=None):
    for _ in range(count):
        optimizer.zero_grad()
        optimizer.backward(quadratic(params, h))
        optimizer.step()
        if path is not None:
            path.append(flat(params))


def indefinite():
    h = torch.tensor(matrix())
    values, vectors = torch.linalg.eigh(h)
    values[::2] *= -1
    return vectors @ torch.diag(values) @ vectors.T


def test_newton_reaches_the_minimum_of_a_quadratic_in_one_step():
    params = parameters()
    optimizer = SaddleFreeNewton(params, lr=1.0, betas=(0.0, 0.0), rho=FAR)
    steps_on(torch.tensor(matrix()), params, optimizer, 1)
    np.testing.assert_allclose(flat(params), 0, atol=1e-9)
    assert optimizer.hvp_count == 11


def test_newton_leaves_a_saddle_along_negative_curvature():
    """One step doubles the coordinates along negative eigenvalues and removes the others."""
    h = indefinite()
    values, vectors = torch.linalg.eigh(h)
    params = parameters()
    before = vectors.T @ torch.tensor(flat(params))
    optimizer = SaddleFreeNewton(params, lr=1.0, betas=(0.0, 0.0), rho=FAR)
    steps_on(h, params, optimizer, 1)
    after = vectors.T @ torch.tensor(flat(params))
    torch.testing.assert_close(after, torch.where(values < 0, 2 * before, 0.0), atol=1e-9, rtol=0)


def test_with_momentum_the_error_shrinks_by_the_stated_recursion():
    """All coordinates shrink alike: the momentum of a Newton step is a multiple of the start."""
    lr, beta1, beta2, k = 0.7, 0.8, 0.6, 3
    params, path = parameters(), []
    start = flat(params)
    optimizer = SaddleFreeNewton(params, lr=lr, betas=(beta1, beta2), rho=FAR, update_period=k)
    steps_on(torch.tensor(matrix()), params, optimizer, 30, path)
    error, momentum = 1.0, 0.0
    for t, theta in enumerate(path):
        momentum = beta1 * momentum + (1 - beta1) * error
        error -= lr * momentum / (1 - beta2 ** (1 + t // k))
        np.testing.assert_allclose(theta, error * start, rtol=1e-7, atol=1e-9)


def numpy_twin(steps, *, lr, betas, rho, update_period, weight_decay, max_grad_norm):
    theta, m, d, path = flat_start(), np.zeros(11), np.zeros((11, 11)), []
    for t in range(steps):
        g, h = gradient_np(theta), hessian_np(theta)
        scale = min(1.0, max_grad_norm / (np.linalg.norm(g) + 1e-6))
        m = betas[0] * m + (1 - betas[0]) * scale * g
        if t % update_period == 0:
            d = betas[1] * d + (1 - betas[1]) * scale * h
        values, vectors = np.linalg.eigh(d)
        floor = np.linalg.norm(m) / (rho * np.sqrt(11))
        u = vectors @ (vectors.T @ m / np.maximum(np.abs(values) + 1e-12, floor))
        theta = (1 - lr * weight_decay) * theta - lr * u
        path.append(theta)
    return path


@pytest.mark.parametrize("max_grad_norm", [None, 0.3])
@pytest.mark.parametrize("closed_form", [True, False])
def test_rule_equals_numpy(closed_form, max_grad_norm):
    settings = {"lr": 0.05, "betas": (0.9, 0.8), "rho": 0.4, "update_period": 3}
    settings["weight_decay"] = 0.1
    params = parameters()

    def hessian():
        return torch.tensor(hessian_np(flat(params)))

    optimizer = SaddleFreeNewton(
        params,
        max_grad_norm=max_grad_norm,
        matrix_fn=hessian if closed_form else None,
        **settings,
    )
    twin = numpy_twin(60, **settings, max_grad_norm=max_grad_norm or np.inf)
    clipped = []
    for expected in twin:
        run(optimizer, params, 1)
        np.testing.assert_allclose(flat(params), expected, rtol=1e-7, atol=1e-9)
        clipped.append(float(optimizer.statistics()["clipped_fraction"]))
    assert optimizer.hvp_count == 20 * 11
    assert max(clipped) > min(clipped) == 0


def test_clipping_by_hand_scales_the_matrix():
    inside, outside = parameters(), parameters()
    settings = {"lr": 0.05, "betas": (0.9, 0.8), "rho": 0.4, "update_period": 3}
    run(SaddleFreeNewton(inside, max_grad_norm=0.3, **settings), inside, 20)
    optimizer = SaddleFreeNewton(outside, **settings)
    for _ in range(20):
        optimizer.zero_grad()
        optimizer.backward(loss(outside))
        torch.nn.utils.clip_grad_norm_(outside, 0.3)
        optimizer.step()
    np.testing.assert_allclose(flat(outside), flat(inside), rtol=1e-6)


SETTINGS = {"lr": 0.05, "betas": (0.9, 0.8), "update_period": 3, "weight_decay": 0.01}


def diagonal_hessian():
    return torch.diag(torch.tensor([*np.linspace(-2, 3, 11)]))


def test_equals_the_diagonal_method_on_a_diagonal_hessian():
    """Also where h is negative, and clipped along some axes."""
    h, paths = diagonal_hessian(), {}
    statistics = []
    some = parameters()
    first = SaddleFreeNewton(some, rho=4.0, **SETTINGS)
    steps_on(h, some, first, 1)
    assert 0 < first.statistics()["clipped_fraction"] < 1
    for structure in ("whole", "layer", "diagonal"):
        params, paths[structure] = parameters(), []
        optimizer = SaddleFreeNewton(params, structure=structure, rho=4.0, **SETTINGS)
        steps_on(h, params, optimizer, 40, paths[structure])
        statistics.append(optimizer.statistics())
    np.testing.assert_allclose(paths["whole"], paths["diagonal"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(paths["layer"], paths["diagonal"], rtol=1e-10, atol=1e-12)
    for name in ("clipped_fraction", "denominator_norm", "curvature_norm"):
        torch.testing.assert_close(statistics[0][name], statistics[2][name])


def test_equals_sadh_on_a_diagonal_hessian_where_nothing_is_clipped():
    h, whole, diagonal = diagonal_hessian(), parameters(), parameters()
    paths = [], []
    steps_on(h, whole, SaddleFreeNewton(whole, rho=FAR, **SETTINGS), 40, paths[0])
    optimizer = SADH(diagonal, curvature="exact", rho=FAR, **SETTINGS)
    steps_on(h, diagonal, optimizer, 40, paths[1])
    free = np.abs(np.linspace(-2, 3, 11)) > 1e-9  # one entry of h is zero
    np.testing.assert_allclose(
        np.array(paths[0])[:, free], np.array(paths[1])[:, free], rtol=1e-9, atol=1e-12
    )


def test_the_diagonal_differs_from_the_whole_on_another_hessian():
    whole, diagonal = parameters(), parameters()
    steps_on(torch.tensor(matrix()), whole, SaddleFreeNewton(whole, rho=FAR), 1)
    optimizer = SaddleFreeNewton(diagonal, rho=FAR, structure="diagonal")
    steps_on(torch.tensor(matrix()), diagonal, optimizer, 1)
    assert np.abs(flat(whole) - flat(diagonal)).max() > 1e-3
    given = parameters()
    closed = SaddleFreeNewton(
        given,
        rho=FAR,
        structure="diagonal",
        matrix_fn=lambda: torch.tensor(matrix()).diagonal(),
    )
    steps_on(torch.tensor(matrix()), given, closed, 1)
    np.testing.assert_allclose(flat(given), flat(diagonal), rtol=1e-12)


@pytest.mark.parametrize("structure", ["whole", "layer", "diagonal"])
def test_the_update_has_at_most_the_norm_of_a_clipped_one(structure):
    params = parameters()
    before = flat(params)
    optimizer = SaddleFreeNewton(params, lr=1.0, betas=(0.0, 0.9), rho=1e-3, structure=structure)
    run(optimizer, params, 1)
    length = np.linalg.norm(flat(params) - before)
    assert 0.5 < length / (1e-3 * np.sqrt(11)) <= 1 + 1e-9


def test_layer_blocks_equal_the_whole_on_a_block_diagonal_hessian():
    h = torch.zeros(11, 11, dtype=torch.float64)
    start = 0
    for size in (6, 4, 1):
        part = slice(start, start + size)
        h[part, part] = indefinite()[part, part]
        start += size
    settings = {"lr": 0.05, "betas": (0.9, 0.8), "rho": 0.4, "update_period": 3}
    whole, blocks, coupled = parameters(), parameters(), parameters()
    steps_on(h, whole, SaddleFreeNewton(whole, **settings), 30)
    optimizer = SaddleFreeNewton(blocks, structure="layer", matrix_fn=lambda: h, **settings)
    steps_on(h, blocks, optimizer, 30)
    np.testing.assert_allclose(flat(blocks), flat(whole), rtol=1e-9, atol=1e-11)
    # On a Hessian that couples the tensors they differ.
    other = SaddleFreeNewton(coupled, structure="layer", **settings)
    steps_on(torch.tensor(matrix()), coupled, other, 1)
    full = parameters()
    steps_on(torch.tensor(matrix()), full, SaddleFreeNewton(full, **settings), 1)
    assert np.abs(flat(coupled) - flat(full)).max() > 1e-3


@pytest.mark.parametrize("structure", ["whole", "layer", "diagonal"])
def test_members_equal_single_runs(structure):
    members = 3
    lr = torch.tensor([0.02, 0.05, 0.1], dtype=torch.float64)
    rho = torch.tensor([0.1, 0.4, 1.0], dtype=torch.float64)
    beta2 = torch.tensor([0.5, 0.8, 0.9], dtype=torch.float64)
    common = {"update_period": 3, "structure": structure, "max_grad_norm": 1.0}
    params = ensemble_parameters(members)
    together = SaddleFreeNewton(
        params, lr=lr, betas=(0.9, beta2), rho=rho, members=members, **common
    )
    run(together, params, 20, members)
    for i in range(members):
        alone = parameters(flat_start(seed=i))
        values = {"lr": float(lr[i]), "betas": (0.9, float(beta2[i])), "rho": float(rho[i])}
        single = SaddleFreeNewton(alone, **values, **common)
        run(single, alone, 20)
        inside = np.concatenate([p[i].detach().numpy().reshape(-1) for p in params])
        np.testing.assert_allclose(inside, flat(alone), rtol=1e-8, atol=1e-11)
        for name, value in single.statistics().items():
            torch.testing.assert_close(together.statistics()[name][i], value)
    assert together.hvp_count == single.hvp_count


def test_a_diverged_member_does_not_stop_the_others():
    params, alone = ensemble_parameters(2), parameters(flat_start(seed=1))
    together = SaddleFreeNewton(params, lr=0.05, members=2, update_period=2)
    with torch.no_grad():
        params[0][0] = float("nan")
    run(together, params, 6, 2)
    run(SaddleFreeNewton(alone, lr=0.05, update_period=2), alone, 6)
    inside = np.concatenate([p[1].detach().numpy().reshape(-1) for p in params])
    np.testing.assert_allclose(inside, flat(alone), rtol=1e-9)


def test_state_dict_continues_bit_for_bit():
    settings = {"lr": 0.05, "betas": (0.9, 0.8), "rho": 0.4, "update_period": 4}
    params = parameters()
    optimizer = SaddleFreeNewton(params, structure="layer", **settings)
    run(optimizer, params, 6)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    copied = [p.detach().clone().requires_grad_() for p in params]
    other = SaddleFreeNewton(copied)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    both = copy.deepcopy({"params": params, "optimizer": optimizer})
    run(optimizer, params, 7)
    run(other, copied, 7)
    run(both["optimizer"], both["params"], 7)
    np.testing.assert_array_equal(flat(copied), flat(params))
    np.testing.assert_array_equal(flat(both["params"]), flat(params))
    assert other.gradient_equivalents == optimizer.gradient_equivalents


def test_each_group_has_its_own_matrix():
    params, first = parameters(), parameters()
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.0}]
    steps_on(torch.tensor(matrix()), params, SaddleFreeNewton(groups, lr=0.1, rho=FAR), 1)
    optimizer = SaddleFreeNewton(first, lr=0.1, rho=FAR, structure="layer")
    steps_on(torch.tensor(matrix()), first, optimizer, 1)
    torch.testing.assert_close(params[0], first[0])
    np.testing.assert_array_equal(flat(params[1:]), flat(parameters()[1:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "tensor"}, "unknown structure 'tensor'"),
        ({"matrix": "fisher"}, "unknown matrix 'fisher'"),
        ({"matrix": "gauss_newton"}, "needs matrix_fn"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"rho": -1.0}, "rho must be at least 0"),
        ({"rho": 0.0}, "rho must be above 0"),
        ({"eps": -1.0}, "eps must be at least 0"),
        ({"betas": (0.9, 1.0)}, "beta2"),
        ({"update_period": 0}, "update_period"),
        ({"fused": True}, "fused=True is not supported"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SaddleFreeNewton(parameters(), **options)


def test_groups_must_agree():
    first, second = parameters()[:1], parameters()[1:]
    with pytest.raises(ValueError, match="must share one update_period"):
        SaddleFreeNewton([{"params": first}, {"params": second, "update_period": 3}])


def test_a_matrix_of_another_shape_is_refused():
    params = parameters()
    optimizer = SaddleFreeNewton(params, matrix_fn=lambda: torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"must return \[11, 11\], got \[3, 3\]"):
        optimizer.backward(loss(params))


def test_a_missing_matrix_is_an_error():
    params = parameters()
    optimizer = SaddleFreeNewton(params)
    loss(params).backward()
    with pytest.raises(RuntimeError, match=r"call optimizer\.backward"):
        optimizer.step()


def test_other_gradients_than_before_are_an_error():
    params = parameters()
    optimizer = SaddleFreeNewton(params)
    run(optimizer, params, 1)
    optimizer.zero_grad()
    optimizer.backward((params[0] ** 2).sum())
    with pytest.raises(RuntimeError, match="must stay the same"):
        optimizer.step()


def test_accumulated_losses_add_up():
    once, twice = parameters(), parameters()
    settings = {"lr": 0.05, "rho": 0.4}
    run(SaddleFreeNewton(once, **settings), once, 1)
    optimizer = SaddleFreeNewton(twice, **settings)
    for _ in range(2):
        optimizer.backward(0.5 * loss(twice))
    optimizer.step()
    np.testing.assert_allclose(flat(twice), flat(once), rtol=1e-10)


def test_maximize_climbs():
    down, up = parameters(), parameters()
    run(SaddleFreeNewton(down, rho=0.4), down, 1)
    optimizer = SaddleFreeNewton(up, rho=0.4, maximize=True)
    optimizer.backward(-loss(up))
    optimizer.step()
    np.testing.assert_allclose(flat(up), flat(down), rtol=1e-10)


def test_blocks_of_the_closed_form_are_those_of_the_products():
    h = torch.tensor(matrix())
    given, made = parameters(np.ones(11)), parameters(np.ones(11))
    a = SaddleFreeNewton(given, structure="layer", matrix_fn=lambda: h, rho=0.4)
    b = SaddleFreeNewton(made, structure="layer", rho=0.4)
    steps_on(h, given, a, 3)
    steps_on(h, made, b, 3)
    np.testing.assert_allclose(flat(given), flat(made), rtol=1e-10)
