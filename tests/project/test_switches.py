"""Every variant changes only its switch; all together equal the environment replication."""

import pytest

from adaptive_opt.parameters import configuration
from adaptive_opt.study import published_arms, tasks_of
from adaptive_opt.switches import SWITCHES, VARIANTS, get_variant, with_switches

from .test_parameters import ENVIRONMENTS, load

TASK = "rr_cond29"


def configured(variant, env="base", task=TASK):
    parameters = with_switches(variant, task, load(env))
    return {arm: configuration(task, arm, parameters) for arm in published_arms()}


CHANGES = {
    "baseline": {},
    "probe": {("sadh", "probe"): "constant", ("ssdh", "probe"): "constant"},
    "initialisation": {(a, "initialisation"): "shared" for a in published_arms()},
    "schedule": {(a, "schedule"): "cosine_by_epoch" for a in published_arms()},
    "loss": {(a, "loss"): "mse" for a in published_arms()},
    "clipped": {(a, "max_grad_norm"): 1.0 for a in published_arms()},
    "clip": {(a, "max_grad_norm"): 1.0 for a in published_arms()}
    | {(a, "clip_curvature"): False for a in published_arms()},
    "searched": {},
}


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("variant", CHANGES)
def test_a_variant_changes_its_switch_and_nothing_else(variant, env):
    base, own = configured("baseline", env), configured(variant, env)
    found = {
        (arm, key): value
        for arm, config in own.items()
        for key, value in config.items()
        if base[arm][key] != value
    }
    assert found == CHANGES[variant]


@pytest.mark.parametrize("task", [t.name for t in tasks_of("rahimi_recht")])
def test_all_switches_as_published_are_the_environment_replication(task):
    replication = load("replication")
    for arm, found in configured("published", task=task).items():
        assert found == configuration(task, arm, replication)


def test_every_variant_belongs_to_a_switch_or_to_the_ends_of_the_table():
    used = [name for switch in SWITCHES for name in switch.variants]
    assert sorted([*used, "baseline", "published"]) == sorted(v.name for v in VARIANTS)
    assert all(get_variant(v.against) for v in VARIANTS)
