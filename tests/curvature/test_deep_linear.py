"""Closed forms against automatic differentiation, and known facts of the Rahimi–Recht Hessian."""

import numpy as np
import pytest
import torch

from adaptive_opt.curvature import deep_linear
from adaptive_opt.curvature.statistics import condition_number, zero_tolerance
from adaptive_opt.tasks.rr_functions import global_minimum, synthesise

KINDS = deep_linear.LOSSES


def function(layers=2, **sizes):
    sizes = {"x_dim": 3, "hidden_dim": 4, "y_dim": 5, **sizes}
    return synthesise("singular_values", condition=50.0, layers=layers, samples=40, seed=1, **sizes)


def loss_by_samples(f, kind):
    """The loss by its definition from outputs and targets of all samples; and flat weights."""
    shapes = [w.shape for w in f.weights]

    def value(flat):
        out = f.inputs
        for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True):
            out = out @ part.view(shape).T
        q = ((out - f.inputs @ f.target.T) ** 2).mean()
        return q.sqrt() if kind == "rmse" else q

    return value, torch.cat([w.flatten() for w in f.weights])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_closed_forms_equal_autograd(layers, kind):
    f = function(layers)
    value, flat = loss_by_samples(f, kind)
    args = (f.weights, f.target, f.gram, kind)
    gradient = torch.autograd.functional.jacobian(value, flat)
    hessian = torch.autograd.functional.hessian(value, flat)
    diagonal = torch.cat([d.flatten() for d in deep_linear.hessian_diagonal(*args)])
    scale = float(hessian.abs().max())
    torch.testing.assert_close(deep_linear.loss(*args), value(flat))
    torch.testing.assert_close(deep_linear.gradient(*args), gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(deep_linear.hessian(*args), hessian, rtol=0, atol=1e-13 * scale)
    torch.testing.assert_close(diagonal, hessian.diagonal(), rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [2, 3])
def test_gauss_newton_matrix_equals_its_definition(layers, kind):
    """JᵀMJ with the Jacobian J of the product and the loss's Hessian M by the product."""
    f = function(layers)
    shapes = [w.shape for w in f.weights]
    flat = torch.cat([w.flatten() for w in f.weights])

    def product(flat):
        parts = flat.split([s.numel() for s in shapes])
        done = torch.eye(shapes[0][1], dtype=flat.dtype)
        for part, shape in zip(parts, shapes, strict=True):
            done = part.view(shape) @ done
        return done.flatten()

    def outer(flat_product):
        w = flat_product.view_as(f.target)
        return deep_linear.loss([w], f.target, f.gram, kind)

    jacobian = torch.autograd.functional.jacobian(product, flat)
    inner = torch.autograd.functional.hessian(outer, product(flat))
    found = deep_linear.hessian(f.weights, f.target, f.gram, kind, gauss_newton=True)
    torch.testing.assert_close(found, jacobian.T @ inner @ jacobian, rtol=1e-9, atol=1e-9)
    smallest = torch.linalg.eigvalsh(found)[0]
    assert float(smallest) > -1e-9 * float(found.abs().max())  # the loss is convex in the output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [2, 3])
def test_empirical_fisher_equals_the_mean_over_samples(layers, kind):
    f = function(layers)
    weights = [w.clone().requires_grad_() for w in f.weights]
    n = len(f.inputs)
    q = deep_linear.loss(f.weights, f.target, f.gram, "mse")
    expected = [torch.zeros_like(w) for w in f.weights]
    mean = [torch.zeros_like(w) for w in f.weights]
    for x in f.inputs:
        out = x
        for w in weights:
            out = w @ out
        one = ((out - f.target @ x) ** 2).mean()
        scale = 1.0 if kind == "mse" else float(1 / (2 * q.sqrt()))
        for e, m, g in zip(expected, mean, torch.autograd.grad(one, weights), strict=True):
            e += (scale * g) ** 2 / n
            m += scale * g / n
    padded = torch.cat([f.inputs, torch.zeros(3, f.inputs.shape[1], dtype=f.inputs.dtype)])
    found = deep_linear.empirical_fisher(f.weights, f.target, padded, kind, n)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    gradient = deep_linear.gradient(f.weights, f.target, f.gram, kind)
    torch.testing.assert_close(torch.cat([m.flatten() for m in mean]), gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_independent(kind):
    f = function()
    batch = [torch.stack([w, 2 * w, w - 1]) for w in f.weights]
    grams = torch.stack([f.gram, 2 * f.gram, f.gram.T])
    together = deep_linear.hessian(batch, f.target, grams, kind)
    losses, grads = deep_linear.loss_and_gradient(batch, f.target, grams, kind)
    for i in range(3):
        single = [w[i] for w in batch]
        args = (single, f.target, grams[i], kind)
        torch.testing.assert_close(together[i], deep_linear.hessian(*args))
        torch.testing.assert_close(losses[i], deep_linear.loss(*args))
        flat = torch.cat([g[i].flatten() for g in grads])
        torch.testing.assert_close(flat, deep_linear.gradient(*args))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_differentiable_twice(kind):
    f = function()
    weights = [w.clone().requires_grad_() for w in f.weights]
    v = [torch.randn_like(w) for w in weights]
    value = deep_linear.loss(weights, f.target, f.gram, kind)
    grads = torch.autograd.grad(value, weights, create_graph=True)
    product = torch.cat([h.flatten() for h in torch.autograd.grad(grads, weights, v)])
    hessian = deep_linear.hessian(f.weights, f.target, f.gram, kind)
    expected = hessian @ torch.cat([x.flatten() for x in v])
    torch.testing.assert_close(product, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_zero_where_the_loss_is_zero(kind):
    f = function()
    eye = [torch.eye(4, dtype=torch.float64)] * 2
    target = eye[0]
    loss, grads = deep_linear.loss_and_gradient(eye, target, target, kind)
    assert float(loss) < 1e-150
    assert all(float(g.abs().max()) == 0 for g in grads)
    del f


@pytest.mark.parametrize("condition", [29.0, 15099.0])
def test_hessian_has_rank_168_at_a_global_minimum(condition):
    """Sizes 12-13-14: (W1, W2) ↦ W2 W1 has rank 14·12, so 170 of 338 eigenvalues are 0."""
    f = synthesise(
        "singular_values",
        condition=condition,
        x_dim=12,
        hidden_dim=13,
        y_dim=14,
        layers=2,
        samples=1000,
        seed=0,
    )
    weights = global_minimum(f)
    torch.testing.assert_close(weights[1] @ weights[0], f.target, rtol=1e-9, atol=1e-9)
    eigenvalues = torch.linalg.eigvalsh(deep_linear.hessian(weights, f.target, f.gram, "mse"))
    zero = eigenvalues.abs() <= zero_tolerance(eigenvalues)
    assert int((~zero).sum()) == 168
    assert bool((eigenvalues[~zero] > 0).all())
    assert 1 < float(condition_number(eigenvalues)) < 10 * condition


def test_hessian_of_the_published_function_has_rank_168(reference):
    from adaptive_opt.tasks.rr_functions import function_report, import_function

    report = function_report(
        import_function(str(reference / "rahimi_recht_cond29.npz"), 2, 13, 0), "rmse"
    )
    assert report["hessian_at_minimum"]["zero_eigenvalues"] == 170
    assert report["condition_number"] == pytest.approx(29.32, abs=0.01)
    np.testing.assert_allclose(
        report["singular_values"][0] / report["singular_values"][-1], report["condition_number"]
    )
