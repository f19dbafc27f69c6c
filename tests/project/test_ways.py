"""Each row of the page on ways to run is true."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.project.conftest import copy_of_the_project, kedro
from tests.project.warm import run_kedro

PAGE = (PROJECT / "docs" / "howto" / "ways_to_run.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (`[^|]+`|a [^|]+) \| (works|refused) \|", PAGE, re.M)
TESTED_ELSEWHERE = {
    "kedro run --runner=adaptive_opt.io.RayRunner": (
        "test_ray",
        "test_three_nodes_one_killed_are_bit_for_bit_one_after_the_other",
    ),
    "python -m adaptive_opt": ("test_study", "test_the_package_runs_as_a_module"),
    "a wheel": ("test_library", "test_the_wheel_writes_into_the_working_directory"),
}
ONE = "--nodes=rr_synthesis.rr_cond29.make"
BOTH = f"{ONE},rr_synthesis.rr_cond15099.make"
CHOOSES = r"--(pipelines|nodes|to-outputs|namespaces|config)="


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy with the files that the rows name, without MLflow to save time."""
    with copy_of_the_project(tmp_path_factory) as folder:
        with (folder / "conf/smoke/parameters.yml").open("a", encoding="utf-8") as file:
            file.write("tracking: {enabled: false}\n")
        shutil.make_archive(str(folder / "conf"), "gztar", folder, "conf")
        (folder / "run.yml").write_text("run: {namespaces: rr_synthesis.rr_cond29}\n", "utf-8")
        yield folder


def run(folder, *command, **environment):
    """Run a command in a new process that imports the copy."""
    environment = {**os.environ, "COLUMNS": "500", "PYTHONPATH": "", **environment}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def below(project, tmp_path):
    return run_kedro(project / "notebooks", "run", "--env=smoke", ONE)


def ipython(project, tmp_path):
    program = tmp_path / "ipython"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m IPython "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    code = f"session.run(node_names=['{ONE.partition('=')[2]}']); print(sorted(pipelines)[1])"
    return run_kedro(project, "ipython", "--env=smoke", "--", "-c", code, PATH=path)


def script(project, tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    folder = f"Path({str(project)!r})"
    (tmp_path / "script.py").write_text(program.replace('Path("adaptive_opt")', folder), "utf-8")
    return run(tmp_path, sys.executable, "script.py")


def read_only(project, tmp_path, **environment):
    copy = tmp_path / "read_only"
    for name in ("conf", "src"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project / name, copy / name, ignore=ignored)
    shutil.copy(project / "pyproject.toml", copy)
    for path in (*copy.rglob("*"), copy):
        path.chmod(path.stat().st_mode & 0o555)
    rights = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    if os.geteuid():
        rights = []
    elif not shutil.which("setpriv") or run(copy, *rights, "true").returncode:
        pytest.skip("root can write anywhere, and setpriv is not available")
    words = [sys.executable, "-m", "kedro", "run", "--env=smoke", ONE]
    done = run(copy, *rights, *words, **environment)
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    assert sorted(p.name for p in copy.iterdir()) == ["conf", "pyproject.toml", "src"]
    return done


def elsewhere(project, tmp_path):
    folder = tmp_path / "study"
    done = read_only(project, tmp_path, ADAPTIVE_OPT_FOLDER=str(folder))
    made = folder / "data/03_primary/smoke/rr_cond29/function.safetensors"
    assert made.is_file(), done.stdout + done.stderr
    return done


SPECIAL = {
    "cd notebooks && kedro run": below,
    "kedro ipython": ipython,
    "python script.py": script,
    "a read-only checkout": read_only,
    "ADAPTIVE_OPT_FOLDER=~/study kedro run": elsewhere,
}


def test_the_page_has_every_way():
    ways = [way.strip("`") for way, _ in ROWS]
    assert len(ways) > 20
    named = {*SPECIAL, *TESTED_ELSEWHERE}
    assert {way for way in ways if not way.startswith("kedro run ")} <= named <= {*ways}
    for module, test in TESTED_ELSEWHERE.values():
        source = (PROJECT / "tests" / "project" / f"{module}.py").read_text(encoding="utf-8")
        assert f"\ndef {test}(" in source


@pytest.mark.parametrize(
    ("way", "result"), [row for row in ROWS if row[0].strip("`") not in TESTED_ELSEWHERE]
)
def test_a_way_to_run(project, tmp_path, way, result):
    way = way.strip("`")
    if way in SPECIAL:
        done = SPECIAL[way](project, tmp_path)
    else:
        words = [*shlex.split(way)[1:], "--env=smoke"]
        done = kedro(project, *words, *([] if re.search(CHOOSES, way) else [BOTH]))
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed
    if result == "works":
        assert done.returncode == 0, printed
        assert re.search(r"Completed (\d+) out of \1 tasks|Skipping all 2 nodes", printed)
    else:
        assert done.returncode == 1, printed
        (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
        assert re.search("ADAPTIVE_OPT_FOLDER|leave --runner out|leave the option out", sentence)
        assert "Completed" not in done.stdout


def test_a_fault_in_an_archive_names_the_archive(project):
    wrong = project / "wrong.zip"
    folder = project / "archived"
    shutil.copytree(project / "conf", folder / "conf")
    (folder / "conf/smoke/parameters.yml").write_text("training: {epoch: 3}\n", encoding="utf-8")
    shutil.make_archive(str(wrong.with_suffix("")), "zip", folder, "conf")
    done = kedro(project, "run", "--env=smoke", ONE, "--conf-source=wrong.zip")
    shutil.rmtree(folder)
    wrong.unlink()
    assert done.returncode == 1
    assert "wrong.zip: training.epoch: unknown parameter 'epoch'" in done.stderr
