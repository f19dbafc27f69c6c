"""The pages agree with the measurements."""

import json
import re
import sys

import pandas as pd
import pytest

from adaptive_opt.study import default_arms
from tests.conftest import PROJECT, script

DOCS = PROJECT / "docs"


def builder(name="build_results"):
    return script("docs", name)


def medians(scale, task):
    table = pd.read_csv(DOCS / "results" / scale / "time_to_target.csv")
    return table[table["task"] == task].set_index("arm")["median_of_reached"]


def test_the_results_page_is_what_the_tables_say():
    assert (DOCS / "results.md").read_text(encoding="utf-8") == builder().page()


@pytest.mark.parametrize("page", ["verdict", "ledger", "fidelity"])
def test_pages_on_evidence_are_what_the_records_say(page):
    made = builder("build_evidence").PAGES[page]()
    assert (DOCS / f"{page}.md").read_text(encoding="utf-8") == made


def test_the_largest_study_with_a_record_gives_the_answer(tmp_path, monkeypatch):
    module = builder("build_evidence")
    record = sys.modules["record"]
    for scale, name in (("base", "base"), ("evening", "base")):
        found = json.loads((DOCS / "results" / name / "verdict.json").read_text(encoding="utf-8"))
        record.write_json(tmp_path / scale / "verdict.json", {**found, "scale": scale})
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    page, readme, base = module.verdict_page(), module.readme(), module.base_page()
    assert "kedro run --env=evening" in page
    assert "figures/evening_verdict_ladder.png" in page
    assert "Made by `kedro run --env=evening`" in readme
    assert "docs/figures/evening_verdict_loss_by_length.png" in readme
    assert "figures/verdict_ladder.png" in base
    assert "CIFAR-10" not in base.partition("## Threats")[0]


def test_the_readme_has_the_answer_of_the_record():
    made = builder("build_evidence").readme()
    assert (PROJECT / "README.md").read_text(encoding="utf-8") == made
    assert len(made.splitlines()) <= 120
    verdict = builder("build_evidence").verdict()
    assert verdict.answer in made
    assert len(verdict.answer.split()) <= 60


def test_the_committed_verdict_has_a_number_or_a_bound_for_every_arm():
    """Arms have distinct numbers, and none is undecided because a target is missing."""
    for task in builder("build_evidence").verdict().tasks:
        assert task.reference in ("sgdm", "adam")
        assert task.missing == []
        found = [a.speedup() for a in task.arms if a.arm != task.reference]
        assert None not in found
        numbers = [s.ratio for s in found if s.bound not in ("<", ">")]
        assert len({round(n, 6) for n in numbers}) == len(numbers)


def test_the_page_on_steps_is_what_was_measured():
    assert (DOCS / "step_cost.md").read_text(encoding="utf-8") == builder("build_step_cost").page()


def test_the_page_on_faults_is_what_the_harness_recorded():
    assert (DOCS / "faults.md").read_text(encoding="utf-8") == builder("build_faults").page()


def test_the_page_on_gpus_is_what_the_records_say():
    assert (DOCS / "gpu.md").read_text(encoding="utf-8") == builder("build_gpu").page()
    assert "(gpu.md)" in (DOCS / "index.md").read_text(encoding="utf-8")


def test_the_page_on_curvature_is_what_the_records_say():
    assert (DOCS / "curvature.md").read_text(encoding="utf-8") == builder("build_curvature").page()


def test_the_published_orders_are_reproduced():
    easy, hard = (medians("replication", t) for t in ("rr_cond29", "rr_cond15099"))
    assert easy["ssdh"] < easy["sadh"] < easy["ssvp"] < easy["sophia"]
    assert hard["ssvp"] < hard["sadh"] < hard["ssdh"]
    for table in (easy, hard, medians("paper", "rr_cond29"), medians("paper", "rr_cond15099")):
        assert table["adam"] == table["sgdm"] == float("inf")


@pytest.mark.parametrize(
    ("scale", "task", "expected"),
    [
        ("replication", "rr_cond29", {"ssdh": 300, "sadh": 900, "ssvp": 1100, "sophia": 4500}),
        ("replication", "rr_cond15099", {"sadh": 6700, "ssdh": 16000, "ssvp": 5500}),
        ("paper", "rr_cond15099", {"ssdh": 6300, "sadh": 4400}),
    ],
)
def test_medians_are_within_half_of_the_known_ones(scale, task, expected):
    found = medians(scale, task)
    for arm, value in expected.items():
        assert value / 1.5 < found[arm] < value * 1.5


def test_the_performance_page_quotes_the_benchmark():
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    figures = json.loads(
        (PROJECT / "benchmarks/results/rr_study_cpu.json").read_text(encoding="utf-8")
    )
    for members, row in figures["members"].items():
        mean = row["mean"]
        assert re.search(
            rf"\| {members} members \| {mean['plain']:.0f} \| {mean['ensemble']:.1f} "
            rf"\| {mean['ratio']:.0f} \|",
            text,
        )
    study, hessian = figures["study"], figures["hessian_ms"]
    assert f"{study['plain_extrapolated_seconds'] / 3600:.1f} h" in text
    assert f"{study['seconds']:.0f} s, measured | {study['ratio']:.0f} |" in text
    assert f"| {hessian['plain']:.0f} | {hessian['ensemble']:.2f} |" in text
    assert figures["members"]["16"]["mean"]["ratio"] > 25
    assert figures["members"]["96"]["mean"]["ratio"] > 40
    assert study["ratio"] > 30
    assert study["seconds"] < 240


def test_what_was_found_is_at_least_as_good_as_what_was_published():
    figures = json.loads((PROJECT / "benchmarks/results/tuning_cpu.json").read_text("utf-8"))
    assert builder().worse_than_published() == []
    assert {task: len(arms) for task, arms in figures["configurations"].items()} == {
        "rr_cond29": 4,
        "rr_cond15099": 4,
    }
    assert all(
        row[which]["seeds"] == 16
        for arms in figures["configurations"].values()
        for row in arms.values()
        for which in ("found", "published")
    )
    assert figures["ways"]["trials"] == 64
    assert figures["ways"]["epochs"] == 150
    assert figures["ways"]["ratio"] >= 20


@pytest.mark.parametrize(("scale", "arms"), [("base", len(default_arms())), ("paper", 6)])
def test_every_arm_learns_on_every_network(scale, arms):
    table = pd.read_csv(DOCS / "results" / scale / "networks" / "outcomes.csv")
    assert len(table) == 2 * arms
    assert (table["diverged"] == 0).all()
    assert (table["train_loss"] < 0.8 * table["start"]).all()


@pytest.mark.parametrize("page", [*DOCS.rglob("*.md"), *PROJECT.glob("*.md")], ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
