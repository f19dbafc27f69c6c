"""Peak memory of the contenders of ``step_overhead.py``.

The highest use since a reset. The peak of ``getrusage`` only grows. On Linux, writing 5 to
``/proc/self/clear_refs`` resets another one; elsewhere there is no figure. On a CPU each contender
has a fresh process: this file, with the arguments of :func:`peaks` as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _contenders import REFERENCE, Contender, Problem, Run, Sizes, contenders

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def forget_peak(cuda: bool) -> None:
    """Reset the peak to the present use."""
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        return
    # What was freed and is kept for reuse would count otherwise.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def memory(cuda: bool, peak: bool) -> int | None:
    """Return the bytes in use: the peak, or the present use."""
    if cuda:
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if not STATUS.is_file() or not os.access(CLEAR, os.W_OK):
        return None
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", STATUS.read_text())
    return None if found is None else 1024 * int(found[1])


def peaks(contender: Contender, task: str, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Measure the peak memory of a contender, with and without a refresh."""
    cuda = device.type == "cuda"
    # Code and workspaces that the first steps load belong to the base: take a few tiny ones.
    first = Run(contender, Problem(task, Sizes(batch=4, streams=4, small=True), device))
    for _ in range(2):
        first.due_step()
        first.ordinary_step()
    del first
    problem = Problem(task, sizes, device)
    forget_peak(cuda)
    base = memory(cuda, peak=False)
    run = Run(contender, problem)
    run.due_step()
    run.ordinary_step()

    def over(function: Callable[[], None]) -> int | None:
        forget_peak(cuda)
        function()
        found = memory(cuda, peak=True)
        return None if found is None or base is None else found - base

    return {
        "between": None if contender.period == 1 else over(run.ordinary_step),
        "refresh": over(run.due_step),
        "base": base,
        "state": run.state_bytes() / run.parameter_bytes(),
    }


def peaks_in_child(contender: Contender, task: str, sizes: Sizes) -> dict[str, Any]:
    """Measure the same in a fresh process."""
    # Freed memory goes back to the system at once, as if every tensor had pages of its own.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(  # noqa: S603 - this file, with arguments of its own
        [sys.executable, __file__, json.dumps([contender.name, task, asdict(sizes)])],
        env=environment, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_memory(
    device: torch.device, chosen: list[Contender], task: str, sizes: Sizes
) -> dict[str, Any]:
    """Measure the peak memory of all contenders, relative to the reference."""
    figures = {}
    for c in chosen:
        if device.type == "cuda":
            figures[c.name] = peaks(c, task, sizes, device)
        else:
            figures[c.name] = peaks_in_child(c, task, sizes)
    reference = figures[REFERENCE]["between"]
    for found in figures.values():
        for phase in ("between", "refresh"):
            known = found[phase] is not None and reference is not None
            found[f"{phase}_ratio"] = found[phase] / reference if known else None
    return figures


def main() -> None:
    """Measure and print, in the child process."""
    name, task, sizes = json.loads(sys.argv[1])
    device = torch.device("cpu")
    contender = next(c for c in contenders(device) if c.name == name)
    print(json.dumps(peaks(contender, task, Sizes(**sizes), device)))


if __name__ == "__main__":
    main()
