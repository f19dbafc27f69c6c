"""Search spaces: sampling scales, bounds, and widened ranges."""

import math

import numpy as np
import optuna
import pytest
from pydantic import ValidationError
from scipy import stats

from adaptive_opt.parameters.tuning import DimensionParameters
from adaptive_opt.search.spaces import EDGE_TOLERANCE, Dimension, Space

SPACE = Space(
    lr=Dimension(1e-4, 1.0),
    beta2=Dimension(0.9, 0.9999, "log_complement"),
    rho=Dimension(0.0, 0.5, "linear"),
)


def test_sampling_is_uniform_on_its_scale():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [SPACE.decode(study.ask(SPACE.distributions()).params) for _ in range(400)]
    for name, dimension in SPACE.items():
        positions = [dimension.position(d[name]) for d in drawn]
        assert stats.kstest(positions, "uniform").pvalue > 0.001, name
    assert 0.9 <= min(d["beta2"] for d in drawn) < 0.95 < 0.999 < max(d["beta2"] for d in drawn)


def test_decode_inverts_encode():
    values = {"lr": 0.03, "beta2": 0.99, "rho": 0.25}
    back = SPACE.decode(SPACE.encode(values))
    assert back == pytest.approx(values, rel=1e-12)
    assert set(SPACE.encode(values)) == {"lr", "1 - beta2", "rho"}


@pytest.mark.parametrize(("name", "dimension"), SPACE.items())
def test_value_within_two_percent_of_a_bound_is_at_the_bound(name, dimension):
    def at(position):
        if dimension.scale == "linear":
            return dimension.low + position * (dimension.high - dimension.low)
        a, b = (math.log(dimension.encode(v)) for v in (dimension.low, dimension.high))
        return dimension.decode(math.exp(a + position * (b - a)))

    inside = {n: d.decode(math.sqrt(d.bounds[0] * d.bounds[1])) for n, d in SPACE.items()}
    inside["rho"] = 0.25
    for position, edge in [(0, "low"), (0.019, "low"), (0.021, None), (0.979, None), (1, "high")]:
        expected = {} if edge is None else {name: edge}
        assert SPACE.edges({**inside, name: at(position)}) == expected
    assert EDGE_TOLERANCE == 0.02


@pytest.mark.parametrize("scale", ["linear", "log", "log_complement"])
@pytest.mark.parametrize("edge", ["low", "high"])
def test_widened_range_contains_the_old_one(scale, edge):
    old = Dimension(0.5, 0.9, scale)
    new = old.widened(edge)
    assert new.low <= old.low
    assert new.high >= old.high
    assert (new.low < old.low) == (edge == "low")
    assert (new.high > old.high) == (edge == "high")
    assert 0 <= new.low < new.high < (2 if scale == "log" else 1)
    assert new.edge(old.low if edge == "low" else old.high) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"low": 1.0, "high": 0.1}, "low (1) must be below high (0.1)"),
        ({"low": 0.1, "high": 0.1}, "low (0.1) must be below high (0.1)"),
        ({"low": 0.0, "high": 1.0}, "low (0) must be above 0 on a log scale"),
        (
            {"low": 0.9, "high": 1.0, "scale": "log_complement"},
            "high (1) must be below 1 on a log scale of 1 − value",
        ),
    ],
)
def test_invalid_ranges_are_rejected(given, message):
    with pytest.raises(ValidationError) as raised:
        DimensionParameters(**given)
    assert message in str(raised.value)


def test_position_increases_with_the_value():
    for dimension in SPACE.values():
        values = np.linspace(dimension.low, dimension.high, 7)[1:-1]
        positions = [dimension.position(v) for v in values]
        assert positions == sorted(positions)
