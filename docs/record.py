"""Save the record of a study under docs/results/<scale>/, for the pages of the documentation.

    python docs/record.py evening      # from data/ of this machine

A record has ``verdict.json``; ``configurations.json``, the configuration that each search found;
``histories.parquet``, at most 60 rows of each run; ``lengths.parquet``, the final losses at every
length; and ``machine.json``. Figures of the verdict go to docs/figures/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

DOCS = Path(__file__).parent
DATA = DOCS.parent / "data"
RESULTS = DOCS / "results"

SCALES = ("paper", "evening", "base")
"""Scales with records, largest first. The first one with a record gives the README's answer."""

VERDICT_FIGURES = ("loss_by_length", "speedup_in_iterations", "speedup_in_seconds", "ladder")

COLUMNS = ("train_loss", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy")
"""Columns of a history to keep, beside task, arm, seed and iteration."""

ROWS = 60
"""Maximum number of rows to keep of each run's history."""


def headline() -> str:
    """Return the largest scale that has a record."""
    return next(s for s in SCALES if (RESULTS / s / "verdict.json").is_file())


def figure_path(scale: str, folder: str, name: str) -> Path:
    """Path of a study's figure under docs/."""
    prefix = "" if scale == "base" else f"{scale}_"
    return DOCS / "figures" / f"{prefix}{folder}_{name}.png"


def beside(*tables: str) -> str:
    r"""Join Markdown tables with the same first column; a row that a table lacks has dashes.

    Example:
        >>> print(beside("|  | b |\n| --- | --- |\n| x | 1 |", "|  | c |\n| --- | --- |\n| x | 2 |"))
        |  | b | c |
        | --- | --- | --- |
        | x | 1 | 2 |
    """
    joined: dict[str, list[str]] = {}
    for table in tables:
        rows = [line[2:-2].split(" | ") for line in table.splitlines()]
        known = {row[0]: row[1:] for row in rows}
        width = max((len(cells) for cells in joined.values()), default=0)
        for first in known:
            joined.setdefault(first, ["–"] * width)
        for first, cells in joined.items():
            cells += known.get(first, ["–"] * (len(rows[0]) - 1))
    return "\n".join("| " + " | ".join([first, *cells]) + " |" for first, cells in joined.items())


def both(one: str, other: str) -> str:
    r"""Join Markdown tables with the same rows and columns; cells that differ have both values.

    Example:
        >>> print(both("| a | b |\n| --- | --- |\n| x | 1 |", "| a | b |\n| --- | --- |\n| x | 2 |"))
        | a | b |
        | --- | --- |
        | x | 1 / 2 |
    """
    lines = []
    for first, second in zip(one.splitlines(), other.splitlines(), strict=True):
        pairs = zip(first[2:-2].split(" | "), second[2:-2].split(" | "), strict=True)
        cells = [a if a == b else f"{a} / {b}" for a, b in pairs]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def informative(table: str) -> str:
    r"""Drop the columns of a Markdown table that have zeros, ``0 of n`` or dashes alone.

    Example:
        >>> print(informative("| a | failed |\n| --- | --- |\n| x | 0 of 3 |\n| y | – |"))
        | a |
        | --- |
        | x |
        | y |
    """
    rows = [line[2:-2].split(" | ") for line in table.splitlines()]
    columns = list(zip(*rows, strict=True))
    kept = [
        c for c in columns if not all(re.fullmatch(r"0( of \d+)?( %)?|–", cell) for cell in c[2:])
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in zip(*kept, strict=True))


def fill(text: str) -> str:
    """Break a paragraph into lines of at most 136 characters."""
    return textwrap.fill(" ".join(text.split()), 136, break_on_hyphens=False)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or print that it does not exist."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    else:
        print(f"{source} does not exist; the page keeps what it had")


def collect_verdict(scale: str) -> None:
    """Copy the verdict of a study and its figures."""
    made = DATA / "08_reporting" / scale
    if (made / "verdict.json").is_file():
        write_json(RESULTS / scale / "verdict.json", read_json(made / "verdict.json"))
    for name in VERDICT_FIGURES:
        copy(made / "verdict" / f"{name}.png", figure_path(scale, "verdict", name))


def collect_runs(scale: str) -> None:
    """Save configurations, thinned histories, final losses and the machine of a study."""
    folder = RESULTS / scale
    cells = sorted((DATA / "07_model_output" / scale).glob("*/*/history.parquet"))
    found: dict[str, Any] = {}
    for file in cells:
        task, arm = file.parts[-3:-1]
        best = DATA / "06_models" / scale / task / arm / "best.json"
        if best.is_file():
            own = read_json(best)
            kept = [{"values": s["values"], "value": s["value"]} for s in own.get("studies", [own])]
            found.setdefault(task, {})[arm] = kept
    write_json(folder / "configurations.json", found)
    histories = pd.concat([thinned(pd.read_parquet(f)) for f in cells], ignore_index=True)
    histories.to_parquet(folder / "histories.parquet", compression="zstd")
    lengths = [f.with_name("lengths.parquet") for f in cells]
    final = pd.concat([pd.read_parquet(f) for f in lengths if f.is_file()], ignore_index=True)
    final.to_parquet(folder / "lengths.parquet", compression="zstd")
    write_json(folder / "machine.json", machine())


def thinned(history: pd.DataFrame) -> pd.DataFrame:
    """Keep at most :data:`ROWS` evenly spread rows of each run, and all with held-out losses."""
    columns = [c for c in COLUMNS if c in history]
    rows = history.sort_values(["seed", "iteration"])
    place = rows.groupby("seed").cumcount()
    step = (rows.groupby("seed")["iteration"].transform("size") / ROWS).clip(lower=1)
    kept = (place / step).astype(int) != ((place - 1) / step).astype(int)
    held_out = [c for c in columns if not c.startswith("train")]
    measured = rows[held_out].notna().any(axis=1) if held_out else False
    chosen: pd.DataFrame = rows[kept | (place == 0) | measured]
    return chosen[["task", "arm", "seed", "iteration", *columns]].astype({"iteration": "int32"})


def machine() -> dict[str, Any]:
    """Describe this computer: processor, cores, GPU, versions."""
    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    model = next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "")
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model or platform.machine(),
        "cores": cores,
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a compact JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    """Save the record of one scale."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("scale", choices=SCALES)
    scale = options.parse_args().scale
    if not list((DATA / "07_model_output" / scale).glob("*/*/history.parquet")):
        raise SystemExit(f"data/07_model_output/{scale} has no runs; kedro run --env={scale} first")
    collect_verdict(scale)
    collect_runs(scale)


if __name__ == "__main__":
    main()
