"""Measure the machinery around training with a grid that trains nothing.

Whole `kedro run`s in a copy of the project whose pipelines are those of _simulated_registry.py:
the real runner, catalog, Optuna storage and MLflow tracking, with random numbers for results. All
of the time is the machinery's. A run is one (task, arm, seed); a node has all seeds of an arm.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from _common import at_least_1, parser, write
from tracking_overhead import copy_project

RUNNERS = {
    "StudyRunner": "adaptive_opt.io.StudyRunner",
    "RayRunner": "adaptive_opt.io.RayRunner",
    "SequentialRunner": "SequentialRunner",
}
WAITS = 3600  # for MLflow to take everything, which is part of what is measured


def simulate(
    folder: Path, cells: int, seeds: int, runner: str, params: list[str]
) -> dict[str, Any]:
    """Measure time and memory of one grid."""
    shutil.copy(Path(__file__).with_name("_simulated_registry.py"), folder / "registry.py")
    os.replace(folder / "registry.py", folder / "src/adaptive_opt/pipeline_registry.py")
    environment = {**os.environ, "PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {
        "DO_NOT_TRACK": "1",
        "SIMULATED_CELLS": str(cells),
        "SIMULATED_SEEDS": str(seeds),
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    given = [f"tracking.wait_seconds={WAITS}", "tuning.source=published", "training.device=cpu"]
    command = [str(Path(sys.executable).with_name("kedro")), "run", "--env=smoke"]
    command += [f"--runner={RUNNERS[runner]}", f"--params={','.join([*given, *params])}"]
    with (folder / "log").open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)  # noqa: S603
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit((folder / "log").read_text()[-4000:])
    return {
        "runs": cells * seeds,
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mib": used.ru_maxrss / 1024,
        **_left(folder),
    }


def _left(folder: Path) -> dict[str, Any]:
    """Count files and records on disk and in the two databases."""
    data = folder / "data"
    size = sum(f.stat().st_size for f in data.rglob("*") if f.is_file())
    mlflow, studies = folder / "mlflow.db", data / "06_models/smoke/studies.db"
    children = "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'"
    found = {"tracked": _count(mlflow, children)}
    found["trials"] = _count(studies, "SELECT count(*) FROM trials")
    sizes = {"mlflow_mib": mlflow, "studies_mib": studies}
    written = {n: p.stat().st_size / 2**20 if p.exists() else 0 for n, p in sizes.items()}
    return {**found, "data_mib": size / 2**20, **written}


def _count(database: Path, query: str) -> int:
    if not database.exists():  # nothing was tracked
        return 0
    with closing(sqlite3.connect(database)) as base:
        return int(base.execute(query).fetchone()[0])


def main() -> None:
    """Measure, print, and write."""
    options = parser(__doc__, "--runs 1000 10000 --runner StudyRunner")
    options.add_argument(
        "--runs", type=int, nargs="+", default=[1000, 10000], help="runs of each grid"
    )
    options.add_argument("--seeds", type=int, default=10, help="seeds of a node")
    options.add_argument("--runner", choices=RUNNERS, default="StudyRunner")
    options.add_argument("--params", nargs="*", default=[], help="KEY=VALUE, as for kedro run")
    chosen = options.parse_args()
    at_least_1(options, chosen, "seeds")
    found = []
    for runs in [0, *chosen.runs]:  # the first grid, of one node, is what a start costs
        with tempfile.TemporaryDirectory() as name:
            copy_project(Path(name))
            cells = max(1, runs // chosen.seeds)
            figures = simulate(Path(name), cells, chosen.seeds, chosen.runner, chosen.params)
        if not runs:
            start = figures
            continue
        rest = figures["runs"] - start["runs"]
        figures["ms_a_run"] = 1e3 * figures["seconds"] / figures["runs"]
        figures["ms_a_run_without_start"] = 1e3 * (figures["seconds"] - start["seconds"]) / rest
        found.append(figures)
        print(
            f"{figures['runs']:6,} runs: {figures['seconds']:7.1f} s, "
            f"{figures['ms_a_run']:6.1f} ms a run "
            f"({figures['ms_a_run_without_start']:.1f} without the start), "
            f"CPU {figures['cpu_seconds']:.1f} s, {figures['peak_mib']:.0f} MiB, "
            f"{figures['tracked']:,} in MLflow, {figures['trials']:,} trials",
            flush=True,
        )
    write(
        chosen.json,
        {"runner": chosen.runner, "seeds": chosen.seeds, "start": start, "grids": found},
    )


if __name__ == "__main__":
    main()
