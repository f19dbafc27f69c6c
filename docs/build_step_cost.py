"""Write docs/step_cost.md from the benchmarks' figures under benchmarks/results/.

    python docs/build_step_cost.py

Nothing on the page is typed by hand but the words; a test compares it with what this writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from adaptive_opt.study import get_arm, get_task

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
STEP_FILES = {"transformer": "step_transformer_cpu.json", "resnet18": "step_resnet18_cpu.json"}


def load(name: str) -> dict[str, Any]:
    """A file of figures."""
    figures: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return figures


def steps() -> dict[str, dict[str, Any]]:
    """The figures of every task."""
    return {task: load(file)["tasks"][task] for task, file in STEP_FILES.items()}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def step_table() -> str:
    """Ratios to AdamW, with their range."""
    found = steps()
    names = list(next(iter(found.values()))["steps"])
    rows = []
    for name in names:
        cells = []
        for task in found:
            f = found[task]["steps"][name]
            cells.append(f"{f['ratio']:.2f} ({f['min']:.2f} – {f['max']:.2f})")
        rows.append([name, *cells])
    return markdown(["", *(get_task(t).label for t in found)], rows)


def memory_table() -> str:
    """Peaks relative to AdamW's."""
    found = steps()
    names = list(next(iter(found.values()))["memory"])
    rows = []
    for name in names:
        cells = []
        for task in found:
            f = found[task]["memory"][name]
            cells += [number(f["between_ratio"]), number(f["refresh_ratio"])]
        rows.append([name, *cells, f"{found[task]['memory'][name]['state']:.1f}"])
    heads = [f"{get_task(t).label}, {w}" for t in found for w in ("between", "at a refresh")]
    return markdown(["", *heads, "state / parameters"], rows)


def update_table() -> str:
    """The update alone."""
    found = steps()
    names = list(next(iter(found.values()))["update"])
    rows = [[name, *(f"{found[t]['update'][name]['ratio']:.2f}" for t in found)] for name in names]
    return markdown(["", *(get_task(t).label for t in found)], rows)


def missed() -> str:
    """Goals that were not reached."""
    texts = [
        f"{get_task(task).label}, {g['part']}: {g['contender']} {g['value']:.3f}, goal {g['goal']}"
        for task, found in steps().items()
        for g in found["goals"]
        if g["met"] is False
    ]
    return "\n".join(f"- {t}" for t in texts) if texts else "None: every goal is met."


def refresh(task: str, name: str) -> str:
    """What a step at which curvature is refreshed costs, in steps of AdamW."""
    found = steps()[task]["steps"]
    return f"{statistics.median(found[name]['due_seconds']) / found['AdamW']['seconds']:.1f}"


def number(value: float | None) -> str:
    """Two digits, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def ensembles() -> str:
    """Seeds apart and together."""
    rows = [
        [
            f"{get_task(task).label}, {get_arm(arm).label}",
            f"{f['apart']:.1f}",
            f"{f['together']:.1f}",
            f"{f['ratio']:.2f}",
        ]
        for task, arms in load("network_ensembles_cpu.json")["tasks"].items()
        for arm, f in arms.items()
    ]
    return markdown(["ms a run-iteration", "apart", "together", "ratio"], rows)


def page() -> str:
    """The whole page."""
    setup = {task: load(file) for task, file in STEP_FILES.items()}
    first = setup["transformer"]
    machine, threads = first["machine"], first["threads"]
    streams = setup["transformer"]["setup"]["streams"]
    batch = setup["resnet18"]["setup"]["batch"]
    return f"""# What a training step costs

Written by `docs/build_step_cost.py` from `benchmarks/results/`. `benchmarks/step_overhead.py`, one process a
task, all contenders in turns, {first["setup"]["rounds"]} rounds; {machine["cpu"]}, {threads} thread, torch
{machine["torch"]}, pytorch_optimizer {first["pytorch_optimizer"]}. The published sizes: ResNet-18 with {batch}
images of 32 × 32 a batch, the Transformer with {streams} streams of 35 words of 10,000. Nothing was measured on a
GPU yet.

## Seconds a step, relative to AdamW

The median of the ratios within the rounds, and their range. A period is k steps of which one refreshes the
curvature. `-k1` refreshes at every step, `-quarter` takes the curvature of a quarter of the batch, `-due` builds
a foreign optimizer's graph only where it is read, which its documentation does not tell; `plain` is SSDH one
tensor after the other with the graph at every step.

{step_table()}

## Peak memory, relative to AdamW

Resident memory of a fresh process, on top of what it had before the model; between two refreshes, and at one.

{memory_table()}

## The update alone, relative to AdamW's

`step()` at an ordinary step, gradients being there already.

{update_table()}

## Goals that were missed

At most 1.25 at k = 10, 1.12 with a quarter of the batch, less than every foreign optimizer with the same k; memory
between refreshes at most 1.05; the update at most 1.2.

{missed()}

## Where it comes from

1. *Curvature when due.* The graph of the gradient is built at one step in k and freed at once, so that nine in
   ten steps cost what AdamW's do.
2. *Second derivatives in fused kernels.* PyTorch composes the second derivatives of convolutions, batch
   normalisation and cross-entropy from slices, some thirty reductions and a dozen passes. With the kernels
   of the first derivative (`optim/double_backward.py`) a step of SSDH that refreshes the curvature of ResNet-18
   takes {refresh("resnet18", "SSDH-k10")} steps of AdamW, where the same rule on PyTorch's own takes
   {refresh("resnet18", "plain-k10")} and SophiaH {refresh("resnet18", "SophiaH-k10")}; counting convolutions, 9 for 3 is the least. Of the Transformer:
   {refresh("transformer", "SSDH-k10")}, {refresh("transformer", "plain-k10")} and {refresh("transformer", "SophiaH-k10")}.
3. *The update goes through the cache.* On a CPU a multi-tensor operation is a loop over tensors; a
   megabyte of parameters at a time, in place, takes less than AdamW's.
4. *The state is m and D*, two tensors a parameter like AdamW's.

## Seeds together or apart

`benchmarks/network_ensembles.py`: the small networks of `base`, four seeds, as one ensemble by `vmap` or one after
the other; a ratio above 1 is for the ensemble. Hence `training.ensemble: auto` trains the seeds of
networks below a million parameters together. What larger ones gain is not measured, nor a GPU.

{ensembles()}
"""


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    (DOCS / "step_cost.md").write_text(page(), encoding="utf-8")
