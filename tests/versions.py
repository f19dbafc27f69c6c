"""Do the oldest and the newest allowed versions of the packages work?

    python tests/versions.py oldest newest
    python tests/versions.py newest --python ~/.pyenv/versions/3.13.0/bin/python

For each name an environment is made in ``build/versions``, with the versions that pip prefers
(``newest``) or the oldest allowed ones of Kedro, its plugins and Ray (``oldest``); the bounds are
those of ``adaptive_opt.io.private_interfaces``. In it the scale smoke runs, then the tests of
kedro-viz, MLflow, the runners and the datasets. Exit status 1: something failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.specifiers import SpecifierSet

from adaptive_opt.io.private_interfaces import REQUIREMENTS

PROJECT = Path(__file__).parents[1]
TESTS = [
    "tests/test_private_interfaces.py",
    "tests/project/test_browser.py",
    "tests/project/test_datasets.py",
    "tests/project/test_lineage.py",
    "tests/project/test_ray.py",
    "tests/project/test_runner.py",
    "tests/project/test_tracking.py",
]


def oldest():
    """Pin the packages whose undocumented interfaces are used to their lower bounds."""
    for package, bounds in REQUIREMENTS.items():
        (bound,) = [s.version for s in SpecifierSet(bounds) if s.operator == ">="]
        yield f"{package}=={bound}"


def install(name, python):
    """Make the environment; return its folder of programs."""
    folder = PROJECT / "build" / "versions" / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(oldest() if name == "oldest" else []), "utf-8")
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--constraint", constraints, "--editable", f"{PROJECT}[dev]"], check=True)
    return folder / "bin"


def check(name, python):
    """Install, run smoke and the tests; return what failed."""
    bin_folder = install(name, python)
    names = r"kedro|kedro-(viz|mlflow|datasets)|mlflow|ray|optuna|torch|pandas|numpy"
    listed = subprocess.run(
        [bin_folder / "python", "-m", "pip", "list", "--format=freeze"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    print(name, *(line for line in listed.stdout.split() if re.match(rf"({names})==", line)))
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    commands = {
        "kedro run --env=smoke": [bin_folder / "kedro", "run", "--env=smoke"],
        "tests": [bin_folder / "python", "-m", "pytest", "-q", *TESTS],
    }
    failed = []
    for what, command in commands.items():
        if subprocess.run(command, cwd=PROJECT, env=environment, check=False).returncode:
            failed.append(f"{name}: {what}")
    return failed


def main():
    line = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument("names", nargs="+", choices=["oldest", "newest"])
    line.add_argument("--python", default=sys.executable, help="which Python; default: this one")
    given = line.parse_args()
    failed = [words for name in given.names for words in check(name, given.python)]
    print("\n".join(failed) or "all passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
