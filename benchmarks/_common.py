"""Shared parts of the benchmarks: the machine's description and ``--json FILE``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults, and with the description unchanged."""


def parser(description: str | None, example: str = "") -> argparse.ArgumentParser:
    """Make an argument parser with the options that every benchmark has.

    Args:
        description: what the benchmark does.
        example: options of an example call.
    """
    call = f"Example: python benchmarks/{Path(sys.argv[0]).name} {example}".strip()
    made = argparse.ArgumentParser(description=description, epilog=call, formatter_class=_Help)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return made


def at_least_1(line: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> None:
    """Raise an error if one of these options is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            line.error(f"--{name} must be at least 1")


def machine() -> dict[str, Any]:
    """Describe the machine and the versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write(path: Path | None, figures: dict[str, Any], tell: bool = True) -> None:
    """Write the figures and the machine to a file, atomically."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
        unfinished.replace(path)
        if tell:
            print(f"written to {path}")
