"""Measure the cost of tracking: ``kedro run`` with and without MLflow, in turns.

Every run uses a copy of the project without results and a database made before. The figure is the
ratio of the medians.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from _common import at_least_1, parser, write

PROJECT = Path(__file__).parents[1]
SIDES = {"with": "true", "without": "false"}


def copy_project(folder: Path) -> None:
    """Copy the files that a run needs, without results."""
    left_out = shutil.ignore_patterns("__pycache__")
    for name in ("conf", "src", "benchmarks/results"):
        shutil.copytree(PROJECT / name, folder / name, ignore=left_out)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, folder)
    raw = PROJECT / "data" / "01_raw"
    if raw.is_dir():
        shutil.copytree(raw, folder / "data" / "01_raw")


def run(folder: Path, side: str, options: list[str], params: list[str]) -> float:
    """Measure one ``kedro run`` without earlier results."""
    for name in ("03_primary", "05_model_input", "06_models", "07_model_output", "08_reporting"):
        shutil.rmtree(folder / "data" / name, ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"DO_NOT_TRACK": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    given = ",".join([f"tracking.enabled={SIDES[side]}", *params])
    command = [str(Path(sys.executable).with_name("kedro")), "run", f"--params={given}", *options]
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return took


def children(folder: Path) -> int:
    """Count the child runs in the database."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as base:
        query = "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'"
        return int(base.execute(query).fetchone()[0])


def compare(rounds: int, env: str, options: list[str], params: list[str]) -> dict[str, Any]:
    """Measure every run of both sides; the first side changes from round to round."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder)
        # Modules are compiled here, the database made.
        run(folder, "with", [env, "--pipelines=rr_synthesis"], [])
        before = children(folder)
        for number in range(rounds):
            for side in list(SIDES)[:: 1 if number % 2 else -1]:
                times[side].append(run(folder, side, [env, *options], params))
                print(f"  {side:8s} {times[side][-1]:8.1f} s", flush=True)
        tracked = (children(folder) - before) / rounds
    medians = {side: statistics.median(t) for side, t in times.items()}
    ratio = medians["with"] / medians["without"]
    return {"seconds": times, "medians": medians, "ratio": ratio, "children": tracked}


def main() -> None:
    """Measure, print, and write."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="runs of each side")
    options.add_argument("--env", default="base", help="Kedro environment")
    options.add_argument("--tags", help="part of the grid: tasks, arms, kinds, halves")
    options.add_argument("--pipelines", help="arms to train, instead of all")
    options.add_argument("--params", nargs="*", default=[], help="KEY=VALUE, as for kedro run")
    chosen = options.parse_args()
    at_least_1(options, chosen, "rounds")
    env, given = f"--env={chosen.env}", []
    given += [f"--tags={chosen.tags}"] * bool(chosen.tags)
    given += [f"--pipelines={chosen.pipelines}"] * bool(chosen.pipelines)
    command = " ".join(["kedro run", env, *given, *chosen.params])
    print(command)
    figures = compare(chosen.rounds, env, given, chosen.params)
    print(
        f"medians: with {figures['medians']['with']:.1f} s, without "
        f"{figures['medians']['without']:.1f} s; ratio {figures['ratio']:.3f}, "
        f"{figures['children']:.0f} child runs a run"
    )
    write(chosen.json, {"command": command, **figures})


if __name__ == "__main__":
    main()
