"""Searches on the study's tasks and arms: trials, costs, objectives."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from adaptive_opt.engine.optimizers import build_optimizer, cost_of_run
from adaptive_opt.engine.trials import TrialPlan, train_network_trials, train_trials
from adaptive_opt.parameters import TaskParameters, TrainingParameters, resolve_arm
from adaptive_opt.parameters.tuning import TuningParameters, search_space, with_values
from adaptive_opt.search.arm import search_arm
from adaptive_opt.search.objective import score
from adaptive_opt.search.storage import Storage
from adaptive_opt.study import ARMS, TASKS, arms_on, get_arm
from tests.conftest import PROJECT
from tests.engine import networks
from tests.engine.test_run import FUNCTION

RR = {"loss": "rmse", "batch_size": 128, "epochs": 30, "seeds": 2, "target": 0.1}
TRAINING = TrainingParameters(device="cpu")
PLAN = TrialPlan(epochs=5, seeds=2, horizon=30)


def parameters(**tuning):
    """Return the parameters of conf/base with small tasks and a small search."""
    found = {}
    for name in ("arms", "tuning"):
        text = (Path(PROJECT) / f"conf/base/parameters_{name}.yml").read_text(encoding="utf-8")
        found |= yaml.safe_load(text)
    small = {"budget": 6, "epochs": 4, "startup": 4, "seeds": 2}
    rr = {"sampler": "tpe", "objective": "time_to_target", "batch": 3, **small}
    network = {"sampler": "tpe", "objective": "valid_loss", "pruner": "hyperband", **small}
    kinds = {"rahimi_recht": rr, "images": network, "text": network}
    tasks = {t.name: {**kinds[t.family], **tuning} for t in TASKS}
    found["tuning"] |= {"tasks": tasks, "heartbeat_seconds": 1}
    own = {t: networks.task_parameters(t).model_dump() for t in ("resnet18", "transformer")}
    found["tasks"] = {"rr_cond29": RR, "rr_cond15099": RR, **own}
    found["training"] = {"device": "cpu"}
    return found


DATA = {
    "rr_cond29": FUNCTION.to_tensors,
    "resnet18": lambda: networks.images().to_tensors(),
    "transformer": lambda: networks.text().to_tensors(),
}


def run_search(tmp_path, task, arm, given=None, name="studies"):
    storage = Storage(f"sqlite:///{tmp_path}/{name}.db")
    return search_arm(task, arm, DATA[task](), given or parameters(), "test", storage)


@pytest.mark.parametrize("arm", ["sgdm", "ssdh", "nadam"])
@pytest.mark.parametrize("task", DATA)
def test_every_task_can_be_searched(tmp_path, task, arm):
    trials, best = run_search(tmp_path, task, arm)
    assert best["spent"] <= best["budget"]
    assert best["objective"] == ("time_to_target" if task == "rr_cond29" else "valid_loss")
    complete = trials[trials["outcome"] == "complete"]
    assert best["value"] == complete["value"].min()
    assert set(best["values"]) == set(
        search_space(task, arm, tuning_parameters(), arms_of_task(task))
    )
    if task == "rr_cond29":  # no pruning; 4 iterations, one with a Hessian-vector product
        each = {"ssdh": 6 * 4 // (4 + 2)}.get(arm, 6)
        assert trials.groupby("study").size().tolist() == [each] * 3
    pd.testing.assert_frame_equal(
        trials.drop(columns="seconds"),
        run_search(tmp_path, task, arm, name="again")[0].drop(columns="seconds"),
    )


def tuning_parameters():
    return TuningParameters(**parameters()["tuning"])


def arms_of_task(task):
    return parameters()["arms"][task]


def test_only_relevant_parameters_start_a_new_study(tmp_path):
    _, best = run_search(tmp_path, "rr_cond29", "adam")
    changed = parameters()
    changed["tasks"]["rr_cond29"] = {**RR, "epochs": 99, "seeds": 9}
    changed["arms"]["rr_cond29"]["adam"] = {"lr": 0.5, "beta2": 0.5}
    assert run_search(tmp_path, "rr_cond29", "adam", changed)[1]["study"] == best["study"]
    for section, key, value in [
        ("tasks", "loss", "mse"),
        ("tasks", "target", 0.2),
        ("arms", "eps", 1e-3),
    ]:
        other = parameters()
        if section == "tasks":
            other["tasks"]["rr_cond29"] = {**RR, key: value}
        else:
            other["arms"]["rr_cond29"]["adam"][key] = value
        assert run_search(tmp_path, "rr_cond29", "adam", other)[1]["study"] != best["study"]


def test_hyperband_prunes_within_an_epoch(tmp_path):
    """Trials end at a multiple of min_epochs and cost only the iterations trained."""
    # Enough trials: Hyperband assigns brackets by the study's name, which contains a code digest.
    within = {"epochs": 1, "min_epochs": 0.25, "budget": 10}
    trials, best = run_search(tmp_path, "transformer", "sgdm", parameters(**within))
    iterations = (7 * trials["epochs"]).round()  # an epoch has seven batches
    assert set(iterations) <= {2, 4, 5, 7}
    assert (trials["outcome"] == "pruned").any()
    assert (trials.loc[trials["outcome"] == "pruned", "epochs"] < 1).all()
    assert (trials.loc[trials["outcome"] == "complete", "epochs"] == 1).all()
    np.testing.assert_array_equal(trials["gradient_equivalents"], 2 * iterations)  # two seeds
    assert best["found"]


def test_published_configurations_are_unchanged(tmp_path):
    given = parameters()
    given["tuning"]["source"] = "published"
    trials, best = run_search(tmp_path, "rr_cond29", "adam", given)
    assert trials.empty
    assert best["values"] == {}
    arms = with_values(given["arms"], "rr_cond29", "adam", best["values"])
    assert arms["rr_cond29"]["adam"] == given["arms"]["rr_cond29"]["adam"]
    assert not (tmp_path / "studies.db").exists()


def test_derived_arm_starts_from_its_parents_configuration():
    arms = {"t": {"ssdh": {"lr": 1.0, "eps": 1e-3}}}
    found = with_values(arms, "t", "ssdh_permuted", {"lr": 2.0})
    assert found["t"]["ssdh_permuted"] == {"lr": 2.0, "eps": 1e-3}
    assert found["t"]["ssdh"] == arms["t"]["ssdh"]


def test_every_arm_has_a_search_space_on_every_task():
    for task in TASKS:
        for arm in arms_on(task, [a.name for a in ARMS]):
            space = search_space(task.name, arm, tuning_parameters(), arms_of_task(task.name))
            assert space, (task.name, arm)
            assert ("rho" in space) == (get_arm(arm).kind in ("second-order", "ladder"))
    assert set(search_space("rr_cond29", "sgdm", tuning_parameters(), {})) == {"lr"}
    assert set(search_space("rr_cond29", "adamw", tuning_parameters(), {})) == {"lr", "beta2"}
    custom = {"custom": {"optimizer": "torch.optim.SGD", "lr": 1}}
    assert set(search_space("rr_cond29", "custom", tuning_parameters(), custom)) == {"lr"}


@pytest.mark.parametrize("source", ["published"])
def test_published_spaces_are_linear(source):
    spaces = TuningParameters(**{**parameters()["tuning"], "space": source}).spaces[source]
    assert {d.scale for t in spaces.values() for a in t.values() for d in a.values()} == {"linear"}
    assert spaces["transformer"]["second-order"]["lr"].high == 0.05


# Trials.


def resolved_arm(arm, **values):
    given = {"lr": 0.1, **({} if arm in ("sgdm", "sgd") else {"beta2": 0.99}), **values}
    return resolve_arm(arm, {arm: given}, TRAINING)


@pytest.mark.parametrize("arm", ["ssdh", "adam", "sgdm", "ssvp", "sgd"])
def test_trials_trained_together_equal_separate_trials(arm):
    resolved = [resolved_arm(arm, lr=lr) for lr in (0.01, 0.1, 0.3)]
    common = {
        "task": "rr_cond29",
        "arm": arm,
        "optimizer": resolved[0]["optimizer"],
        "task_parameters": TaskParameters(**RR),
        "training": TRAINING,
        "plan": PLAN,
    }
    configurations = [r["hyperparameters"] for r in resolved]
    together = train_trials(FUNCTION, configurations=configurations, **common)
    assert len({t.history["train_loss"].iloc[-1] for t in together}) == 3
    for trial, configuration in zip(together, configurations, strict=True):
        (alone,) = train_trials(FUNCTION, configurations=[configuration], **common)
        assert trial.iterations == alone.iterations
        np.testing.assert_allclose(
            trial.history["train_loss"], alone.history["train_loss"], rtol=2e-3
        )


def test_diverged_trial_leaves_others_unchanged():
    configurations = [resolved_arm("sgdm", lr=lr)["hyperparameters"] for lr in (1e9, 0.01)]
    bad, good = train_trials(
        FUNCTION,
        task="rr_cond29",
        arm="sgdm",
        optimizer="adaptive_opt.optim.SGDM",
        configurations=configurations,
        task_parameters=TaskParameters(**RR),
        training=TRAINING,
        plan=PLAN,
    )
    assert bad.diverged_at is not None
    assert good.diverged_at is None
    assert good.history["train_loss"].notna().all()


def test_network_trial_stops_on_request():
    seen = []

    def report(epoch, history):
        seen.append((epoch, score(history, "valid_loss", target=1.0, iterations=9)))
        return epoch == 2

    resolved = resolved_arm("adam", lr=0.01)
    (trial,) = train_network_trials(
        networks.images(),
        task="resnet18",
        arm="adam",
        optimizer=resolved["optimizer"],
        configurations=[resolved["hyperparameters"]],
        task_parameters=networks.task_parameters("resnet18"),
        training=TRAINING,
        plan=TrialPlan(epochs=5, seeds=2, horizon=5),
        validates=True,
        report=report,
    )
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert trial.iterations == 6
    valid = trial.history.dropna(subset=["valid_loss"])
    assert sorted(valid["iteration"]) == [3, 3, 6, 6]
    assert seen[1][1] == pytest.approx(
        math.exp(np.mean([np.log(g.min()) for _, g in valid.groupby("seed")["valid_loss"]]))
    )
    assert not [c for c in trial.history if "test" in c]


RR_ONLY = [a.name for a in ARMS if a.families == ("rahimi_recht",)]


@pytest.mark.parametrize("arm", [a.name for a in ARMS if a.kind != "zoo" and a.optimizer])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_predicted_cost_equals_counted_cost(arm, share):
    """The optimizer counts the same; exact curvature costs as much as one probe."""
    if arm in RR_ONLY:
        values = resolved_arm(arm, lr=0.01)
        estimate = resolved_arm(str(get_arm(arm).tuned_as), lr=0.01)
        cost, of_estimate = (
            cost_of_run(**cost_arguments(arguments), iterations=25) - 25
            for arguments in (values, estimate)
        )
        assert of_estimate > 0
        assert cost == values["hyperparameters"].get("probes", 1) * of_estimate
        return
    values = resolved_arm(arm, lr=0.01)
    task = "resnet18" if "images" in get_arm(arm).families else "transformer"
    history, _, summary = networks.run_network(
        networks.images() if task == "resnet18" else networks.text(),
        task=task,
        arm=arm,
        **values,
        task_parameters=networks.task_parameters(task, epochs=5, seeds=1),
        training=TrainingParameters(device="cpu", curvature_share=share),
    )
    cost = cost_of_run(**cost_arguments(values), iterations=summary["iterations"], share=share)
    assert summary["gradient_equivalents"] == pytest.approx(cost)
    assert history["gradient_equivalents"].max() == pytest.approx(cost, rel=1e-6)


def cost_arguments(resolved):
    return {"path": resolved["optimizer"], "hyperparameters": resolved["hyperparameters"]}


# Objectives.


def history(*losses, valid=None):
    rows = [
        {"seed": s, "iteration": 10 * i, "train_loss": x, "valid_loss": np.nan}
        for s, run in enumerate(losses)
        for i, x in enumerate(run)
    ]
    if valid is not None:
        rows += [
            {"seed": s, "iteration": 10 * i, "train_loss": np.nan, "valid_loss": v}
            for s, run in enumerate(valid)
            for i, v in enumerate(run)
        ]
    return pd.DataFrame(rows)


def test_objectives():
    two = history([100, 10, 1], [100, 100, 100])

    def of(h, objective, target=10):
        return score(h, objective, target=target, iterations=20)

    assert of(two, "train_loss") == pytest.approx(10)
    assert of(two, "time_to_target") == pytest.approx((0.5 + 2) / 2)
    assert of(history([100, 10, 100]), "time_to_target") == 0.5  # first passage
    assert of(history([5, 10]), "time_to_target") == 0
    assert of(history([1, 0.0]), "train_loss") > 0
    held = history([3, 2], [3, 2], valid=[[4, 1], [0.25, 9]])
    assert of(held, "valid_loss") == pytest.approx(0.5)
    for bad in ([1, np.inf], [np.nan, np.nan]):
        for objective in ("train_loss", "time_to_target"):
            assert of(history([1, 1], bad), objective) == math.inf
    assert of(history([1, 2], valid=[[np.nan]]), "valid_loss") == math.inf


def test_foreign_optimizers_accept_beta2():
    import torch

    built = build_optimizer(
        "torch.optim.AdamW", {"lr": 0.1, "beta2": 0.5}, [torch.zeros(1, 2)], probe_seeds=[0]
    )
    assert built.param_groups[0]["betas"] == (0.9, 0.5)
