"""Write docs/gpu.md from the records of GPU sessions under docs/results/gpu/.

    python docs/build_gpu.py

``make gpu`` writes the records. A test compares the committed page with the output of this script.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptive_opt.study import get_arm, get_task

DOCS = Path(__file__).parent
RECORDS = DOCS / "results" / "gpu"
NO_SESSION = "**No session yet.** Nothing on these pages was measured on a GPU."
MODES = {"eager": "eager", "graphs": "CUDA graphs", "compiled": "compiled"}

Record = dict[str, Any]


def load(folder: Path) -> list[Record]:
    """Read all records, oldest session first."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def newest(records: list[Record]) -> dict[str, Record]:
    """Return for each step the newest finished record, else the newest."""
    found: dict[str, Record] = {}
    for record in records:
        known = found.get(record["step"])
        if known is None or known["state"] != "done" or record["state"] == "done":
            found[record["step"]] = record
    return found


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a Markdown table whose first columns are text."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def sessions(records: list[Record]) -> str:
    """Return sessions: device, duration, and how the steps ended."""
    rows = []
    for name in dict.fromkeys(r["session"] for r in records):
        mine = [r for r in records if r["session"] == name]
        device = mine[0]["device"]
        counts = Counter(r["state"] for r in mine)
        ends = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        minutes = sum(r["seconds"] for r in mine) / 60
        versions = f"torch {device['torch']}, CUDA {device['cuda']}"
        rows.append([name, device["name"], versions, ends, f"{minutes:.1f}"])
    return markdown(["session", "device", "versions", "steps", "minutes"], rows, left=4)


def incomplete(steps: dict[str, Record]) -> str:
    """List the unfinished steps, with the reason."""
    lines = [
        f"- {name}: {record['state']}, {record['reason']}"
        for name, record in steps.items()
        if record["state"] != "done"
    ]
    return "\n".join(lines) or "None: every started step is done."


def tests(records: list[Record]) -> str:
    """Summarise the newest outcome of each test."""
    outcomes: dict[str, Record] = {}
    for record in records:
        if record["step"] == "tests":
            outcomes |= record["figures"].get("tests", {})
    if not outcomes:
        return "No test has run."
    counts = Counter(o["outcome"] for o in outcomes.values())
    text = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped."
    failed = [
        f"- `{n}`: {o.get('said', '')}" for n, o in outcomes.items() if o["outcome"] == "failed"
    ]
    return "\n".join([text, "", *failed]).strip()


def costs(steps: dict[str, Record]) -> str:
    """Return seconds of a step relative to AdamW, by mode and task."""
    columns = {
        (mode, task): figures["steps"]
        for mode in MODES
        for task, figures in steps.get(f"cost/{mode}", {})
        .get("figures", {})
        .get("tasks", {})
        .items()
        if "steps" in figures
    }
    if not columns:
        return "Not measured yet."
    names = dict.fromkeys(name for found in columns.values() for name in found)
    head = ["", *(f"{get_task(task).label}, {MODES[mode]}" for mode, task in columns)]
    rows = [
        [name, *(f"{f[name]['ratio']:.2f}" if name in f else "–" for f in columns.values())]
        for name in names
    ]
    rows.append(["AdamW, ms", *(f"{1e3 * f['AdamW']['seconds']:.2f}" for f in columns.values())])
    return markdown(head, rows)


def training(steps: dict[str, Record]) -> str:
    """Return the runs: their length and last losses."""
    rows = []
    for record in (r for name, r in steps.items() if name.startswith("train/")):
        figures = record["figures"]
        curve = figures.get("curve", [])
        cells = []
        for column in ("train_loss", "valid_loss"):
            values = [p[column] for p in curve if column in p]
            cells.append(f"{values[-1]:.4g}" if values else "–")
        seconds = [p["device_seconds"] for p in curve if "device_seconds" in p]
        rows.append(
            [get_task(figures["task"]).label, get_arm(figures["arm"]).label, figures["data"],
             record["state"], str(figures["epochs"]), str(figures["seed"]),
             f"{figures.get('iterations', 0):,}", *cells, f"{seconds[-1]:.0f}" if seconds else "–"]
        )  # fmt: skip
    if not rows:
        return "No run yet."
    head = ["task", "arm", "data", "state", "epochs", "seed", "iterations"]
    return markdown([*head, "training loss", "validation loss", "seconds"], rows, left=4)


def page(folder: Path = RECORDS) -> str:
    """Write the whole page."""
    records = load(folder)
    head = """# On a GPU

You will see what was measured on a GPU, and which parts are missing. `docs/build_gpu.py`
writes it from the records under `docs/results/gpu/`. [Use a GPU](howto/gpu.md) explains how to add a session.
"""
    if not records:
        return f"{head}\n{NO_SESSION}\n"
    steps = newest(records)
    return f"""{head}
## Sessions

{sessions(records)}

## Not finished

{incomplete(steps)}

## Tests

{tests(records)}

## Seconds a step, relative to AdamW

{costs(steps)}

## Training

Configurations as published, one run at a time. Losses on random data say nothing about learning.

{training(steps)}
"""


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    (DOCS / "gpu.md").write_text(page(), encoding="utf-8")
