"""Statistical properties of the probes, which the published constant probe violates."""

import numpy as np
import pytest
import torch

from adaptive_opt.optim import SADH, Sophia
from adaptive_opt.optim.probes import ProbeGenerator, draw

from .problems import matrix

DRAWS = 4000


def sample(name, n=11, draws=DRAWS):
    generator, like = ProbeGenerator(3), [torch.zeros(n, dtype=torch.float64)]
    return np.stack([draw(name, generator, like)[0].numpy() for _ in range(draws)])


def z_scores(samples, expected):
    """Distance of column means from the expectation, in standard errors.

    A constant column must equal the expectation: its score is 0 or infinite.
    """
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    off = np.abs(samples.mean(axis=0) - expected)
    return np.where(error > 1e-12, off / np.maximum(error, 1e-12), np.where(off < 1e-9, 0, np.inf))


def diagonal_estimates(name):
    h, v = matrix(11), sample(name)
    return v * (v @ h), np.diag(h)


def properties(name):
    """Whether a probe has each property of an unbiased diagonal probe."""
    v = sample(name)
    estimates, diagonal = diagonal_estimates(name)
    cross = np.stack([v[:, i] * v[:, j] for i in range(11) for j in range(i)], axis=1)
    return {
        "mean zero": z_scores(v, 0).max() < 4.5,
        "variance one": z_scores(v**2, 1).max() < 4.5,
        "uncorrelated": z_scores(cross, 0).max() < 4.5,
        "unbiased": z_scores(estimates, diagonal).max() < 4.5,
    }


@pytest.mark.parametrize("name", ["rademacher", "gaussian"])
def test_random_probes_are_unbiased(name):
    assert properties(name) == dict.fromkeys(properties(name), True)


def test_rademacher_values_are_plus_and_minus_one():
    assert set(np.unique(sample("rademacher"))) == {-1.0, 1.0}


def test_gaussian_has_gaussian_tails():
    v = sample("gaussian")
    assert z_scores(v**4, 3).max() < 4.5
    assert np.abs(v).max() > 3


def test_constant_probe_is_biased():
    found = properties("constant")
    assert not found["mean zero"]
    assert not found["uncorrelated"]
    assert not found["unbiased"]


def test_constant_probe_gives_row_sums():
    estimates, _ = diagonal_estimates("constant")
    np.testing.assert_allclose(estimates[0], matrix(11).sum(axis=1))


def test_rademacher_has_less_variance_than_gaussian():
    spread = {n: diagonal_estimates(n)[0].var(axis=0).sum() for n in ("rademacher", "gaussian")}
    h = matrix(11)
    off = 2 * (np.sum(h**2) - np.sum(np.diag(h) ** 2))
    assert spread["rademacher"] == pytest.approx(off / 2, rel=0.1)
    assert spread["gaussian"] == pytest.approx(off / 2 + 2 * np.sum(np.diag(h) ** 2), rel=0.1)


def test_hutchinson_is_exact_on_a_diagonal_hessian():
    diagonal = torch.tensor([0.5, 2.0, 30.0, 4.0], dtype=torch.float64)
    p = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = SADH([p], betas=(0.9, 0.0))
    optimizer.backward(0.5 * (diagonal * p**2).sum())
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["curvature"], diagonal, rtol=1e-14, atol=0)


def test_sophia_uses_gaussian_probes_by_default():
    assert Sophia([torch.zeros(1)]).param_groups[0]["probe"] == "gaussian"


def test_probes_of_a_member_do_not_depend_on_the_other_members():
    alone = draw("rademacher", ProbeGenerator(5), [torch.zeros(2, 3), torch.zeros(4)])
    both = draw("rademacher", ProbeGenerator([4, 5]), [torch.zeros(2, 2, 3), torch.zeros(2, 4)])
    for a, b in zip(alone, both, strict=True):
        torch.testing.assert_close(a, b[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["rademacher", "gaussian"])
def test_different_seeds_give_different_probes(name):
    a, b = (draw(name, ProbeGenerator(s), [torch.zeros(50)])[0] for s in (0, 1))
    assert not torch.equal(a, b)


def test_rank_continues_from_the_state_of_another_rank():
    """Separate probes depend only on seed, rank and number of the probe."""
    like = [torch.zeros(6)]
    first, second = ProbeGenerator(5), ProbeGenerator(5)
    first.separate(0)
    second.separate(1)
    for generator in (first, second):
        for _ in range(3):
            draw("gaussian", generator, like)
    resumed = ProbeGenerator(9)
    resumed.load_state_dict(first.state_dict())
    resumed.separate(1)
    expected, found = draw("gaussian", second, like)[0], draw("gaussian", resumed, like)[0]
    assert torch.equal(expected, found)
    assert not torch.equal(draw("gaussian", first, like)[0], found)


@pytest.mark.parametrize("name", ["rademacher", "gaussian"])
@pytest.mark.parametrize("probes", [4, 16])
def test_averaging_probes_divides_the_variance_by_their_number(name, probes):
    h, repeats = torch.tensor(matrix()), 600

    def estimates(number):
        p = torch.ones(repeats, 11, dtype=torch.float64, requires_grad=True)
        optimizer = SADH(
            [p], betas=(0.9, 0.0), probe=name, probes=number, members=repeats, seed=range(repeats)
        )
        optimizer.backward(0.5 * ((p @ h) * p).sum(1))
        assert optimizer.hvp_count == number
        assert optimizer.gradient_equivalents - optimizer.gradient_count == 2 * number
        return optimizer._pending_estimates[p].numpy()

    one, many = estimates(1), estimates(probes)
    assert (z_scores(many, np.diag(matrix())) < 4.5).all()
    ratio = one.var(axis=0, ddof=1).sum() / many.var(axis=0, ddof=1).sum()
    assert 0.75 * probes < ratio < 1.3 * probes


def test_accumulated_losses_share_all_probes():
    p = torch.ones(11, dtype=torch.float64, requires_grad=True)
    q = torch.ones(11, dtype=torch.float64, requires_grad=True)
    h = torch.tensor(matrix())
    once, twice = SADH([p], probes=4), SADH([q], probes=4)
    once.backward(0.5 * p @ h @ p)
    for _ in range(2):
        twice.backward(0.25 * q @ h @ q)
    torch.testing.assert_close(twice._pending_estimates[q], once._pending_estimates[p])


@pytest.mark.parametrize(
    "options",
    [
        {"probe": "constant"},
        {"probe": "momentum_sign"},
        {"curvature": "exact"},
        {"curvature": "squared_gradient"},
        {"hvp": "finite_difference"},
    ],
)
def test_several_probes_need_a_random_estimate(options):
    with pytest.raises(ValueError, match="probes=4 averages"):
        SADH([torch.zeros(2)], probes=4, **options)
    with pytest.raises(ValueError, match="whole number"):
        SADH([torch.zeros(2)], probes=0)
