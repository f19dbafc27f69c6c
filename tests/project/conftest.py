"""The project in an empty folder, and what a run at the scale smoke leaves there."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT

KEDRO = [str(Path(sys.executable).with_name("kedro"))]


def kedro(project, *args):
    env = {**os.environ, "COLUMNS": "500", "PYTHONPATH": ""}
    return subprocess.run(
        [*KEDRO, *args], cwd=project, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    for name in ("conf", "src", "notebooks"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, folder)
    return folder


@pytest.fixture(scope="session")
def smoke(project):
    start = time.perf_counter()
    done = kedro(project, "run", "--env=smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    return project, time.perf_counter() - start
