"""Targets, times and verdicts on problems whose answer is known."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from adaptive_opt.evidence.answer import arm_answer, ratio_words
from adaptive_opt.evidence.schema import Verdict
from adaptive_opt.evidence.scores import break_even_period, integrated_scores
from adaptive_opt.evidence.summary import summary
from adaptive_opt.evidence.targets import target_ladder, times_to_targets
from adaptive_opt.evidence.verdict import (
    _fastest_baseline,
    build_verdict,
    comparison_table,
    fix_targets,
    profile_table,
    restrict,
)
from adaptive_opt.optim import SGDM, SSDH
from adaptive_opt.parameters.models import VerdictParameters

SEEDS, STEPS, TASK = 10, 400, "rr_cond29"
SETTINGS = VerdictParameters().model_dump()
RUNGS = {"ssdh": "estimate", "ssdh_permuted": "permuted", "ssdh_per_tensor": "per_tensor"}
RUNGS |= {"ssdh_per_model": "per_model"}


def history(arm, losses, log_every=1, task=TASK):
    """Of losses ``[rows, seeds]``."""
    rows, seeds = losses.shape
    iteration = np.tile(np.arange(rows) * log_every, seeds)
    return pd.DataFrame(
        {
            "task": task,
            "arm": arm,
            "seed": np.repeat(np.arange(seeds), rows),
            "iteration": iteration,
            "epoch": iteration,
            "train_loss": losses.T.reshape(-1),
            "gradient_equivalents": iteration * (1.2 if arm.startswith("ssdh") else 1.0),
            "device_seconds": iteration * (0.002 if arm.startswith("ssdh") else 0.001),
        }
    )


def train(arm, curvatures, lr, start):
    """Losses ``[steps + 1, seeds]`` on ½ Σ h x², by one optimizer for all seeds."""
    params = [p.clone().requires_grad_() for p in start]
    kwargs = {"lr": lr, "members": SEEDS}
    if arm == "sgdm":
        optimizer = SGDM(params, **kwargs, momentum=0.9)
    else:
        kwargs |= {"betas": (0.9, 0.9), "rho": 1.0, "update_period": 5}
        optimizer = SSDH(params, **kwargs, curvature=RUNGS[arm], seed=list(range(SEEDS)))
    losses = []
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        loss = sum(0.5 * (h * p * p).sum(-1) for h, p in zip(curvatures, params, strict=True))
        losses.append(loss.detach().numpy().copy())
        optimizer.backward(loss)
        optimizer.step()
    return np.nan_to_num(np.stack(losses), nan=1e30, posinf=1e30)


def verdict_on(curvatures):
    """All rungs and SGDM, each with the best of some learning rates on other starts."""
    histories = []
    draws = [torch.Generator().manual_seed(s) for s in (0, 1)]
    tuning, fresh = (
        [torch.randn(SEEDS, len(h), generator=g, dtype=torch.float64) for h in curvatures]
        for g in draws
    )
    for arm in ("sgdm", *RUNGS):
        rates = np.geomspace(1e-5, 1.0, 6) if arm == "sgdm" else np.geomspace(0.03, 1.0, 4)
        final = [np.median(train(arm, curvatures, lr, tuning)[-1]) for lr in rates]
        best = float(rates[int(np.argmin(final))])
        losses = train(arm, curvatures, best, fresh)
        if arm == "sgdm":  # as if held up by noise: else targets are rounding errors
            losses = np.maximum(losses, 1e-6)
        histories.append(history(arm, losses))
    targets = fix_targets(histories[:1], {TASK: 1e-6}, SETTINGS)
    levels = {t: {m: f["levels"] for m, f in x.items()} for t, x in targets.items()}
    times = times_to_targets(histories, levels)
    run = {"task": TASK, "iterations": STEPS, "device": "cpu", "torch": "2"}
    summaries = [
        {**run, "arm": arm, "device_seconds": 1.0, "hyperparameters": {"update_period": 5}}
        for arm in ("sgdm", *RUNGS)
    ]
    made = build_verdict(
        times, targets, summaries, SETTINGS, "test", {"commands": [], "versions": {}}
    )
    return made, times, targets


def steps(verdict):
    return {r.part: r.verdict for r in verdict.tasks[0].ladder if r.headline}


def spread(low, high, count):
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)


def test_coordinates_matter_where_they_differ():
    verdict, times, targets = verdict_on([spread(1.0, 1e4, 12)])
    found = steps(verdict)
    assert found["coordinate"] == "faster"
    (result,) = [r for r in verdict.tasks[0].ladder if r.headline and r.part == "coordinate"]
    assert result.high < 0.5  # decisively
    assert "is made of coordinate" in verdict.tasks[0].made_of["ssdh"]
    (arm,) = [r for r in verdict.tasks[0].arms if r.headline and r.clock == "iteration"]
    assert (arm.arm, arm.versus, arm.verdict) == ("ssdh", "sgdm", "faster")
    # What is said can be read again, and says the same in words.
    again = Verdict(**json.loads(verdict.model_dump_json()))
    assert again == verdict
    text = summary(verdict)
    assert verdict.answer[0] in text
    assert len(verdict.answer) == 3
    assert "faster on 1 of 1 tasks" in verdict.answer[0]
    assert "of 1 tasks SSDH gains from coordinate on 1" in verdict.answer[2]
    assert len(comparison_table(verdict)) == 5 * (3 + 3)
    assert set(profile_table(times, targets)["arm"]) == {"sgdm", "ssdh"}


def test_an_isotropic_function_needs_no_coordinates():
    verdict, _, _ = verdict_on([torch.full((12,), 3.0, dtype=torch.float64)])
    found = steps(verdict)
    assert found == {"coordinate": "equivalent", "spread": "equivalent", "layer": "equivalent"}
    assert "coordinate, spread and layer adds nothing" in verdict.tasks[0].made_of["ssdh"]


def test_tensors_that_differ_in_scale_need_a_number_each():
    scales = [torch.full((6,), h, dtype=torch.float64) for h in (1.0, 100.0)]
    found = steps(verdict_on(scales)[0])
    assert found == {"coordinate": "equivalent", "spread": "equivalent", "layer": "faster"}


def test_an_optimizer_of_the_readers_own_sets_no_target_even_where_it_is_the_fastest():
    """And its verdict can be told apart from those of the other half of the study."""
    falls = np.geomspace(1.0, 1e-3, 101)[:, None] * np.linspace(1.0, 1.001, SEEDS)
    rest = np.repeat(falls[-1:], 100, axis=0)
    losses = {"sgdm": np.concatenate([falls, rest[:50]]), "custom": [*falls[::2], *rest]}
    histories = [history(arm, np.array(found)) for arm, found in losses.items()]
    targets = fix_targets(histories[:1], {TASK: 1e-6}, SETTINGS)
    levels = {t: {m: f["levels"] for m, f in x.items()} for t, x in targets.items()}
    times = times_to_targets(histories, levels)
    run = {"task": TASK, "iterations": 100, "device": "cpu", "torch": "2", "device_seconds": 1.0}
    summaries = [{**run, "arm": arm, "hyperparameters": {}} for arm in ("sgdm", "custom")]
    made = build_verdict(
        times, targets, summaries, SETTINGS, "test", {"commands": [], "versions": {}}
    )
    assert {(r.arm, r.versus) for r in made.tasks[0].arms} == {("custom", "sgdm")}
    said = arm_answer(made.tasks, "custom")
    assert said.startswith("- Rahimi–Recht, condition 29: Custom is **faster**, 0.57 (")
    assert "iterations of SGDM to a loss of 0.001; 8 of 10 runs get there, 8 of SGDM." in said
    assert "gradient-equivalents of SGDM" in arm_answer(
        made.tasks, "custom", "gradient_equivalents"
    )
    assert arm_answer(made.tasks, "sgdm") == ""
    assert restrict(made, "rahimi_recht").tasks == made.tasks
    assert restrict(made, "networks").tasks == []
    assert "on 0 of 0 tasks" in restrict(made, "networks").answer[0]


def test_targets_come_from_the_best_baseline_alone():
    good = history("sgdm", np.array([[8.0, 8.0, 8.0, 8.0], [1.0, 2.0, 0.5, 4.0]]))
    poor = history("adam", np.array([[8.0, 8.0, 8.0, 8.0], [6.0, 7.0, 6.0, 7.0]]))
    found = target_ladder([poor, good], "train_loss", [0.5, 1.0], reached_by=0.75)
    assert found["baseline"] == "sgdm"
    assert found["levels"] == [4.0, 2.0]  # three of four come down to 2, halfway in decades is 4
    assert target_ladder([good], "valid_loss", [1.0], 0.75)["levels"] == []


def test_a_run_that_never_arrives_is_censored_and_never_zero():
    losses = np.array([[8.0, 8.0, 0.5], [4.0, 8.0, 0.4], [1.0, np.nan, 0.3]])
    times = times_to_targets([history("sgdm", losses, 10)], {TASK: {"train_loss": {"x": 1.0}}})
    rows = times.set_index("seed")
    assert rows["reached"].tolist() == [True, False, True]
    assert rows["iteration"].tolist() == [20.0, 20.0, 10.0]  # the third is there from the start
    assert rows["device_seconds"].tolist() == pytest.approx([0.02, 0.02, 0.01])
    assert (rows["end_iteration"] == 20.0).all()


def test_the_smoothed_loss_of_networks_is_an_epochs_mean():
    noisy = history(
        "sgdm", np.array([[8.0], [0.5], [4.0], [4.0], [1.0], [1.0], [1.0], [1.0], [1.0]])
    )
    noisy["epoch"] = noisy["iteration"] // 4
    times = times_to_targets([noisy], {TASK: {"train_loss": {"x": 1.0}}})
    assert times["iteration"].tolist() == [7.0]


def test_scores():
    times = pd.DataFrame({"a": [1.0, 4.0], "b": [2.5, 1.0], "c": [np.inf, np.inf]})
    assert integrated_scores(times) == pytest.approx({"a": 0.5, "b": 0.75, "c": 0.0})


def test_break_even():
    # 100 iterations of 1 s and refreshes of 10 s against 150 s: 1.5 = 1 + 10 / k.
    case = {"iterations": 100, "seconds_without": 1.0, "seconds": 2.0, "update_period": 10}
    assert break_even_period(**case, baseline_seconds=150)["period"] == pytest.approx(20.0)
    assert break_even_period(**case, baseline_seconds=90)["period"] == math.inf
    assert break_even_period(**case, baseline_seconds=math.inf)["period"] == 1.0
    never = {**case, "iterations": math.inf}
    assert math.isnan(break_even_period(**never, baseline_seconds=90)["period"])


def test_a_baseline_is_an_arm_that_arrives():
    columns = ["arm", "seed", "reached", "device_seconds", "end_device_seconds"]
    late = [("adam", s, s < 3, 6.5, 7.0) for s in range(4)]

    def chosen(arrived):
        """Of Adam and of SGDM, whose runs are over before Adam's get there."""
        early = [("sgdm", s, s < arrived, 4.0 if s < arrived else 5.0, 5.0) for s in range(4)]
        return _fastest_baseline(pd.DataFrame([*early, *late], columns=columns), "device_seconds")

    assert [chosen(n) for n in range(4)] == ["adam", "adam", "sgdm", "sgdm"]


@pytest.mark.parametrize(
    ("ratio", "low", "high", "words"),
    [
        (1.04, 1.01, 1.07, "1.04 (1.01–1.07)"),
        (0.0069, 0.004, 0.012, "0.0069 (0.004–0.012)"),
        (1.5, 0.0, None, "1.50 (0–∞)"),
    ],
)
def test_ratios_near_one_are_told_to_the_hundredth(ratio, low, high, words):
    result = SimpleNamespace(ratio=ratio, low=low, high=high)
    assert ratio_words(result) == words
