"""Comparison of the batched task with a DataLoader and a module, sample by sample."""

import pytest
import torch

from adaptive_opt.tasks.rahimi_recht import RahimiRecht
from adaptive_opt.tasks.rr_functions import synthesise


def task(seeds=(0, 1), kind="rmse", batch_size=32, samples=100, shared=False):
    f = synthesise(
        "singular_values",
        condition=10.0,
        x_dim=3,
        hidden_dim=4,
        y_dim=5,
        layers=2,
        samples=samples,
        seed=0,
    )
    return RahimiRecht(
        f,
        loss=kind,
        batch_size=batch_size,
        weight_seeds=None if shared else [10 + s for s in seeds],
        order_seeds=list(seeds),
        device=torch.device("cpu"),
        dtype=torch.float64,
    )


def module_loss(function, weights, rows, kind):
    x = function.inputs[rows]
    q = ((x @ weights[0].T @ weights[1].T - x @ function.target.T) ** 2).mean()
    return q.sqrt() if kind == "rmse" else q


@pytest.mark.parametrize("kind", ["rmse", "mse"])
def test_batches_equal_those_of_a_shuffling_loader(kind):
    problem = task(kind=kind)
    weights = problem.initial_parameters()
    assert problem.batches_per_epoch == 4
    generators = [torch.Generator().manual_seed(s) for s in (0, 1)]
    for _ in range(2):
        orders = [torch.randperm(100, generator=g).split(32) for g in generators]
        grams = list(problem.epoch())
        assert len(grams) == 4
        for b, gram in enumerate(grams):
            losses = problem.loss(weights, gram)
            fast, grads = problem.loss_and_gradient(weights, gram)
            torch.testing.assert_close(fast, losses)
            expected = torch.autograd.grad(losses.sum(), weights)
            for g, e in zip(grads, expected, strict=True):
                torch.testing.assert_close(g, e)
            for i in range(2):
                single = module_loss(problem.function, [w[i] for w in weights], orders[i][b], kind)
                torch.testing.assert_close(losses[i], single)


@pytest.mark.parametrize("kind", ["rmse", "mse"])
def test_sampled_loss_estimates_the_gauss_newton_matrix(kind):
    """The covariance of its gradients is that matrix; the diagonal is the Hessian's."""
    members = 4000
    problem = task(seeds=range(members), kind=kind, shared=True, batch_size=100)
    weights = problem.initial_parameters()
    gram = next(iter(problem.epoch()))
    generators = [torch.Generator().manual_seed(s) for s in range(members)]
    loss, sampled = problem.loss_and_sampled_loss(weights, gram, generators)
    torch.testing.assert_close(loss, problem.loss(weights, gram))
    grads = torch.autograd.grad(sampled.output, weights, sampled.gradient)
    flat = torch.cat([g.flatten(1) for g in grads], dim=1)
    found = sampled.terms * flat.T @ flat / members

    def outputs(*single):
        x = problem.function.inputs.double()
        return x @ single[0].T @ single[1].T

    single = [w[0].detach() for w in weights]
    y = problem.function.inputs.double() @ problem.function.target.double().T
    blocks = torch.autograd.functional.jacobian(outputs, tuple(single))
    jacobian = torch.cat([b.reshape(y.numel(), -1) for b in blocks], dim=1)

    def of_outputs(f):
        q = (f - y).square().mean()
        return q.sqrt() if kind == "rmse" else q

    curved = torch.autograd.functional.hessian(of_outputs, outputs(*single))
    expected = jacobian.T @ curved.reshape(y.numel(), y.numel()) @ jacobian
    scale = expected.diagonal().sqrt()
    error = (found - expected) / torch.outer(scale, scale)
    assert error.abs().max() < 6 / members**0.5
    diagonal = problem.hessian_diagonal(weights, gram)
    exact = torch.cat([d[0].flatten() for d in diagonal])
    torch.testing.assert_close(expected.diagonal(), exact)


def test_sampled_loss_is_finite_on_batches_smaller_than_the_input():
    problem = task(batch_size=2)
    weights = problem.initial_parameters()
    generators = [torch.Generator().manual_seed(s) for s in (0, 1)]
    for gram in problem.epoch():
        _, sampled = problem.loss_and_sampled_loss(weights, gram, generators)
        assert torch.isfinite(sampled.gradient).all()


def test_an_epoch_has_every_sample_once():
    problem = task()
    sizes = torch.tensor([32.0, 32.0, 32.0, 4.0], dtype=torch.float64)
    total = sum(n * g for n, g in zip(sizes, problem.epoch(), strict=True)) / 100
    torch.testing.assert_close(total[0], problem.function.gram)
    torch.testing.assert_close(total[1], problem.function.gram)


def test_train_loss_is_over_all_samples():
    problem = task()
    weights = problem.initial_parameters()
    expected = module_loss(problem.function, [w[1] for w in weights], slice(None), "rmse")
    torch.testing.assert_close(problem.train_loss(weights)[1], expected)


def test_initial_weights_come_from_the_seed_or_the_function():
    own = task().initial_parameters()
    assert not torch.equal(own[0][0], own[0][1])
    alone = task(seeds=(1,)).initial_parameters()
    torch.testing.assert_close(alone[0][0], own[0][1], rtol=0, atol=0)
    shared = task(shared=True)
    for w, published in zip(shared.initial_parameters(), shared.function.weights, strict=True):
        assert torch.equal(w[0], published)
        assert torch.equal(w[1], published)


def test_a_batch_larger_than_the_data_is_all_of_it():
    problem = task(batch_size=1000)
    (gram,) = problem.epoch()
    torch.testing.assert_close(gram[0], problem.function.gram)


def test_hessian_rows_follow_the_parameter_order():
    problem = task()
    weights = problem.initial_parameters()
    points = torch.cat([w.detach().flatten(1) for w in weights], dim=1)
    hessians, gradients = problem.hessian(points)
    _, grads = problem.loss_and_gradient(weights, problem.function.gram.expand(2, -1, -1))
    torch.testing.assert_close(gradients, torch.cat([g.flatten(1) for g in grads], dim=1))
    diagonal = problem.hessian_diagonal(weights, problem.function.gram.expand(2, -1, -1))
    expected = torch.cat([d.flatten(1) for d in diagonal], dim=1)
    torch.testing.assert_close(hessians.diagonal(dim1=1, dim2=2), expected)


def test_state_dict_restores_the_batch_order():
    problem, other = task(), task()
    list(problem.epoch())
    other.load_state_dict(problem.state_dict())
    for a, b in zip(problem.epoch(), other.epoch(), strict=True):
        assert torch.equal(a, b)


def test_members_with_the_same_seed_have_the_same_batches():
    seeds = [3, 5, 3, 5, 3]
    shared, alone = task(seeds), [task([seed]) for seed in seeds]
    for _ in range(2):
        batches = zip(shared.epoch(), *(t.epoch() for t in alone), strict=True)
        for together, *apart in batches:
            torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["rmse", "mse"])
@pytest.mark.parametrize("seeds", [(0, 1), (0, 0)])
def test_sample_gradients_are_those_of_the_batch(kind, seeds):
    """Also of a short last batch, and of members that share their batches."""
    problem = task(kind=kind, seeds=seeds)
    weights = problem.initial_parameters()
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    orders = [torch.randperm(100, generator=g).split(32) for g in generators]
    for b, gram in enumerate(problem.epoch()):
        found = problem.sample_gradients(weights, gram)
        for i in range(2):
            own = [w.detach()[i].requires_grad_() for w in weights]
            rows = orders[i][b]
            whole = module_loss(problem.function, own, rows, kind).detach()
            expected = [torch.zeros_like(w) for w in own]
            for row in rows:
                one = module_loss(problem.function, own, row[None], "mse")
                scale = 1 if kind == "mse" else 1 / (2 * whole)
                for e, g in zip(expected, torch.autograd.grad(one, own), strict=True):
                    e += (scale * g) ** 2 / len(rows)
            for w, e in zip(weights, expected, strict=True):
                torch.testing.assert_close(found[w][i], e)


@pytest.mark.parametrize("kind", ["rmse", "mse"])
def test_the_matrix_of_a_batch_has_the_diagonal_of_the_batch(kind):
    problem = task(kind=kind)
    weights = problem.initial_parameters()
    gram = next(problem.epoch())
    whole = problem.curvature_matrix(weights, gram, "hessian")
    diagonal = torch.cat([d.flatten(1) for d in problem.hessian_diagonal(weights, gram)], 1)
    torch.testing.assert_close(whole.diagonal(dim1=1, dim2=2), diagonal)
    other = problem.curvature_matrix(weights, gram, "gauss_newton")
    torch.testing.assert_close(other.diagonal(dim1=1, dim2=2), diagonal)
    assert not torch.allclose(whole, other)
