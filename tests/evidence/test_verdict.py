"""The verdict on simulated studies with known speed-ups, and on an optimizer slowed on purpose."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from adaptive_opt.engine.lengths import Lengths
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.errors import StudyError
from adaptive_opt.evidence import summary
from adaptive_opt.evidence.answer import answer, arm_answer, factor, speedup_words, task_answer
from adaptive_opt.evidence.ladder import STEPS, made_of
from adaptive_opt.evidence.prices import PRICE_COLUMNS
from adaptive_opt.evidence.schema import Verdict, read_verdict
from adaptive_opt.evidence.verdict import (
    TaskData,
    build_verdict,
    choose_reference,
    comparison_table,
    judge_task,
    restrict,
)
from adaptive_opt.optim import Adam
from adaptive_opt.parameters import TaskParameters, TrainingParameters
from adaptive_opt.tasks.rr_functions import synthesise

from .simulated import LENGTHS, SETTINGS, Outcome, Truth, draw, power, simulate

ERROR_RATE = 0.05


@pytest.fixture(scope="module", params=[12, 6], ids=["3x4", "3x2"])
def outcomes(request: pytest.FixtureRequest) -> dict[str, Outcome]:
    return simulate(Truth(seeds=request.param), studies=120)


def test_false_faster_and_false_slower_are_rare(outcomes: dict[str, Outcome]) -> None:
    for outcome in outcomes.values():
        if outcome.speed <= 1:
            assert outcome.words.get("faster", 0.0) <= ERROR_RATE
        if outcome.speed >= 1:
            assert outcome.words.get("slower", 0.0) <= ERROR_RATE


def test_intervals_cover_the_true_speed(outcomes: dict[str, Outcome]) -> None:
    inside = [o for o in outcomes.values() if 1 / 16 < o.speed < 16]
    assert 0.93 <= np.mean([o.covered for o in inside]) <= 0.975
    assert min(o.covered for o in inside) >= 0.88  # of only 120 studies


def test_large_speed_ups_are_always_found(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["ssdh"].words == {"faster": 1.0}
    assert outcomes["ssvp"].words == {"slower": 1.0}


def test_arms_beyond_the_lengths_get_a_bound_and_the_right_verdict(
    outcomes: dict[str, Outcome],
) -> None:
    assert outcomes["adamw"].words == {"faster": 1.0}
    for slow in ("sgd", "amsgrad"):
        assert outcomes[slow].words == {"slower": 1.0}
        assert outcomes[slow].bounded == 1
    assert outcomes["adamw"].bounded == 1


def test_intervals_cover_arms_of_unequal_variance() -> None:
    found = simulate(Truth(seeds=6, uneven=0.5), studies=60)
    inside = [o for o in found.values() if 1 / 16 < o.speed < 16]
    assert np.mean([o.covered for o in inside]) >= 0.91


def test_power_rises_with_the_speed_up() -> None:
    shares = list(power(Truth(), 25, (1.0, 1.3, 2.0)).values())
    assert shares[0] <= 0.15
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] >= 0.95


# A slowed optimizer, actually trained.


class EverySecond(Adam):
    """Adam that skips every second update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step(closure) if self.calls % 2 else None


SHARES = (0.125, 0.25, 0.5, 2.0)


def trained(optimizer: str, arm: str, epochs: int = 60) -> pd.DataFrame:
    """Train an optimizer on a small Rahimi–Recht function; returns its final losses."""
    function = synthesise(
        "singular_values", condition=10.0, x_dim=6, hidden_dim=7, y_dim=8, layers=2, samples=200,
        seed=0,
    )  # fmt: skip
    lengths = Lengths(SHARES)
    settings = TaskParameters(loss="mse", batch_size=50, epochs=epochs, seeds=6, target=1e-3)
    run_rahimi_recht(
        function,
        task="rr_cond29",
        arm=arm,
        optimizer=optimizer,
        hyperparameters={"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        task_parameters=settings,
        training=TrainingParameters(device="cpu", hessian_every=0),
        lengths=lengths,
    )
    return lengths.table()


def judged(tables: dict[str, pd.DataFrame]) -> Any:
    found = {"found": True, "failed": "", "edges": {}, "values": {}, "value": 1.0}
    bests = {arm: {"studies": [found], "values": {}} for arm in tables}
    made = {"task": "rr_cond29", "iterations": 480, "failed": "", "device": "cpu", "torch": "2"}
    summaries = {arm: {**made, "arm": arm, "hyperparameters": {}, "seeds": []} for arm in tables}
    return judge_task(TaskData("rr_cond29", tables, bests, summaries, None, 6), SETTINGS)


def test_skipping_every_second_update_halves_the_speed() -> None:
    halved = f"{EverySecond.__module__}.EverySecond"
    verdict = judged(
        {
            "adam": trained("adaptive_opt.optim.Adam", "adam"),
            "adamw": trained(halved, "adamw"),
            "nadam": trained("adaptive_opt.optim.Adam", "nadam"),
        }
    )
    assert verdict.reference == "adam"
    half = verdict.arm("adamw").speedup()
    assert half.verdict == "slower"
    assert half.low <= 0.5 <= half.high
    assert half.ratio == pytest.approx(0.5, rel=0.15)
    # The same optimizer under two names has the same runs.
    same = verdict.arm("nadam").speedup()
    assert same.verdict in ("equivalent", "undecided")
    assert same.ratio == pytest.approx(1.0, rel=1e-6)


def test_one_run_of_each_search_trains_twice_the_full_length() -> None:
    table = trained("adaptive_opt.optim.Adam", "adam", epochs=8)
    assert table.groupby("share")["seed"].nunique().to_dict() == {
        0.125: 6, 0.25: 6, 0.5: 6, 1.0: 6, 2.0: 1,
    }  # fmt: skip


# The record.


@pytest.fixture(scope="module")
def study() -> TaskData:
    truth = Truth(seeds=6)
    speeds = {"sgdm": 0.0, "ssdh": 2.0, "sadh": 1.0, "ssdh_permuted": 2.0, "ssdh_constant": 0.5}
    speeds |= {"ssdh_per_tensor": 1.0, "ssdh_per_model": 1.0}
    data = draw(speeds, truth, np.random.default_rng(3))
    failed = {
        "found": True,
        "failed": "no better than a constant prediction",
        "edges": {"lr": "high"},
    }
    data.bests["sgdm"]["studies"] = [{**failed, "value": 5.4, "values": {}}] * 3  # type: ignore[index]
    for arm, best in data.bests.items():
        best["constants"] = {"train_loss": 5.4}  # type: ignore[index]
        data.summaries[arm]["configuration"] = {"update_period": 10}  # type: ignore[index]
    rows = [
        ("transformer", arm, r, 1e-3, 4e-3 * (arm != "adam"), 1e-3 + 4e-4 * (arm != "adam"))
        for arm in data.bests
        for r in range(5)
    ]
    prices = pd.DataFrame(rows, columns=list(PRICE_COLUMNS))
    jitter = np.random.default_rng(0).normal(0, 0.02, len(prices))
    prices["step"] *= np.exp(jitter)
    return TaskData(data.task, data.lengths, data.bests, data.summaries, prices, 6)


@pytest.fixture(scope="module")
def verdict(study: TaskData) -> Verdict:
    provenance = {"versions": {}, "commands": ["kedro run"], "seeds": {}}
    return build_verdict([study], SETTINGS, "base", provenance)


def test_an_arm_on_the_plateau_is_slower_by_a_bound_and_its_searches_failed(
    verdict: Verdict,
) -> None:
    sgdm = verdict.tasks[0].arm("sgdm")
    assert sgdm is not None
    found = sgdm.speedup()
    assert found is not None
    assert (found.verdict, factor(found), speedup_words(found)) == ("slower", "< 1/16×", "< 1/16×")
    assert found.low is None
    undecided = found.model_copy(update={"verdict": "undecided", "high": 16.0})
    assert speedup_words(undecided) == "< 1/16× (?–16)"
    assert len(sgdm.failed_searches) == 3
    assert sgdm.stuck == 6
    (line,) = [line for line in summary.failures(verdict.tasks[0]) if "SGDM" in line]
    assert "3 of 3 searches failed" in line
    assert "tuning.tasks.transformer.budget" in line


def test_seconds_are_iterations_times_the_cost_per_step(verdict: Verdict) -> None:
    ssdh = verdict.tasks[0].arm("ssdh")
    assert ssdh is not None
    assert ssdh.price is not None
    by_iteration, by_second = ssdh.speedup(), ssdh.speedup("device_seconds")
    assert by_iteration is not None
    assert by_second is not None
    assert by_second.ratio == pytest.approx(by_iteration.ratio / ssdh.price.ratio)
    assert ssdh.price.ratio == pytest.approx(1.4, rel=0.05)
    width = [s.high / s.low for s in (by_iteration, by_second)]  # type: ignore[operator]
    assert width[1] > width[0]  # it includes the error of the calibration


def test_break_even_has_an_interval(verdict: Verdict) -> None:
    (ssdh,) = [b for b in verdict.tasks[0].break_even if b.arm == "ssdh"]
    found = verdict.tasks[0].arm("ssdh").speedup()  # type: ignore[union-attr]
    # k* = t_refresh / (s t_reference − t_plain), with the medians of the prices.
    assert ssdh.period == pytest.approx(4e-3 / (found.ratio * 1e-3 - 1e-3), rel=0.2)  # type: ignore[union-attr]
    assert ssdh.low is not None
    assert ssdh.low < ssdh.period  # type: ignore[operator]
    sadh = next(b for b in verdict.tasks[0].break_even if b.arm == "sadh")
    assert sadh.high is None


def test_a_ladder_step_is_the_quotient_of_two_speed_ups(verdict: Verdict) -> None:
    task = verdict.tasks[0]
    step = next(
        s for s in task.ladder if (s.upper, s.lower) == ("ssdh_permuted", "ssdh_per_tensor")
    )
    upper, lower = (task.arm(a).speedup() for a in (step.upper, step.lower))  # type: ignore[union-attr]
    assert step.result.ratio == pytest.approx(upper.ratio / lower.ratio)  # type: ignore[union-attr]
    assert step.result.verdict == "faster"
    assert task.made_of["ssdh"].startswith("SSDH's speed-up comes from the spread of curvature")


def test_ladder_sentences_state_every_verdict() -> None:
    words = ["faster", "faster", "equivalent", "slower", "undecided", "faster"]
    assert made_of("SSDH", list(zip(STEPS, words, strict=True)), faster=False) == (
        "SSDH's speed comes from per-coordinate information and the Hessian in place of the "
        "squared gradient. The spread of curvature within a tensor made no difference. Per-tensor "
        "information slowed training down. The overall curvature scale showed no measurable "
        "effect. The exact diagonal would be faster than its estimate."
    )
    undecided = made_of("SSDH", [(STEPS[0], "faster"), (STEPS[1], "undecided")])
    assert undecided == (
        "No part of SSDH's curvature information showed a measurable effect. The exact diagonal "
        "would be faster than its estimate."
    )
    slower = made_of("SSDH", [(STEPS[1], "undecided"), (STEPS[2], "slower")])
    assert slower.startswith("No part of SSDH's curvature information made it measurably faster. ")


def test_the_answer_is_short_and_correct(verdict: Verdict) -> None:
    assert len(verdict.answer.split()) <= 60
    assert "in fewer iterations on 1 of 1 task, and in less time on none." in verdict.answer
    assert re.search(r"The largest speed-up is [12]\.\d+×: SSDH on Transformer\.", verdict.answer)
    assert "p =" not in verdict.answer
    sentence = task_answer(verdict.tasks[0])
    assert sentence.startswith("Faster than Adam in iterations: SSDH (")
    assert "Slower than Adam: SGDM (< 1/16×)." in sentence
    lines = arm_answer(verdict.tasks, "sgdm")
    assert lines == "- Transformer: SGDM against Adam: **slower**, speed-up < 1/16× in iterations."


def test_without_a_reference_there_is_no_verdict() -> None:
    data = draw({"ssdh": 1.0}, Truth(seeds=6), np.random.default_rng(0))
    only = {k: {"ssdh": getattr(data, k)["ssdh"]} for k in ("lengths", "bests", "summaries")}
    task = judge_task(TaskData("transformer", prices=None, seeds=6, **only), SETTINGS)
    assert task.reference is None
    assert "nothing to compare with" in task.missing[0]
    assert answer([task]).startswith("No verdict")
    assert [f.metric for f in task.arms[0].final] == [
        "train_loss"
    ]  # final losses are still reported


def test_an_arm_without_a_run_has_failed_and_the_others_are_judged(study: TaskData) -> None:
    lengths = {**study.lengths, "sadh": study.lengths["sadh"].iloc[:0]}
    made = {**study.summaries["sadh"], "failed": "ValueError: no", "iterations": 0}
    summaries = {**study.summaries, "sadh": made}
    task = judge_task(
        TaskData(study.task, lengths, study.bests, summaries, study.prices, 6), SETTINGS
    )
    sadh = task.arm("sadh")
    assert sadh is not None
    assert {s.verdict for s in sadh.speedups} == {"failed"}
    assert task.arm("ssdh").speedup().verdict == "faster"  # type: ignore[union-attr]
    assert any("SADH has no run: ValueError: no" in line for line in summary.failures(task))
    assert "Failed: SADH" in task_answer(task)


def test_the_record_can_be_written_and_read(verdict: Verdict) -> None:
    document = json.loads(json.dumps(verdict.model_dump(mode="json")))
    again = read_verdict(document)
    assert again.tasks[0].arm("sgdm").speedup().low is None  # type: ignore[union-attr]
    assert again == read_verdict(again.model_dump(mode="json"))
    text = summary.summary(again)
    for words in ("< 1/16×", "over the reference in seconds", "Threats to validity", "reference"):
        assert words in text
    table = comparison_table(again)
    assert set(table["kind"]) == {"arm", "ladder"}
    assert len(table[table["kind"] == "arm"]) == 3 * 7  # clocks × arms but the reference


def test_records_of_another_version_are_refused() -> None:
    with pytest.raises(StudyError, match=r"schema version 1, but this version reads 2; write it"):
        read_verdict({"schema_version": 1, "answer": ["…"]})
    with pytest.raises(StudyError, match=r"verdict\.json does not match its schema"):
        read_verdict({"schema_version": 2})


def test_each_half_of_the_verdict_has_its_own_answer(verdict: Verdict) -> None:
    assert restrict(verdict, "networks").answer == verdict.answer
    assert restrict(verdict, "rahimi_recht").answer.startswith("No verdict")


def test_the_reference_is_chosen_by_tuning_alone() -> None:
    def best(*values: float) -> dict[str, Any]:
        return {"studies": [{"found": True, "failed": "", "value": v} for v in values]}

    assert choose_reference({"sgdm": best(1, 5, 2), "adam": best(3, 3, 3)}) == "sgdm"
    assert choose_reference({"sgdm": best(4, 5, 2), "adam": best(3, 3, 3)}) == "adam"
    lost = {"studies": [{"found": False, "failed": "diverged"}] * 3}
    assert choose_reference({"sgdm": best(9, 9, 9), "adam": lost}) == "sgdm"
    published = {"studies": [{"found": True, "failed": ""}]}
    assert choose_reference({"sgdm": published, "adam": published}) == "adam"
    assert choose_reference({"ssdh": best(1, 1, 1), "adamw": best(1, 1, 1)}) is None


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_infinite_ends_of_an_interval_are_null() -> None:
    data = draw({"ssdh": 2.0}, Truth(seeds=1, searches=1), np.random.default_rng(0))
    found = judge_task(data, SETTINGS).arm("ssdh").speedup()  # type: ignore[union-attr]
    assert found is not None
    assert (found.low, found.high, found.verdict) == (None, None, "undecided")
    assert math.isfinite(found.ratio)
    assert factor(found) == "mixed"


def test_bounds_of_two_arms_beyond_the_lengths_prove_no_difference():
    """Both arms are beyond the lengths, except for one run of each search of one arm."""
    still = Truth(search_sd=0.0, seed_sd=0.0, shared_sd=0.0, noise=0.0)
    data = draw({"ssdh": 40.0, "ssdh_permuted": 40.0}, still, np.random.default_rng(0))
    reference, table = data.lengths["adam"], data.lengths["ssdh_permuted"]
    level = reference[reference["share"] == 1.0]["train_loss"].iloc[0]
    inside = (table["seed"] < 3) & (table["share"] == LENGTHS[0])
    table.loc[inside, "train_loss"] = 1.001 * level  # still below the level at other lengths
    verdict = judge_task(data, SETTINGS)
    (step,) = [s for s in verdict.ladder if s.lower == "ssdh_permuted"]
    assert step.result.verdict == "undecided"
    assert verdict.arm("ssdh").speedup().verdict == "faster"
