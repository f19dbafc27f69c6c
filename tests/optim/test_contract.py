"""Behaviour that PyTorch users expect of an optimizer, tested for each of this package."""

import copy
import gc
import io
import weakref

import numpy as np
import pytest
import torch

from adaptive_opt.optim.probes import draw
from adaptive_opt.optim.sources import Permutation

from .problems import (
    CASES,
    SECOND_ORDER,
    WITH_HVP,
    ensemble_parameters,
    flat,
    loss,
    matrix,
    parameters,
    run,
)
from .test_rules import DENOMINATOR

each = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
each_second = pytest.mark.parametrize("case", SECOND_ORDER, ids=lambda c: c.name)
each_hvp = pytest.mark.parametrize("case", WITH_HVP, ids=lambda c: c.name)


@each
@pytest.mark.parametrize("before", [4, 6])
def test_state_dict_continues_in_the_middle_of_a_period(case, before):
    params = parameters()
    optimizer = case.make(params, **case.hyperparameters)
    run(optimizer, params, before)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    copied = [p.detach().clone().requires_grad_() for p in params]
    other = case.make(copied, lr=9.0, **({"seed": 99} if case.second_order else {}))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    run(optimizer, params, 10)
    run(other, copied, 10)
    np.testing.assert_array_equal(flat(params), flat(copied))
    assert other.gradient_equivalents == optimizer.gradient_equivalents


@each
def test_state_dict_of_an_ensemble_continues(case):
    params = ensemble_parameters(2)
    seed = {"seed": [1, 2]} if case.second_order else {}
    optimizer = case.make(params, members=2, **seed, **case.hyperparameters)
    run(optimizer, params, 4, 2)
    copied = [p.detach().clone().requires_grad_() for p in params]
    other = case.make(copied, members=2, **seed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, 8, 2)
    run(other, copied, 8, 2)
    np.testing.assert_array_equal(flat(params), flat(copied))


@each
def test_deepcopy_continues_identically(case):
    params = parameters()
    optimizer = case.make(params, **case.hyperparameters)
    run(optimizer, params, 4)
    copied = copy.deepcopy({"params": params, "optimizer": optimizer})
    run(optimizer, params, 8)
    run(copied["optimizer"], copied["params"], 8)
    np.testing.assert_array_equal(flat(params), flat(copied["params"]))


@each
def test_closure(case):
    params, reference = parameters(), parameters()
    optimizer = case.make(params, **case.hyperparameters)
    run(case.make(reference, **case.hyperparameters), reference, 5)

    def closure():
        optimizer.zero_grad()
        value = loss(params)
        optimizer.backward(value)
        return float(value.detach())

    values = [optimizer.step(closure) for _ in range(5)]
    np.testing.assert_array_equal(flat(params), flat(reference))
    assert values[0] == pytest.approx(float(loss(parameters()).detach()))


@each
def test_learning_rate_schedulers(case):
    params, reference = parameters(), parameters()
    optimizer = case.make(params, **case.hyperparameters)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    run(optimizer, params, 3)
    scheduler.step()
    run(optimizer, params, 1)
    halved = case.make(reference, **case.hyperparameters)
    run(halved, reference, 3)
    halved.param_groups[0]["lr"] /= 2
    run(halved, reference, 1)
    np.testing.assert_array_equal(flat(params), flat(reference))


@each
def test_tensor_learning_rate_steps_like_a_number(case):
    params, reference = parameters(), parameters()
    kwargs = case.hyperparameters
    run(case.make(params, **{**kwargs, "lr": torch.tensor(kwargs["lr"]).double()}), params, 5)
    run(case.make(reference, **kwargs), reference, 5)
    np.testing.assert_allclose(flat(params), flat(reference), rtol=1e-7)


@each
def test_parameter_groups_have_their_own_learning_rate(case):
    params = parameters()
    start = [p.detach().clone() for p in params]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.0}]
    run(case.make(groups, **case.hyperparameters), params, 5)
    assert not torch.equal(params[0], start[0])
    torch.testing.assert_close(params[2], start[2], rtol=0, atol=0)


@each
def test_frozen_and_unused_parameters_do_not_change(case):
    params = parameters()
    frozen = torch.ones(2, dtype=torch.float64)
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    run(case.make([*params, frozen, unused], **case.hyperparameters), params, 7)
    assert unused.grad is None
    torch.testing.assert_close(unused.detach(), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(frozen, torch.ones(2, dtype=torch.float64))


@each
def test_parameter_without_curvature_keeps_finite_steps(case):
    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    q = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = case.make([p, q], **case.hyperparameters)
    optimizer.backward((p**2).sum() + q.sum())
    optimizer.step()
    assert torch.isfinite(p).all()
    assert torch.isfinite(q).all()
    assert (q < 1).all()


@each_second
def test_hessian_vector_products_are_counted(case):
    params, n, k = parameters(), 20, 4
    optimizer = case.make(params, **{**case.hyperparameters, "update_period": k})
    run(optimizer, params, n)
    each_refresh = 11 if case.options.get("curvature") == "exact" else int(case.needs_hvp)
    assert optimizer.hvp_count == (n // k) * each_refresh
    assert optimizer.gradient_equivalents == n + 2 * (n // k) * each_refresh


@each_hvp
def test_graph_is_built_only_when_due(case):
    params = parameters()
    optimizer = case.make(params, **{**case.hyperparameters, "update_period": 3})
    for t in range(7):
        assert optimizer.curvature_due == (t % 3 == 0)
        assert optimizer.graph_due == optimizer.curvature_due
        value = loss(params)
        optimizer.zero_grad()
        optimizer.backward(value)
        assert all(p.grad is not None and not p.grad.requires_grad for p in params)
        optimizer.step()


@each
def test_memory_does_not_grow_over_200_steps(case):
    params = parameters()
    optimizer = case.make(params, **case.hyperparameters)

    def tensors():
        gc.collect()
        return sum(torch.is_tensor(o) for o in gc.get_objects())

    run(optimizer, params, 20)
    before = tensors()
    run(optimizer, params, 180)
    assert tensors() <= before


@each_hvp
def test_backward_frees_the_graph(case):
    params = parameters()
    optimizer = case.make(params, **case.hyperparameters)
    saved = weakref.WeakSet()

    class Box:
        def __init__(self, tensor):
            self.tensor = tensor
            saved.add(self)

    gc.disable()  # so that objects in reference cycles stay and fail the test
    try:
        with torch.autograd.graph.saved_tensors_hooks(Box, lambda box: box.tensor):
            value = loss(params) * 1
            assert len(saved) > 0
            optimizer.backward(value)
        assert len(saved) == 0  # although `value` still exists
        assert float(value) == pytest.approx(float(loss(params)))
    finally:
        gc.enable()


@each_hvp
def test_due_step_without_backward_raises_an_error(case):
    params = parameters()
    optimizer = case.make(params, **case.hyperparameters)
    loss(params).backward()
    with pytest.raises(RuntimeError, match=r"call optimizer\.backward\(loss\)"):
        optimizer.step()


@each_second
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_curvature_is_clipped_like_the_gradient(case, limit):
    """Clipping by torch, clipping by the optimizer, and scaling the loss give the same step."""
    outside, inside, scaled = parameters(), parameters(), parameters()
    kwargs = {**case.hyperparameters, "betas": (0.0, 0.5)}
    a = case.make(outside, **kwargs)
    b = case.make(inside, max_grad_norm=limit, **kwargs)
    c = case.make(scaled, **kwargs)
    for _ in range(7):
        a.zero_grad()
        a.backward(loss(outside))
        torch.nn.utils.clip_grad_norm_(outside, limit)
        a.step()
        b.zero_grad()
        b.backward(loss(inside))
        b.step()
        grads = torch.autograd.grad(loss(scaled), scaled)
        norm = torch.sqrt(sum((g**2).sum() for g in grads))
        c.zero_grad()
        c.backward(loss(scaled) * (limit / (norm + 1e-6)).clamp(max=1.0))
        c.step()
    np.testing.assert_allclose(flat(outside), flat(inside), rtol=1e-9)
    np.testing.assert_allclose(flat(outside), flat(scaled), rtol=1e-9)


@each
def test_accumulation_equals_the_summed_loss(case):
    if case.cls.__name__ == "SSVP":
        pytest.skip("the first gradient of a step determines the momentum probe")
    whole, parts = parameters(), parameters()
    a = case.make(whole, **case.hyperparameters)
    b = case.make(parts, **case.hyperparameters)
    for _ in range(7):
        a.zero_grad()
        a.backward(loss(whole) + loss(whole) ** 2)
        a.step()
        b.zero_grad()
        b.backward(loss(parts))
        b.backward(loss(parts) ** 2)
        b.step()
    np.testing.assert_allclose(flat(whole), flat(parts), rtol=1e-9)


@each_second
def test_statistics(case):
    params = parameters()
    rho = 0.4
    optimizer = case.make(params, **{**case.hyperparameters, "rho": rho})
    assert optimizer.statistics() == {}
    run(optimizer, params, 4)
    found = optimizer.statistics()
    state = [optimizer.state[p] for p in params]
    m = np.concatenate([s["momentum"].numpy().reshape(-1) for s in state])
    d = np.concatenate([s["curvature"].numpy().reshape(-1) for s in state])
    denominator = DENOMINATOR[case.cls.rule.name](d, 1e-12)
    assert float(found["clipped_fraction"]) == pytest.approx(np.mean(np.abs(m / denominator) > rho))
    assert float(found["denominator_norm"]) == pytest.approx(np.linalg.norm(denominator))
    assert float(found["curvature_norm"]) == pytest.approx(np.linalg.norm(d))
    assert float(found["estimate_norm"]) > 0
    assert 0 <= float(found["positive_estimate_share"]) <= 1


@each_second
def test_groups_have_their_own_update_periods(case):
    params = parameters()
    groups = [{"params": params[:2], "update_period": 2}, {"params": params[2:]}]
    if case.options.get("curvature") == "per_model":
        with pytest.raises(ValueError, match="needs one update_period"):
            case.make(groups, **{**case.hyperparameters, "update_period": 3})
        return
    optimizer = case.make(groups, **{**case.hyperparameters, "update_period": 3})
    changed = []
    for _ in range(6):
        before = [
            p.clone()
            for p in (optimizer.state.get(q, {}).get("curvature", torch.zeros(1)) for q in params)
        ]
        run(optimizer, params, 1)
        after = [optimizer.state[q]["curvature"] for q in (params[0], params[2])]
        changed.append(
            tuple(not torch.equal(b, a) for b, a in zip((before[0], before[2]), after, strict=True))
        )
    assert changed == [
        (True, True),
        (False, False),
        (True, False),
        (False, True),
        (True, False),
        (False, False),
    ]


def test_exact_source_gives_the_diagonal_of_the_hessian():
    case = next(c for c in CASES if c.name == "sadh_exact")
    params = parameters()
    optimizer = case.make(params, betas=(0.9, 0.0))
    theta = flat(params)
    optimizer.backward(loss(params))
    optimizer.step()
    found = np.concatenate([optimizer.state[p]["curvature"].numpy().reshape(-1) for p in params])
    np.testing.assert_allclose(found, np.diag(matrix()) + 3 * theta**2, rtol=1e-12)


@each
def test_skipped_step_leaves_no_state(case):
    """GradScaler skips ``step`` after ``backward`` when it finds an infinity."""
    params, reference = parameters(), parameters()
    optimizer = case.make(
        params, **{**case.hyperparameters, "seed": 3} if case.second_order else {}
    )
    optimizer.backward(loss(params))
    optimizer.zero_grad()
    other = case.make(reference, **{**case.hyperparameters, "seed": 3} if case.second_order else {})
    if case.needs_hvp and optimizer.param_groups[0]["probe"] in ("rademacher", "gaussian"):
        draw(optimizer.param_groups[0]["probe"], other._generator, reference)
    run(optimizer, params, 5)
    run(other, reference, 5)
    np.testing.assert_array_equal(flat(params), flat(reference))


@each_second
def test_leaves_of_other_optimizers_get_gradients_at_every_step(case):
    params, other_leaf = parameters(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = case.make(params, **case.hyperparameters)
    for _ in range(5):
        optimizer.zero_grad()
        other_leaf.grad = None
        optimizer.backward(loss(params) * other_leaf.square().sum())
        torch.testing.assert_close(other_leaf.grad, 2 * other_leaf.detach() * loss(params).detach())
        optimizer.step()


@each_second
def test_removing_a_gradient_does_not_change_other_curvatures(case):
    params, reference = parameters(), parameters()
    optimizer = case.make(params, **case.hyperparameters)
    other = case.make(reference, **case.hyperparameters)
    for o, p in ((optimizer, params), (other, reference)):
        o.backward(loss(p))
    params[0].grad = None
    optimizer.step()
    other.step()
    if case.options.get("curvature") == "per_model":
        return
    torch.testing.assert_close(params[1], reference[1], rtol=0, atol=0)


@each_second
def test_unused_parameter_with_a_zero_gradient(case):
    params = parameters()
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = case.make([*params, unused], **case.hyperparameters)
    optimizer.backward(loss(params) + unused.sum())
    optimizer.step()
    before = unused.detach().clone()
    optimizer.zero_grad(set_to_none=False)
    for _ in range(4):
        optimizer.backward(loss(params))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert bool(unused.isfinite().all())
    assert not torch.equal(unused.detach(), before)  # its momentum still moves it


@each
def test_loading_the_initial_state_resets_the_optimizer(case):
    params = parameters()
    optimizer = case.make(params, **case.hyperparameters)
    fresh = copy.deepcopy(optimizer.state_dict())
    run(optimizer, params, 5)
    first = flat(params).copy()
    with torch.no_grad():
        for p, start in zip(params, parameters(), strict=True):
            p.copy_(start)
    optimizer.load_state_dict(fresh)
    run(optimizer, params, 5)
    np.testing.assert_array_equal(flat(params), first)


@each
def test_loss_of_wrong_shape_raises_an_error(case):
    params = parameters()
    optimizer = case.make(params, **case.hyperparameters)
    with pytest.raises(ValueError, match=r"the loss must be a scalar, got shape \[3\]"):
        optimizer.backward(loss(params) * torch.ones(3))


@each
def test_accumulated_gradients_are_counted(case):
    params = parameters()
    optimizer = case.make(params, **case.hyperparameters)
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.backward(loss(params))
        optimizer.backward(loss(params))
        optimizer.step()
    assert optimizer.gradient_count == 4


@each_second
def test_group_added_later_follows_the_same_schedule(case):
    params = parameters()
    optimizer = case.make(params[:2], **{**case.hyperparameters, "update_period": 3})
    run(optimizer, params, 4)
    optimizer.add_param_group({"params": params[2:]})
    due = []
    for _ in range(6):
        due.append(optimizer.curvature_due)
        run(optimizer, params, 1)
    assert due == [False, False, True, False, False, True]


def test_numpy_seeds_are_accepted_and_groups_share_max_grad_norm():
    case = SECOND_ORDER[0]
    case.make(parameters(), seed=np.int64(3))
    with pytest.raises(ValueError, match="share one max_grad_norm"):
        case.make([{"params": parameters()}, {"params": parameters(), "max_grad_norm": 1.0}])


@pytest.mark.gpu
@each
def test_step_never_synchronises_with_the_gpu(case):
    members = 2
    params = [p.detach().float().cuda().requires_grad_() for p in ensemble_parameters(members)]
    seed = {"seed": list(range(members))} if case.second_order else {}
    lr = torch.full((members,), 0.01)
    optimizer = case.make(params, members=members, **seed, **{**case.hyperparameters, "lr": lr})
    for _ in range(4):
        optimizer.zero_grad()
        value = sum((p**2).reshape(members, -1).sum(1) for p in params)
        optimizer.backward(value)
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
            optimizer.statistics()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@each_hvp
def test_transformer_layer_trains_in_forward_context(case):
    """Fused attention has no second derivative; forward_context avoids it when one is due."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    if case.options.get("curvature") == "exact":
        pytest.skip("a Hessian-vector product for each of the layer's parameters")
    x = torch.randn(2, 5, 8)
    optimizer = case.make(layer.parameters(), **{**case.hyperparameters, "update_period": 2})
    for _ in range(3):
        optimizer.zero_grad()
        with optimizer.forward_context():
            value = layer(x).square().mean() * 1.0
        optimizer.backward(value)
        optimizer.step()
    assert optimizer.hvp_count == 2


def first_curvature(source, seed=0):
    params = parameters()
    case = next(c for c in CASES if c.name == "sadh")
    optimizer = case.make(params, betas=(0.9, 0.0), curvature=source, seed=seed)
    run(optimizer, params, 1)
    return [optimizer.state[p]["curvature"].flatten() for p in params]


def test_permutation_moves_entries_only_within_their_tensor():
    plain, shuffled = first_curvature("estimate"), first_curvature("permuted")
    for a, b in zip(plain, shuffled, strict=True):
        torch.testing.assert_close(a.sort().values, b.sort().values, rtol=0, atol=0)
    assert not torch.equal(plain[0], shuffled[0])
    assert not torch.equal(plain[1], shuffled[1])


def test_permutations_differ_between_seeds_and_tensors():
    index = torch.arange(50)
    a, b = Permutation([0]), Permutation([1])
    assert not torch.equal(a(0, index), b(0, index))
    assert not torch.equal(a(0, index), a(1, index))
    assert torch.equal(a(0, index), Permutation([0])(0, index))
    both = Permutation([0, 1])(0, torch.stack([index, index]))
    assert torch.equal(both, torch.stack([a(0, index), b(0, index)]))


def test_diagonal_fn_is_used_and_counted_as_products():
    case = next(c for c in CASES if c.name == "sadh_exact")
    params = parameters()
    diagonal = [torch.full_like(p, 2.0) for p in params]
    optimizer = case.make(params, betas=(0.9, 0.0), diagonal_fn=lambda: diagonal)
    run(optimizer, params, 1)
    torch.testing.assert_close(optimizer.state[params[0]]["curvature"], diagonal[0])
    assert optimizer.hvp_count == 11


@each_second
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": float("nan")}, "lr must be at least 0"),
        ({"betas": (1.0, 0.9)}, "beta1 must be at least 0 and below 1"),
        ({"betas": (0.9, -0.1)}, "beta2 must be"),
        ({"rho": -0.1}, "rho must be"),
        ({"eps": -1e-9}, "eps must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"update_period": 0}, "update_period must be a whole number"),
        ({"update_period": 1.5}, "update_period must be a whole number"),
        ({"probe": "radmacher"}, "unknown probe 'radmacher'"),
        ({"curvature": "exakt"}, "unknown curvature source 'exakt'"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0"),
        ({"members": 2}, "needs 2 seeds"),
        ({"members": 2, "seed": [1, 2, 3]}, "3 seeds for an ensemble of 2"),
        ({"members": 2, "seed": [1, 2]}, "needs parameters of shape"),
    ],
)
def test_invalid_hyperparameters_raise_an_error(case, bad, message):
    with pytest.raises(ValueError, match=message):
        case.cls(parameters(), **{**case.options, **bad})


def test_member_hyperparameters_of_wrong_length_raise_an_error():
    case = SECOND_ORDER[0]
    with pytest.raises(ValueError, match=r"lr has shape \[3\]"):
        case.make(ensemble_parameters(2), members=2, seed=[0, 1], lr=torch.ones(3))
