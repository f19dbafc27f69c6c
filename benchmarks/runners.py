"""Compare the training time of runners: sequential, parallel, Ray.

Searches run once. Then the runners train everything of `kedro run` in turns. The medians of the
others are compared with Kedro's SequentialRunner. The others have a thread for each node, and their
histories must have the same bits; otherwise the exit status is 1. SequentialRunner has as many
threads as cores and rounds differently; tests/faults/cluster.py compares its results on one core.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from _common import at_least_1, parser, write
from tracking_overhead import copy_project

RUNNERS = {
    "SequentialRunner": "SequentialRunner",
    "StudyRunner": "adaptive_opt.io.StudyRunner",
    "RayRunner": "adaptive_opt.io.RayRunner",
}


def run(folder: Path, options: list[str], params: list[str]) -> float:
    """Measure one ``kedro run``."""
    environment = {**os.environ, "PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"DO_NOT_TRACK": "1"}
    command = [str(Path(sys.executable).with_name("kedro")), "run", *options]
    command.append(
        f"--params={','.join(['tracking.enabled=false', 'training.device=cpu', *params])}"
    )
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return time.perf_counter() - start


def histories(folder: Path) -> dict[str, pd.DataFrame]:
    """Hash the history of every run without its seconds."""
    found = {}
    for file in sorted((folder / "data/07_model_output").rglob("history.parquet")):
        table = pd.read_parquet(file)
        found[str(file.parent)] = table[[c for c in table if "seconds" not in c]]
    return found


def compare(
    chosen: list[str], rounds: int, env: str, given: list[str], params: list[str]
) -> dict[str, Any]:
    """Measure every round; the first runner changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in chosen}
    differ: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder)
        run(folder, [env, "--namespaces=data,rr_synthesis,tuning", *given], params)
        first: dict[str, pd.DataFrame] = {}
        for number in range(rounds):
            for runner in chosen[:: -1 if number % 2 else 1]:
                shutil.rmtree(folder / "data/07_model_output", ignore_errors=True)
                options = [env, "--namespaces=training", f"--runner={RUNNERS[runner]}", *given]
                times[runner].append(run(folder, options, params))
                print(f"  {runner:16s} {times[runner][-1]:8.1f} s", flush=True)
                found = {} if runner == "SequentialRunner" else histories(folder)
                if not found:
                    continue
                first = first or found
                same = first.keys() == found.keys() and all(
                    first[k].equals(found[k]) for k in found
                )
                differ += [] if same else [f"{runner}, round {number + 1}"]
    medians = {name: statistics.median(t) for name, t in times.items()}
    ratios = {name: m / medians[chosen[0]] for name, m in medians.items()}
    record = {"seconds": times, "medians": medians, "ratios": ratios}
    return {**record, "histories": len(first), "differ": differ}


def main() -> int:
    """Measure, print, and write."""
    options = parser(__doc__, "--env base --tags=networks")
    options.add_argument("--rounds", type=int, default=3, help="runs of each runner")
    options.add_argument("--env", default="base", help="Kedro environment")
    options.add_argument("--tags", help="part of the grid: tasks, arms, kinds, halves")
    options.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    options.add_argument("--params", nargs="*", default=[], help="KEY=VALUE, as for kedro run")
    chosen = options.parse_args()
    at_least_1(options, chosen, "rounds")
    tags = [f"--tags={chosen.tags}"] if chosen.tags else []
    figures = compare(chosen.runners, chosen.rounds, f"--env={chosen.env}", tags, chosen.params)
    for name, ratio in figures["ratios"].items():
        print(f"{name:16s} {figures['medians'][name]:8.1f} s, {ratio:.3f} of {chosen.runners[0]}")
    differ = figures["differ"]
    print(
        f"{figures['histories']} histories, " + (f"not the same: {differ}" if differ else "alike")
    )
    write(chosen.json, {"env": chosen.env, "tags": chosen.tags, **figures})
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
