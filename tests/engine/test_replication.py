"""The published order of the arms, at full length on the published functions."""

import numpy as np
import pytest

from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.evidence.passage import first_passage, losses_by_seed
from adaptive_opt.parameters import TaskParameters, TrainingParameters, resolve_arm
from adaptive_opt.tasks.rr_functions import import_function
from tests.project.test_parameters import load


def median_passage(reference, task, arm, env):
    """Median iterations to the target over the seeds that reach it, and their number."""
    parameters = load(env)
    training = TrainingParameters(**{**parameters["training"], "hessian_every": 0, "device": "cpu"})
    given = TaskParameters(**parameters["tasks"][task])
    name = f"rahimi_recht_{task.removeprefix('rr_')}.npz"
    history, _, _ = run_rahimi_recht(
        import_function(str(reference / name), 2, 13, 0),
        task=task,
        arm=arm,
        **resolve_arm(arm, parameters["arms"][task], training),
        task_parameters=given,
        training=training,
    )
    passed = first_passage(losses_by_seed(history), given.target)
    reached = passed[np.isfinite(passed)]
    return float(reached.median()), len(reached)


@pytest.mark.parametrize(
    ("task", "expected", "at_least"),
    [
        ("rr_cond29", {"ssdh": 300, "sadh": 900, "ssvp": 1100, "sophia": 4500}, 16),
        ("rr_cond15099", {"ssvp": 5500, "sadh": 6700, "ssdh": 16000}, 4),
    ],
)
def test_published_ordering(reference, task, expected, at_least):
    found = {arm: median_passage(reference, task, arm, "replication") for arm in expected}
    for arm, known in expected.items():
        median, reached = found[arm]
        assert known / 1.5 < median < known * 1.5
        assert reached >= at_least
    order = [found[arm][0] for arm in expected]
    assert order == sorted(order)


def test_rademacher_probes_correct_ssdh(reference):
    published, _ = median_passage(reference, "rr_cond15099", "ssdh", "replication")
    corrected, _ = median_passage(reference, "rr_cond15099", "ssdh", "base")
    assert 6300 / 1.5 < corrected < 6300 * 1.5
    assert corrected < published / 1.5


def test_first_order_arms_never_reach_the_target(reference):
    for arm in ("sgdm", "adam"):
        assert median_passage(reference, "rr_cond29", arm, "replication")[1] == 0
