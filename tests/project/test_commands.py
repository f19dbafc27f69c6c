"""Every command on the pages runs at toy size, here or in the test named here."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tests.conftest import PROJECT
from tests.project.conftest import copy_of_the_project, kedro
from tests.project.test_browser import serving

PROGRAMS = r"(?:kedro|make|python|mlflow|adaptive\w*|torchrun|pip|ray|pytest)"

STUDY, BENCHMARKS = "tests/project/test_study.py::", "tests/project/test_benchmarks.py::"
BROWSER = "tests/project/test_browser.py::"
RAY = "tests/project/test_ray.py::"
SELECTION = "tests/project/test_selection.py::"
SETS = f"{STUDY}test_other_sets_of_arms_are_searched_trained_and_judged"

ELSEWHERE = {
    "kedro run": f"{STUDY}test_a_run_ends_with_where_its_results_are",
    **{f"kedro run --pipelines={name}": SETS for name in ("ladder", "zoo", "all", "custom")},
    "kedro run --pipelines=fidelity": f"{STUDY}test_fidelity_has_a_table_and_a_figure",
    "kedro run --pipelines=curvature": f"{STUDY}test_curvature_has_tables_a_report_and_figures",
    "kedro run --pipelines=ledger": f"{STUDY}test_the_ledger_flips_one_switch_at_a_time",
    "kedro run --only-missing-outputs": f"{STUDY}test_an_interrupted_run_is_taken_up",
    "kedro run --params=training.resume=false": (
        f"{STUDY}test_finished_runs_are_left_until_something_relevant_changes"
    ),
    "kedro run --params=arms.rr_cond29.ssdh.eps=1e-6": (
        f"{STUDY}test_finished_runs_are_left_until_something_relevant_changes"
    ),
    "kedro run --params=tuning.source=published": (
        f"{STUDY}test_published_configurations_are_taken_on_request"
    ),
    "kedro run --pipelines=tuning --tags=ssdh --params=tuning.tasks.rr_cond29.budget=64": (
        f"{STUDY}test_a_finished_search_is_not_gone_on_with"
    ),
    "kedro run --pipelines=custom --params=arms.rr_cond29.custom.optimizer=torch.optim.Adamax,"
    "arms.rr_cond15099.custom.optimizer=torch.optim.Adamax": SETS,
    "kedro run --runner=adaptive_opt.io.RayRunner": (
        f"{RAY}test_three_nodes_one_killed_are_bit_for_bit_one_after_the_other"
    ),
    "kedro run --runner=adaptive_opt.io.RayRunner --runner-params=address=HOST:6379": (
        f"{RAY}test_three_nodes_one_killed_are_bit_for_bit_one_after_the_other"
    ),
    "kedro run --tags=transformer": (
        f"{SELECTION}test_a_task_on_text_of_ones_own_ends_with_its_report"
    ),
    "kedro run --tags=transformer --params=data.transformer.source=files,"
    "data.transformer.path=data/01_raw/prose": (
        f"{SELECTION}test_a_task_on_text_of_ones_own_ends_with_its_report"
    ),
    "kedro run --tags=resnet18 --params=data.resnet18.source=folder,"
    "data.resnet18.path=data/01_raw/pictures,data.resnet18.image_size=32": (
        f"{SELECTION}test_two_arms_on_a_folder_of_images_end_with_their_report"
    ),
    "kedro run --tags=networks": (
        f"{SELECTION}test_two_arms_on_a_folder_of_images_end_with_their_report"
    ),
    "kedro run --tags=resnet18.adam,resnet18.ssdh": (
        f"{SELECTION}test_two_arms_on_a_folder_of_images_end_with_their_report"
    ),
    "kedro viz run": f"{BROWSER}test_kedro_viz_opens_pipeline_by_pipeline",
    "kedro viz run --port=4200": f"{BROWSER}test_kedro_viz_opens_pipeline_by_pipeline",
    "kedro viz build": f"{BROWSER}test_the_static_site_says_nothing_of_the_machine",
    "kedro jupyter lab": "tests/project/test_notebooks.py::test_every_figure_is_drawn",
    "make run": f"{STUDY}test_a_run_ends_with_where_its_results_are",
    "make mlflow": f"{BROWSER}test_mlflow_lists_the_runs_and_its_curves_grow",
    "make faults": "tests/faults/test_faults.py::test_some_faults_change_no_result",
    "python -m adaptive_opt --env=smoke --conf-source=conf-adaptive_opt.tar.gz": (
        "tests/project/test_library.py::test_the_wheel_writes_into_the_working_directory"
    ),
    "python -m tests.evidence.simulated": (
        "tests/evidence/test_verdict.py::test_intervals_cover_the_true_speed"
    ),
    "python benchmarks/finite_differences.py": (
        f"{BENCHMARKS}test_finite_differences_are_compared_with_second_derivatives"
    ),
    "python benchmarks/network_curvature.py": f"{BENCHMARKS}test_network_curvature",
    "python benchmarks/simulated_grid.py": (
        f"{BENCHMARKS}test_a_simulated_grid_goes_through_everything"
    ),
    "python benchmarks/step_overhead.py": f"{BENCHMARKS}test_step_overhead_times_every_contender",
    "python benchmarks/tuning.py": (
        f"{BENCHMARKS}test_tuning_compares_trials_together_and_one_by_one"
    ),
    "python tests/faults/cluster.py": (
        f"{RAY}test_three_nodes_one_killed_are_bit_for_bit_one_after_the_other"
    ),
    "python tests/faults/harness.py": (
        "tests/faults/test_faults.py::test_some_faults_change_no_result"
    ),
    "torchrun": (
        "tests/optim/test_frameworks.py::test_torchrun_trains_like_one_process_on_the_joined_batch"
    ),
}
"""Tests of commands, by the beginning of the command; for ``kedro``, by the whole."""

NOT_RUN = {
    "make install": "it downloads packages, and made the environment of this test",
    "make test": "it is these tests",
}

PART = {
    "rahimi_recht": "rr_cond29.sgdm,rr_cond29.ssdh",
    "rr_cond29": "rr_cond29.sgdm,rr_cond29.ssdh",
    "networks": "resnet18.sgdm,resnet18.ssdh",
    "resnet18": "resnet18.sgdm,resnet18.ssdh",
    "transformer": "transformer.sgdm,transformer.ssdh",
    "custom": "rr_cond29.custom",
}
"""Tags of two runs that replace the tag of a whole task."""


def typed(text):
    """Return the commands of a page's code blocks, without variables in front."""
    text = re.sub(r"\\\n\s*", "", text)
    fenced = re.findall(r"^```(?:sh|bash|console|shell)?\n(.*?)^```", text, re.S | re.M)
    lines = [*re.findall(r"^ {4,}.*", text, re.M), *"".join(fenced).splitlines()]
    for part in (part for line in lines for part in line.split(" && ")):
        if found := re.match(rf"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*({PROGRAMS} .*)", part):
            yield shlex.split(found[1], comments=True)


def without_scale(words):
    """Return a command without its environment, because all run at the scale smoke."""
    words = [w for w in words if not w.startswith("--env=")] if words[0] == "kedro" else words
    return " ".join(words)


PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
COMMANDS = {
    without_scale(words): words for page in PAGES for words in typed(page.read_text("utf-8"))
}


def named_test(command):
    """Return the test that runs a command; None if there is none."""
    if command.startswith("kedro"):
        return ELSEWHERE.get(command)
    return next((ELSEWHERE[key] for key in ELSEWHERE if command.startswith(key)), None)


HERE = [c for c in COMMANDS if not named_test(c) and c not in NOT_RUN]


def toy(command):
    """Return the words of a ``kedro`` command at the scale smoke, on a part of the grid."""
    for tag, part in PART.items():
        command = re.sub(rf"--tags={tag}(?= |$)", f"--tags={part}", command)
    if "--pipelines" in command and "tuning" in command and "--tags" not in command:
        command += " --tags=rr_cond29.sgdm"
    command = command.replace("=FILE", "=data/01_raw/pictures.npz")
    if "rr_cond15099" not in command.partition("--params")[0]:
        command = re.sub(r",rr_synthesis\.rr_cond15099[^, ]*", "", command)
    command = command.replace("rahimi_recht_cond29.npz", "function.npz")
    return [*shlex.split(command)[1:], "--env=smoke"]


TOYS = {tuple(toy(c)): c for c in HERE if c.startswith("kedro")}
RUNS = sorted(TOYS.values(), key=lambda c: ("--params" in c, c))


def test_commands_are_found_and_nothing_is_named_in_vain():
    assert len(COMMANDS) > 60
    assert {c.split()[0] for c in COMMANDS} >= {"kedro", "make", "python", "pip", "torchrun"}
    for key in (*ELSEWHERE, *NOT_RUN):
        assert any(command.startswith(key) for command in COMMANDS), key


def test_the_tests_of_commands_exist():
    for test in {*ELSEWHERE.values()}:
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (PROJECT / file).read_text(encoding="utf-8"), test


def test_programs_have_the_options_of_the_pages():
    common = (PROJECT / "benchmarks" / "_common.py").read_text(encoding="utf-8")
    for words in COMMANDS.values():
        if words[0] == "python" and words[1].endswith(".py"):
            source = (PROJECT / words[1]).read_text(encoding="utf-8") + common
            for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert f'"{option}"' in source, words


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_knows_its_targets(command):
    done = subprocess.run(
        [*command.split(), "-n"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", [c for c in HERE if c.startswith("pip")])
def test_extras_exist(command):
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    (extra,) = re.findall(r"install \.\[(\w+)\]$", command)
    assert f"\n{extra} = [" in text


@pytest.fixture(scope="module")
def study(smoke, tmp_path_factory):
    """A copy of the smoke study with the user's data, without MLflow to save time."""
    with copy_of_the_project(tmp_path_factory) as folder:
        shutil.copytree(smoke[0] / "data", folder / "data")
        with (folder / "conf/smoke/parameters.yml").open("a", encoding="utf-8") as file:
            file.write("tracking: {enabled: false}\n")
        raw = folder / "data" / "01_raw"
        raw.mkdir(exist_ok=True)
        draw = np.random.default_rng(0).normal
        np.savez(raw / "function.npz", A=draw(size=(4, 3)), X=draw(size=(256, 3)))
        digits = load_digits()
        x, y = digits.images.astype(np.uint8), digits.target
        np.savez(
            raw / "pictures.npz", x_train=x[:900], y_train=y[:900], x_test=x[900:], y_test=y[900:]
        )
        yield folder


@pytest.mark.parametrize("command", RUNS)
def test_a_command_of_kedro(study, command):
    done = kedro(study, *toy(command))
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    if "device=cuda" in command and not torch.cuda.is_available():
        assert done.returncode == 1
        assert "torch sees no GPU here; set it to 'auto' or 'cpu'" in done.stderr
        return
    assert done.returncode == 0, printed
    if command.startswith("kedro run"):
        assert re.search(r"Completed (\d+) out of \1 tasks", printed)
    elif command.startswith("kedro viz build"):
        into = re.search(r"--into=(\S+)|$", command)[1] or "build/viz"
        assert (study / into / "index.html").is_file()
    else:
        assert re.search(r"^resnet18 +\w+ +done", printed, re.M)


@pytest.mark.parametrize(
    "command", [c for c in HERE if c.split()[0] not in ("kedro", "make", "pip")]
)
def test_a_command_of_python(study, tmp_path, command):
    words = [sys.executable, *COMMANDS[command][1:]]
    if "http.server" in words:
        folder = tmp_path / "build" / "viz"
        folder.mkdir(parents=True)
        (folder / "index.html").write_text("<p>here", encoding="utf-8")
        with serving(tmp_path, [*words, "{port}"], "/index.html"):
            return
    done = subprocess.run(
        words, cwd=study, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"\[\d+ rows x \d+ columns\]", done.stdout)
