"""The benchmarks run at toy size, where their numbers mean nothing."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

OWN = ("SADH", "SSDH", "SSVP", "Sophia")
FOREIGN = {"SophiaH-k10", "SophiaH-k10-due", "AdaHessian-k1", "AdaHessian-k10"}
TOY = ("--small", "--device=cpu", "--batch=4", "--streams=4", "--rounds=1", "--repetitions=2")


def benchmark(name, path, *options):
    """Run a benchmark; return its figures and its output."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *options, "--json", str(path)],
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text()), done.stdout


def overhead(path, *options):
    """Run the benchmark of a training step's cost."""
    return benchmark("step_overhead", path, *TOY, *options)


def check_ratios(figures, key="ratio"):
    for name, found in figures.items():
        assert math.isfinite(found[key]), name
        assert found[key] > 0, name


@pytest.mark.parametrize("task", ["resnet18", "transformer"])
def test_step_overhead_times_every_contender(tmp_path, task):
    figures, printed = overhead(tmp_path / "f.json", "--task", task, "--parts", "steps", "update")
    expected = {f"{name}-{k}" for name in OWN for k in ("k10", "k1", "k10-quarter")}
    expected |= {"AdamW", "plain-k10", "SSDH-difference-k10", "Sophia-G-k10"}
    expected.add("Sophia-G-apart-k10")
    if importlib.util.find_spec("pytorch_optimizer"):
        assert not figures["left_out"]
        expected |= FOREIGN
    else:
        assert "pytorch_optimizer is not installed" in printed
    assert figures["threads"] == 1
    assert figures["machine"]["torch"]
    assert "--small" in figures["command"]
    found = figures["tasks"][task]
    assert expected <= set(found["steps"])
    check_ratios(found["steps"])
    assert {f"{name}-k10" for name in OWN} | {"AdamW-foreach", "plain-k10"} <= set(found["update"])
    check_ratios(found["update"])
    for name in expected:
        assert f"\n  {name} " in printed
    # Only our optimizers refresh the curvature, from the whole batch or from a part.
    goals = {(g["part"], g["contender"]) for g in found["goals"]}
    judged = {n for n in expected if n.split("-")[0] in OWN}
    if figures["left_out"]:  # at k = 1 the goal is to be faster than the others
        judged = {n for n in judged if not n.endswith("-k1")}
    assert {name for _, name in goals} == judged
    assert all(g["met"] in (True, False) for g in found["goals"])


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks can be reset on Linux only"
)
def test_step_overhead_measures_peak_memory(tmp_path):
    figures, _ = overhead(
        tmp_path / "f.json", "--task=transformer", "--parts=memory", "--contenders", "SSDH-k10"
    )
    found = figures["tasks"]["transformer"]["memory"]
    assert set(found) == {"AdamW", "SSDH-k10"}
    check_ratios(found, "between_ratio")
    check_ratios(found, "refresh_ratio")
    assert found["SSDH-k10"]["state"] == 2  # momentum and curvature
    (goal,) = figures["tasks"]["transformer"]["goals"]
    assert (goal["part"], goal["contender"]) == ("memory", "SSDH-k10")


def test_step_overhead_names_the_contenders_when_none_fits(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/step_overhead.py", "--contenders", "Adagrad"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "SSDH-k10-quarter" in done.stderr


def test_network_ensembles_compares_seeds_together_and_apart(tmp_path):
    toy = ("--task=transformer", "--arms=ssdh", "--seeds=2", "--epochs=1", "--rounds=1")
    path = tmp_path / "f.json"
    figures, printed = benchmark("network_ensembles", path, *toy, "--device=cpu")
    assert figures["setup"] == {"seeds": 2, "rounds": 1, "epochs": 1}
    found = figures["tasks"]["transformer"]
    assert set(found) == {"ssdh"}
    check_ratios(found)
    assert found["ssdh"]["ratio"] == found["ssdh"]["apart"] / found["ssdh"]["together"]
    assert "\n  transformer   ssdh " in printed


def test_tuning_compares_trials_together_and_one_by_one(tmp_path):
    toy = ("--parts=ways", "--trials=3", "--epochs=1", "--rounds=1", "--device=cpu")
    figures, printed = benchmark("tuning", tmp_path / "f.json", *toy)
    ways = figures["ways"]
    check_ratios({"ways": ways})
    assert ways["ratio"] == ways["one by one"] / ways["together"]
    assert "3 trials of ssdh: together" in printed


def test_tuning_says_what_has_to_be_searched_first():
    done = subprocess.run(
        [sys.executable, "benchmarks/tuning.py", "--parts=configurations", "--scale=nowhere"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "data/06_models/nowhere/rr_cond29/sophia/best.json does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_network_curvature(tmp_path):
    toy = ("--small", "--device=cpu", "--images=6", "--micro-batch=4", "--batch=4", "--epochs=1")
    path, calls = tmp_path / "f.json", (*toy, "--draws=2", "--tolerance=1e-9")
    figures, printed = benchmark("network_curvature", path, *calls, "--steps=3")
    assert (figures["state"], figures["products"]) == ("done", 8)
    assert "8 products, " in printed
    assert [len(h["residuals"]) for h in figures["history"]] == [2, 2, 2]
    assert figures["eigenvalues"][0] > figures["eigenvalues"][1] > 0
    assert all(figures[part]["error"] > 0 for part in ("trace", "frobenius_norm"))
    assert len(figures["density"]["value"]) == len(figures["density"]["grid"])
    assert figures["memory_ratio"] is None or figures["memory_ratio"] > 0
    figures, _ = benchmark("network_curvature", path, *calls, "--minutes=0")
    assert len(figures["history"]) == 1


def test_a_simulated_grid_goes_through_everything(tmp_path):
    """Every run is in the catalog and in MLflow, and its search is in the database."""
    figures, printed = benchmark("simulated_grid", tmp_path / "f.json", "--runs=40", "--seeds=20")
    (grid,) = figures["grids"]
    assert (grid["runs"], grid["tracked"], grid["trials"]) == (40, 40, 2 * 4)
    assert grid["data_mib"] > 0
    check_ratios({"start": figures["start"], "grid": grid}, "cpu_seconds")
    assert "\n    40 runs: " in f"\n{printed}"


def test_finite_differences_are_compared_with_second_derivatives(tmp_path):
    picture = tmp_path / "figure.png"
    toy = ("--task=transformer", "--iterations=4", "--every=2", f"--figure={picture}")
    figures, printed = benchmark("finite_differences", tmp_path / "f.json", *toy)
    rows = figures["tasks"]["transformer"]["rows"]
    assert [row["iteration"] for row in rows] == [0, 2]
    assert all(-1 <= row["0.05"] <= 1 for row in rows)
    assert max(row["0.05"] for row in rows) > 0.99
    assert "transformer, 2 products" in printed
    assert picture.stat().st_size > 10_000


def test_the_docs_have_the_cosines_that_were_measured():
    made = PROJECT / "benchmarks" / "results" / "finite_differences_cpu.json"
    page = (PROJECT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    for task, label in (("resnet18", "ResNet-18"), ("transformer", "Transformer")):
        found = json.loads(made.read_text(encoding="utf-8"))["tasks"][task]
        one = found["summary"]["0.05"]
        row = f"| {label} | {len(found['rows'])} | {one['median']:.4f} | {one['above_0.999']:.0%} |"
        assert row.replace("%", " %") in page


def test_the_docs_have_the_step_costs_and_the_memory_that_were_measured():
    page = (PROJECT / "docs" / "howto" / "your_training_loop.md").read_text(encoding="utf-8")
    results = PROJECT / "benchmarks" / "results"

    def read(name):
        return json.loads((results / f"{name}_cpu.json").read_text(encoding="utf-8"))["tasks"]

    memory = read("memory_first_derivatives")
    for label, name in (
        ("SSDH, finite differences", "SSDH-difference-k10"),
        ("Sophia-G", "Sophia-G-k10"),
    ):
        tasks = ("resnet18", "transformer")
        steps = [read(f"first_derivatives_{t}")[t]["steps"][name]["ratio"] for t in tasks]
        peaks = [memory[t]["memory"][name]["refresh_ratio"] for t in tasks]
        row = [label, *(f"{r:.3f}" for r in steps), *(f"{r:.2f}" for r in peaks)]
        assert f"| {' | '.join(row)} |" in page


def test_the_headline_benchmark_compares_ensembles_with_plain_runs(tmp_path):
    toy = ("--rounds=1", "--epochs=1", "--members", "2")
    figures, printed = benchmark("rr_study", tmp_path / "f.json", *toy)
    found = figures["members"]["2"]
    assert set(found["ratios"]) == {"sgdm", "adam", "sophia", "sadh", "ssdh", "ssvp"}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    if importlib.util.find_spec("jax"):
        check_ratios({"jax": found["jax"]})
    else:
        assert "JAX is not installed: pip install '.[peers]'" in printed


def test_plain_adam_learns(tmp_path):
    options = ("--scale=quick", "--rates", "0.01", "--seeds=1")
    figures, printed = benchmark("plain_adam", tmp_path / "f.json", *options)
    images, text = (figures["tasks"][task] for task in ("resnet18", "transformer"))
    assert "resnet18: test accuracy" in printed
    assert images["values"][0] > 90  # percent of the digits
    assert text["values"][0] < 60  # of 500 words
    for found in (images, text):
        assert found["lr"] == 0.01
        assert len(found["values"]) == 1
