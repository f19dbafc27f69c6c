"""Fixtures: a copy of the project, and the results of a run at the scale smoke."""

import shutil
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.project.warm import FORKS, WarmKedro, run_kedro

KEDRO = [str(Path(sys.executable).with_name("kedro"))]
WARM = {}


def kedro(project, *args, **environment):
    """Run a command in the project, in a fork of its warm process if there is one."""
    return WARM.get(project, partial(run_kedro, project))(*args, **environment)


@contextmanager
def copy_of_the_project(tmp_path_factory):
    """Copy the project into an empty folder, with a warm process for its commands."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("conf", "src", "notebooks"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, folder)
    if FORKS:
        WARM[folder] = WarmKedro(folder, tmp_path_factory.mktemp("output"))
    yield folder
    if FORKS:
        WARM.pop(folder).close()


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    with copy_of_the_project(tmp_path_factory) as folder:
        yield folder


@pytest.fixture(scope="session")
def smoke(project):
    """The project after a run, the run's seconds and output, and the files that it wrote."""
    start = time.perf_counter()
    done = run_kedro(project, "run", "--env=smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    seconds = time.perf_counter() - start
    return project, seconds, done.stdout, [f for f in (project / "data").rglob("*") if f.is_file()]
