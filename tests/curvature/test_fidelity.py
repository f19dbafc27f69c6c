"""Fidelity metrics in cases where the result is known in closed form."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from adaptive_opt.curvature.fidelity import METHODS, METRICS, Smoothing, compare, measure

BETA2, RHO, EPS = 0.8, 0.3, 1e-3
SETTINGS = {"beta2": BETA2, "rho": RHO, "eps": EPS}
DIAGONAL = [3.0, -1.0, 0.5, 2.0]


def coupled(n=6, seed=0):
    a = np.random.default_rng(seed).normal(size=(n, n))
    return torch.from_numpy(a + a.T)


def measure_along(matrices, refreshes=None, draws=4000, paths=3, seed=0, momenta=None):
    """Metrics along a trajectory whose t-th point is t, and whose t-th Hessian is matrices[t]."""
    hessians = torch.stack([m.double() for m in matrices])
    steps, n = len(matrices), hessians.shape[-1]
    points = torch.arange(float(steps))[:, None, None].expand(-1, 1, n)
    if momenta is None:
        momenta = torch.from_numpy(np.random.default_rng(1).normal(size=(steps, 1, n)))

    def hessian_fn(rows):
        return hessians[rows[:, 0].long()], rows

    found = measure(
        hessian_fn,
        points,
        momenta,
        range(steps) if refreshes is None else refreshes,
        draws=draws,
        paths=paths,
        seed=seed,
        **SETTINGS,
    )
    return {
        (f.refresh, f.stage, f.probe, f.method): dict(
            zip(METRICS, f.metrics[0].tolist(), strict=True)
        )
        for f in found
    }


def test_rademacher_is_exact_on_a_diagonal_hessian():
    found = measure_along([torch.diag(torch.tensor(DIAGONAL))])
    raw = found[0, "raw", "rademacher", ""]
    assert raw["relative_error"] == raw["bias"] == 0
    assert raw["cosine"] == pytest.approx(1, abs=1e-15)
    assert raw["rank_correlation"] == pytest.approx(1, abs=1e-15)
    assert raw["sign_agreement"] == 1
    assert found[0, "clipped", "rademacher", "ssdh"]["relative_error"] == 0


def test_relative_error_equals_its_formula():
    """√2 for Gaussian probes on a diagonal Hessian; off-diagonal entries add the same to both."""
    diagonal = measure_along([torch.diag(torch.tensor(DIAGONAL))])[0, "raw", "gaussian", ""]
    assert diagonal["relative_error"] == pytest.approx(2**0.5, rel=0.1)
    h = coupled()
    d = h.diagonal()
    off = (h.square().sum() - d.square().sum()) / d.square().sum()
    found = measure_along([h])
    for probe, squared in (("rademacher", off), ("gaussian", off + 2)):
        raw = found[0, "raw", probe, ""]
        assert raw["relative_error"] == pytest.approx(float(squared) ** 0.5, rel=0.1)
        assert raw["bias_noise"] == pytest.approx(raw["relative_error"] / 4000**0.5, rel=0.1)
        assert raw["bias"] < 2 * raw["bias_noise"]  # unbiased: √χ²₆/6 is above 2 once in 10,000


def test_constant_probes_give_row_sums_and_are_biased():
    h = torch.tensor([[2.0, 1.0], [1.0, -1.0]])  # row sums 3 and 0; d = 2, −1
    raw = measure_along([h])[0, "raw", "constant", ""]
    assert raw["bias"] == pytest.approx((1 + 1) ** 0.5 / 5**0.5)
    assert raw["relative_error"] == pytest.approx(raw["bias"])
    assert raw["bias_noise"] == 0
    assert raw["cosine"] == pytest.approx(6 / (3 * 5**0.5))
    assert raw["sign_agreement"] == 0.5


def test_momentum_probe_is_compared_in_units_of_the_diagonal():
    h = torch.tensor([[2.0, 1.0], [1.0, -1.0]])
    m = torch.tensor([[[4.0, -0.1]]], dtype=torch.float64)
    found = measure_along([h], momenta=m)
    raw = found[0, "raw", "momentum_sign", ""]  # v = (−1, 1), Hv = (−1, −2), v ⊙ Hv = (1, −2)
    assert raw["bias"] == pytest.approx(2**0.5 / 5**0.5)
    assert raw["cosine"] == pytest.approx(4 / 5)
    smoothed = found[0, "smoothed", "momentum_sign", "ssvp"]  # √0.2 (1, 2) with (2, 1)
    assert smoothed["cosine"] == pytest.approx(4 / 5)
    off = (0.2**0.5 - 2) ** 2 + (2 * 0.2**0.5 - 1) ** 2
    assert smoothed["relative_error"] == pytest.approx((off / 5) ** 0.5)


@pytest.mark.parametrize(
    ("probe", "method", "estimate"),
    [
        ("exact", "ssdh", lambda h, m: np.diag(h)),
        ("constant", "sadh", lambda h, m: h.sum(1)),
        ("constant", "ssdh", lambda h, m: h.sum(1)),
        ("momentum_sign", "ssvp", lambda h, m: -h @ np.sign(m)),
    ],
)
def test_smoothed_and_clipped_stages_equal_a_plain_loop(probe, method, estimate):
    """For estimates without random draws; 40 refreshes take several chunks."""
    matrices = [coupled(seed=i) for i in range(40)]
    momenta = np.random.default_rng(1).normal(size=(40, 1, 6))
    found = measure_along(matrices, refreshes=[0, 39], momenta=torch.from_numpy(momenta))
    unit = RHO if method == "ssvp" else 1
    estimated, exact = np.zeros(6), np.zeros(6)
    for h, m in zip(matrices, momenta[:, 0], strict=True):
        h = h.numpy()
        for curvature, c in ((estimated, unit * estimate(h, m)), (exact, unit * np.diag(h))):
            curvature *= BETA2
            curvature += (1 - BETA2) * (np.abs(c) if method == "sadh" else c**2)
    terms = [d if method == "sadh" else np.sqrt(d) for d in (estimated, exact)]
    term, d = terms[0] / unit, np.abs(np.diag(h))
    smoothed = found[39, "smoothed", probe, method]
    assert smoothed["relative_error"] == pytest.approx(np.linalg.norm(term - d) / np.linalg.norm(d))
    assert smoothed["rank_correlation"] == pytest.approx(spearmanr(term, d).statistic)
    assert smoothed["sign_agreement"] == pytest.approx((np.diag(h) > 0).mean())
    u, exact_update = (np.clip(m / (t + EPS), -RHO, RHO) for t in terms)
    clipped = found[39, "clipped", probe, method]
    size = np.linalg.norm(exact_update)
    assert clipped["relative_error"] == pytest.approx(
        np.linalg.norm(u - exact_update) / size, abs=1e-9
    )
    assert clipped["cosine"] == pytest.approx(u @ exact_update / np.linalg.norm(u) / size)
    if probe != "exact":
        assert clipped["relative_error"] > 1e-3  # large enough to detect a wrong update


@pytest.mark.parametrize("method", METHODS[:3] + METHODS[5:6], ids=lambda m: m.name)
def test_updates_equal_those_of_the_optimizer(method):
    """Sophia, SADH, SSDH and SSVP in lock-step over five refreshes, with the same c."""
    h = coupled()
    p = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = method.optimizer(
        [p], lr=1.0, betas=(0.9, BETA2), rho=RHO, eps=EPS, update_period=1, seed=3
    )
    smoothing = Smoothing(method, **SETTINGS)
    slope = torch.from_numpy(np.random.default_rng(2).normal(size=6))
    for _ in range(5):
        optimizer.zero_grad()
        optimizer.backward(p @ slope + p @ h @ p / 2)
        (c,) = optimizer._pending_estimates.values()
        before = p.detach().clone()
        optimizer.step()
        smoothing.refresh(c / method.unit(RHO))
        update = smoothing.update(optimizer.state[p]["momentum"])
        torch.testing.assert_close(before - p.detach(), update, rtol=1e-12, atol=1e-12)
    clipped = update.abs() == RHO
    assert clipped.any()
    assert not clipped.all()


def test_smoothed_squares_estimate_row_norms():
    """With Rademacher probes E[c²] = Σ_j H_ij², so √D exceeds |d| by the off-diagonal entries."""
    h = coupled()
    found = measure_along([h] * 300, refreshes=[299], paths=40)[
        299, "smoothed", "rademacher", "ssdh"
    ]
    rows, d = h.square().sum(1).sqrt(), h.diagonal().abs()
    expected = float(torch.linalg.vector_norm(rows - d) / torch.linalg.vector_norm(d))
    assert found["bias"] == pytest.approx(expected, rel=0.1)


def test_clipped_entries_share_the_mean_rank():
    a = np.array([[0.3, 0.3, 0.3, -0.3, 0.1], [0.3, 0.2, 0.3, -0.3, -0.3]])
    b = np.array([0.3, 0.3, 0.2, -0.3, -0.3])
    found = compare(torch.from_numpy(a), torch.from_numpy(b))[METRICS.index("rank_correlation")]
    assert float(found) == pytest.approx(np.mean([spearmanr(row, b).statistic for row in a]))


def test_seed_without_points_gives_nan_for_itself_only():
    h = coupled()
    points = torch.zeros(2, 2, 6)
    points[1, 0] = torch.nan

    def hessian_fn(rows):
        return h.expand(len(rows), 6, 6) + rows[:, :, None], rows

    momenta = torch.linspace(-1, 1, 6).expand(2, 2, 6)
    found = measure(hessian_fn, points, momenta, [0, 1], draws=8, paths=2, seed=0, **SETTINGS)
    for one in found:
        assert one.metrics[1].isfinite().all()
        assert one.metrics[0].isnan().all() == (one.refresh == 1)


def test_smoothed_results_do_not_depend_on_the_measured_refreshes():
    matrices = [coupled(seed=i) for i in range(20)]
    everywhere, at_the_end = (
        measure_along(matrices, draws=8),
        measure_along(matrices, refreshes=[19], draws=8),
    )
    keys = [k for k in at_the_end if k[1] != "raw"]
    assert len(keys) == 2 * len(METHODS)
    for key in keys:
        assert everywhere[key] == at_the_end[key]
