"""Write docs/faults.md from the records docs/results/faults.json and docs/results/cluster.json.

    python docs/build_faults.py

A test compares the committed page with the output of this script.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RECORD = DOCS / "results" / "faults.json"
CLUSTER = DOCS / "results" / "cluster.json"
KINDS = {
    "kill_process": "the command and all its processes are killed (`SIGKILL`), once or twice",
    "interrupt_process": "Ctrl-C, or `SIGTERM`",
    "kill_worker": "one of two processes that nodes run in is killed",
    "kill_ray_worker": "a Ray worker is killed; another continues its node",
    "kill_database": "the PostgreSQL server of the studies goes down",
    "kill_tracker": "the MLflow server is killed and stays down",
    "fill_disk": "the disk with the results, a small `tmpfs`, is full",
    "no_file_grows": "no file may grow beyond a size, as under a quota",
    "truncate": "an artifact is cut short",
    "flip_bits": "one or several bits of an artifact are flipped",
    "diverge": "the gradient of one seed becomes NaN",
}
OUTCOMES = ("same", "named", "silent", "lost", "skipped")


def record() -> dict[str, Any]:
    """Read the record of the harness."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def table(faults: list[dict[str, Any]]) -> str:
    """Return kinds × outcomes."""
    counts = Counter((f["kind"], f["outcome"]) for f in faults)
    total = Counter(f["outcome"] for f in faults)
    rows = [
        [f"{name}: {words}", *(str(counts[name, o]) for o in OUTCOMES)]
        for name, words in KINDS.items()
        if any(f["kind"] == name for f in faults)
    ]
    rows.append(["all", *(str(total[o]) for o in OUTCOMES)])
    head = ["what happens", *OUTCOMES]
    rule = ["---", *["---:"] * len(OUTCOMES)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def said(faults: list[dict[str, Any]]) -> str:
    """Return an error for each kind of damaged file."""
    examples: dict[str, str] = {}
    for fault in faults:
        if fault["outcome"] == "named":
            examples.setdefault(Path(fault["detail"].split(",")[0]).name, fault["said"])
    if not examples:
        return "No error was needed: all damaged files were made again."
    return "\n\n".join(f"    {words}" for words in list(examples.values())[:4])


def cluster() -> str:
    """Compare the smoke study on three nodes of Ray with that on one core."""
    found = json.loads(CLUSTER.read_text(encoding="utf-8"))
    lines = [
        "| run | seconds | a node killed after | files that differ |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, run in found["runs"].items():
        killed = f"{run['killed_after']:.1f} s" if run.get("killed_after") else "–"
        differ = len(run["differ"]) if "differ" in run else "–"
        lines.append(f"| {name} | {run['seconds']:.1f} | {killed} | {differ} |")
    return "\n".join([f"{found['files']} files are compared.", "", *lines])


def page() -> str:
    """Write the page."""
    found = record()
    faults = found["faults"]
    bad = sum(f["outcome"] in ("silent", "lost") for f in faults)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"""# Faults

You will learn what happens to a study if something dies or is damaged on the way, tried {len(faults)} times.

Each fault strikes a small study at the scale `smoke` at a random moment: a Rahimi–Recht function and ResNet-18 with SGDM and SSDH
searched, trained and judged. Then the study runs again. Its histories, weights, snapshots, searches and verdict are compared with those
of an undisturbed run, bit for bit. Seconds, provenance and sentences that quote seconds are left out.

{table(faults)}

- *same*: the second run gives what the undisturbed run gave.
- *named*: an error names the damaged file; without that file the result is the same.
- *silent*: other results without an error. *lost*: results that cannot be made again, a traceback, or an error without the file.
- *skipped*: the fault could not be produced there.

{bad} of these {len(faults)} faults were silent or lost. {" ".join(found.get("notes", []))}

An error looks like this:

{said(faults)}

## A node of a cluster

The whole smoke study on a Ray cluster of three nodes of one core each (`ray.cluster_utils.Cluster`, on one machine with two cores). In
one run, a node is killed after half of the runs. The first row is Kedro's SequentialRunner on one core:

    python tests/faults/cluster.py --json docs/results/cluster.json

{cluster()}

## Why nothing is lost

- Every file is written beside its destination and renamed over it; the next write deletes partial files of a killed process. A run's
  summary is written last and marks the run as complete.
- Files that later runs use have checksums: tensors, tables, records, every finished trial; checkpoints have those of their archive. A
  damaged run or checkpoint is made again; an error names what cannot be.
- A trial whose worker died is repeated with its number and configuration, so the search draws what it would have drawn. Workers on the
  same host notice at once, those of other hosts after six heartbeats.
- Training never waits for [tracking](howto/tracking.md#if-the-server-is-down).

## Run it again

    make faults

continues where it was interrupted. To repeat one fault by its number, as in `docs/results/faults.json`:

    python tests/faults/harness.py --faults 200 --seed {found["seed"]} --only 7

The seed {found["seed"]} and the number determine the moment, the file and the bits. A moment in seconds depends on the speed of the
machine. Versions: {versions}. Each fault took {sum(f.get("cpu_seconds", 0.0) for f in faults) / max(1, len(faults)):.1f} s of a CPU on average.

**Not tried**: several faults at a time, and other systems than Linux on the CPU. Nor were network disks that lose confirmed writes,
memory errors during a computation, and damaged databases shared by many hosts.
"""


if __name__ == "__main__":
    (DOCS / "faults.md").write_text(page(), encoding="utf-8")
