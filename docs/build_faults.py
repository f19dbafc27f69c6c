"""Write docs/faults.md from the records docs/results/faults.json and docs/results/cluster.json.

    python docs/build_faults.py

Nothing on the page is typed by hand but the words; a test compares it with what this writes.
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
    "kill_ray_worker": "a process in which Ray runs a node is killed; another takes over",
    "kill_database": "the PostgreSQL server of the studies goes down without a word",
    "kill_tracker": "the MLflow server is killed, and stays away",
    "fill_disk": "the disk with the results, a small `tmpfs`, is full",
    "no_file_grows": "no file may grow beyond a size, as under a quota",
    "truncate": "an artifact is cut short",
    "flip_bits": "one bit of an artifact is flipped, or some",
    "diverge": "the gradient of one seed becomes NaN",
}
OUTCOMES = ("same", "named", "silent", "lost", "skipped")


def record() -> dict[str, Any]:
    """What the harness wrote."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def table(faults: list[dict[str, Any]]) -> str:
    """Kind × outcome."""
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


def seeds(found: dict[str, Any]) -> str:
    """The numbers of the faults of each kind, by which each can be had again."""
    lines = []
    for name in KINDS:
        numbers = sorted(f["number"] for f in found["faults"] if f["kind"] == name)
        if numbers:
            lines.append(f"- `{name}`: {', '.join(map(str, numbers))}")
    return "\n".join(lines)


def said(faults: list[dict[str, Any]]) -> str:
    """Damage that was named, one example for each kind of file."""
    examples: dict[str, str] = {}
    for fault in faults:
        if fault["outcome"] == "named":
            examples.setdefault(Path(fault["detail"].split(",")[0]).name, fault["said"])
    if not examples:
        return "None of the damage of this record had to be named: all was made again at once."
    return "\n\n".join(f"    {words}" for words in list(examples.values())[:4])


def cluster() -> str:
    """The smoke study on three nodes of Ray beside one core."""
    found = json.loads(CLUSTER.read_text(encoding="utf-8"))
    lines = [
        "| run | seconds | a node killed after | files that differ |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, run in found["runs"].items():
        killed = f"{run['killed_after']:.1f} s" if run.get("killed_after") else "–"
        differ = len(run["differ"]) if "differ" in run else "–"
        lines.append(f"| {name} | {run['seconds']:.1f} | {killed} | {differ} |")
    return "\n".join([f"Compared are {found['files']} files.", "", *lines])


def page() -> str:
    """The page."""
    found = record()
    faults = found["faults"]
    bad = sum(f["outcome"] in ("silent", "lost") for f in faults)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"""# Faults

What becomes of a study when something dies or is damaged on the way, tried {len(faults)} times. A cut-down study at the scale `smoke` (a
Rahimi–Recht function and ResNet-18; SGDM and SSDH searched, trained and judged) is struck at a random moment and run again.
Its histories, weights, snapshots, searches and verdict are then compared with those of an undisturbed run, bit for bit; what is
told in seconds is left out, and so are provenance and the sentences of the answer, which quote seconds.

{table(faults)}

*same*: running again gives what the undisturbed run gave. *named*: it says in a sentence which file is damaged, and with that
file out of the way, as the sentence says, gives the same. *silent*: other results, without a word. *lost*: results that cannot be
had again, a traceback, or a sentence that does not name the file. *skipped*: could not be made to happen there. Of these
{len(faults)} faults {bad} were silent or lost. {" ".join(found.get("notes", []))}

## A machine of a cluster

The whole smoke study on a Ray cluster of three nodes of one core each (`ray.cluster_utils.Cluster`, all on one machine with two cores),
undisturbed and with one node killed once half of the runs were there, beside Kedro's SequentialRunner on one core:

    python tests/faults/cluster.py --json docs/results/cluster.json

{cluster()}

## What is said of damage

{said(faults)}

## Why nothing is lost

- Every file is written beside its destination and renamed over it; what a killed process left half-written is deleted with
  the next writing. A run's summary is written last, and says that the run is complete.
- What later runs build on has a checksum in it: tensors, tables, the records of searches and runs, every finished trial of a
  study; checkpoints are checked by those of their archive. A run or a checkpoint that is damaged is made again; what cannot be made again by
  itself is named.
- A trial whose worker died keeps its number and its configuration when it is tried again, so that a search that is gone on with
  draws what it would have drawn. Workers on the same host know at once that one is dead; those of others wait for
  six heartbeats.
- Tracking holds nothing up: what MLflow has not taken waits.

## Again

    make faults

goes on where it was broken off. One fault by its number:

    python tests/faults/harness.py --faults 200 --seed {found["seed"]} --only 7

The seed is {found["seed"]}; the moment, the file and the bits of each fault come from it and the number. Which moment a number of seconds is
depends on how fast the machine is. Numbers by kind:

{seeds(found)}

Made with Python and packages {versions}. Each fault took {sum(f.get("cpu_seconds", 0.0) for f in faults) / max(1, len(faults)):.1f} s of a CPU on average.

## What this does not show

Faults come one at a time, on one machine, on Linux and on the CPU. A network disk that lies about what it has written,
memory that flips bits while a run computes, and databases with damage that are shared by many hosts are not tried. On a GPU a run
that was broken off need not end with the same bits.
"""


if __name__ == "__main__":
    (DOCS / "faults.md").write_text(page(), encoding="utf-8")
