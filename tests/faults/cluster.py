"""Run the smoke study on a Ray cluster of three nodes, also with one of them killed midway.

    python tests/faults/cluster.py --json FILE

Results must equal those of SequentialRunner in one thread, bit for bit except for the clocks. A
node of the cluster has one core. The exit status is 1 if they differ.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.study import PROJECT, read

LAYERS = ("03_primary", "05_model_input", "06_models", "07_model_output")
"""Folders to compare; later ones contain times in texts and figures."""


def copy_project(folder):
    for name in ("conf", "src", "benchmarks/results"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, folder)


def start(folder, *arguments, cores=None):
    """Run ``kedro run --env=smoke`` in an empty folder."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    program = str(Path(sys.executable).with_name("kedro"))
    environment = {**os.environ, "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [program, "run", "--env=smoke", "--params=training.device=cpu", *arguments]
    log = (folder / "log").open("w")
    bind = None if cores is None else lambda: os.sched_setaffinity(0, cores)
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=log, preexec_fn=bind
    )


def finish(folder, process):
    if process.wait():
        raise SystemExit((folder / "log").read_text()[-4000:])


def results(folder):
    """Return the content of every file by name."""
    data = folder / "data"
    files = (p for layer in LAYERS for p in sorted((data / layer).rglob("*")) if p.is_file())
    found = {}
    for path in files:
        if "studies.db" in path.name or path.name == "summary.json":
            continue  # other bits each time; names the machine
        found[str(path.relative_to(data))] = read(path)
    verdict = read(data / "08_reporting/smoke/verdict.json")
    return found | {"verdict": verdict}


def on_cluster(folder, kill):
    """Run on three nodes; return the seconds and when a node was killed."""
    from ray.cluster_utils import Cluster

    with ExitStack() as stack:
        one = {"num_cpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=one)
        stack.callback(cluster.shutdown)
        others = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        begun, killed = time.monotonic(), None
        runner = "--runner=adaptive_opt.io.RayRunner"
        process = start(folder, runner, f"--runner-params=address={cluster.address}")
        while kill and killed is None and process.poll() is None:
            runs = [*(folder / "data/07_model_output").glob("smoke/*/*/summary.json")]
            if len(runs) >= kill:
                cluster.remove_node(others.pop(), allow_graceful=False)
                killed = time.monotonic() - begun
            time.sleep(0.1)
        finish(folder, process)
        return time.monotonic() - begun, killed


def main():
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("--json", type=Path)
    given = line.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    record = {"files": 0, "runs": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_project(folder)
        begun = time.monotonic()
        finish(folder, start(folder, "--runner=SequentialRunner", cores={0}))
        record["runs"]["sequential, one core"] = {"seconds": time.monotonic() - begun}
        alone = results(folder)
        trained = len([n for n in alone if n.endswith("history.parquet")])
        record["files"] = len(alone)
        for words, kill in (("three nodes", 0), ("three nodes, one killed", trained // 2)):
            seconds, killed = on_cluster(folder, kill)
            found = results(folder)
            differ = sorted(n for n in {*alone} | {*found} if alone.get(n, "") != found.get(n, ""))
            record["runs"][words] = {"seconds": seconds, "killed_after": killed, "differ": differ}
            told = f", killed after {killed:.1f} s" if killed else ""
            same = f"differ: {differ}" if differ else "alike"
            print(f"{words}: {seconds:.1f} s{told}, {len(alone)} files {same}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(any(run.get("differ") for run in record["runs"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
