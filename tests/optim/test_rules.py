"""Every optimizer in lock-step with a NumPy implementation, or with torch's optimizer."""

import numpy as np
import pytest
import torch

from adaptive_opt.optim import SGDM, Adam
from adaptive_opt.optim.probes import ProbeGenerator, draw
from adaptive_opt.optim.sources import Permutation

from .problems import (
    CASES,
    SECOND_ORDER,
    SIZES,
    ensemble_parameters,
    flat,
    flat_start,
    gradient_np,
    hessian_np,
    loss,
    parameters,
    run,
)

SMOOTH = {"signed": lambda c: c, "absolute": np.abs, "squared": np.square}
DENOMINATOR = {
    "signed": lambda d, eps: np.maximum(d, eps),
    "absolute": lambda d, eps: d + eps,
    "squared": lambda d, eps: np.sqrt(d) + eps,
}


def fill_with_rms(values, per_tensor):
    """Replace values by the root mean square over each tensor, or over all."""
    parts = np.split(values, np.cumsum(SIZES)[:-1]) if per_tensor else [values]
    return np.concatenate([np.full(len(p), np.sqrt(np.mean(p**2))) for p in parts])


def numpy_twin(
    case, steps, *, lr, betas, rho, update_period, eps=1e-12, weight_decay=0.0, seed=0,
    max_grad_norm=np.inf, clip_curvature=True,
):  # fmt: skip
    """Path of a second-order method, implemented in NumPy from its definition."""
    rule, source = case.cls.rule.name, case.options.get("curvature", "estimate")
    probe = case.make(parameters()).param_groups[0]["probe"]
    generator, like = ProbeGenerator(seed), parameters()
    theta, m, d = flat_start(), np.zeros(sum(SIZES)), np.zeros(sum(SIZES))
    signs, order, path = [], None, []
    for t in range(steps):
        g, h = gradient_np(theta), hessian_np(theta)
        scale = min(1.0, max_grad_norm / (np.linalg.norm(g) + 1e-6))
        g = scale * g
        m = betas[0] * m + (1 - betas[0]) * g
        signs.append(np.sign(m))
        if t % update_period == 0:
            if probe == "momentum_sign":
                v = -rho * np.sign(m)
            elif probe == "momentum_sign_cumulative":
                v = -rho / update_period * sum(signs[-update_period:])
            else:
                v = flat(draw(probe, generator, like))
            c = v * (h @ v) if case.cls.estimates_diagonal else h @ v
            c = np.diag(h) if source == "exact" else c
            c = c * scale if clip_curvature else c
            if source == "squared_gradient":
                c = g**2
            elif source == "constant":
                c = np.ones_like(g)
            elif source in ("per_tensor", "per_model"):
                c = fill_with_rms(c, source == "per_tensor")
            elif source == "permuted":
                if order is None:
                    shuffle, offsets = Permutation([seed]), np.cumsum([0, *SIZES[:-1]])
                    order = np.concatenate(
                        [
                            shuffle(i, torch.arange(n)).numpy() + offset
                            for i, (n, offset) in enumerate(zip(SIZES, offsets, strict=True))
                        ]
                    )
                c = c[order]
            d = betas[1] * d + (1 - betas[1]) * SMOOTH[rule](c)
        u = np.clip(m / DENOMINATOR[rule](d, eps), -rho, rho)
        theta = (1 - lr * weight_decay) * theta - lr * u
        path.append(theta)
    return np.array(path)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("case", SECOND_ORDER, ids=lambda c: c.name)
def test_second_order_rule_equals_numpy(case, weight_decay):
    settings = {**case.hyperparameters, "weight_decay": weight_decay}
    expected = numpy_twin(case, 100, **settings)
    params = parameters()
    optimizer = case.make(params, **settings)
    for t in range(100):
        run(optimizer, params, 1)
        np.testing.assert_allclose(flat(params), expected[t], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("clip_curvature", [True, False])
@pytest.mark.parametrize("case", SECOND_ORDER, ids=lambda c: c.name)
def test_curvature_is_clipped_only_with_clip_curvature(case, clip_curvature):
    """With clipping by the optimizer, compared with NumPy, and by torch's function."""
    settings = {**case.hyperparameters, "clip_curvature": clip_curvature}
    expected = numpy_twin(case, 40, **settings, max_grad_norm=0.3)
    inside, outside = parameters(), parameters()
    optimizer = case.make(inside, **settings, max_grad_norm=0.3)
    by_hand = case.make(outside, **settings)
    for t in range(40):
        run(optimizer, inside, 1)
        np.testing.assert_allclose(flat(inside), expected[t], rtol=1e-7, atol=1e-9)
        by_hand.zero_grad()
        by_hand.backward(loss(outside))
        torch.nn.utils.clip_grad_norm_(outside, 0.3)
        by_hand.step()
    if case.cls.__name__ != "SSVP":  # its probe uses the clipped gradient only with max_grad_norm
        np.testing.assert_allclose(flat(outside), expected[-1], rtol=1e-6)
    assert optimizer.state_dict()["param_groups"][0]["clip_curvature"] is clip_curvature


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("own", "theirs", "kwargs"),
    [
        (SGDM, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
        (Adam, torch.optim.Adam, {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-8}),
    ],
)
def test_first_order_optimizer_equals_torch(own, theirs, kwargs, weight_decay):
    ours, reference = parameters(), parameters()
    a = own(ours, weight_decay=weight_decay, **kwargs)
    b = theirs(reference, weight_decay=weight_decay, **kwargs)
    for _ in range(100):
        run(a, ours, 1)
        b.zero_grad()
        loss(reference).backward()
        b.step()
        np.testing.assert_allclose(flat(ours), flat(reference), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_foreach_equals_a_loop(case):
    fast, plain = parameters(), parameters()
    kwargs = {**case.hyperparameters, "weight_decay": 0.01, "max_grad_norm": 1.0}
    run(case.make(fast, foreach=True, **kwargs), fast, 40)
    run(case.make(plain, foreach=False, **kwargs), plain, 40)
    np.testing.assert_array_equal(flat(fast), flat(plain))


def _member_values(case, members):
    """Different hyperparameters for each member, as tensors and as a list of numbers."""
    base = case.hyperparameters
    names = [n for n in ("lr", "rho") if n in base]
    scale = torch.linspace(0.5, 1.5, members, dtype=torch.float64)
    together = {n: base[n] * scale for n in names}
    if "betas" in base:
        beta2 = torch.linspace(0.7, 0.95, members, dtype=torch.float64)
        together["betas"] = (base["betas"][0], beta2)
    single = []
    for i in range(members):
        values = {n: float(together[n][i]) for n in names}
        if "betas" in base:
            values["betas"] = (base["betas"][0], float(together["betas"][1][i]))
        single.append({**base, **values})
    return {**base, **together}, single


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_ensemble_equals_separate_runs(case, clip, foreach):
    members = 3
    together, single = _member_values(case, members)
    params = ensemble_parameters(members)
    extra = {"seed": [7, 8, 9]} if case.second_order else {}
    kwargs = {"members": members, "max_grad_norm": clip, "foreach": foreach}
    run(case.make(params, **together, **extra, **kwargs), params, 40, members)
    for i in range(members):
        alone = parameters(flat_start(seed=i))
        seed = {"seed": 7 + i} if case.second_order else {}
        run(case.make(alone, **single[i], **seed, max_grad_norm=clip), alone, 40)
        inside = np.concatenate([p[i].detach().numpy().reshape(-1) for p in params])
        np.testing.assert_allclose(inside, flat(alone), rtol=1e-9, atol=1e-12)
