"""Write docs/step_cost.md from the benchmarks' figures under benchmarks/results/.

    python docs/build_step_cost.py

A test compares the committed page with the output of this script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from adaptive_opt.study import get_arm, get_task

sys.path.insert(0, str(Path(__file__).parent))
from record import beside

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
STEP_FILES = {"transformer": "step_transformer_cpu.json", "resnet18": "step_resnet18_cpu.json"}


def load(name: str) -> dict[str, Any]:
    """Read a file of figures."""
    figures: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return figures


def steps() -> dict[str, dict[str, Any]]:
    """Read the figures of every task."""
    return {task: load(file)["tasks"][task] for task, file in STEP_FILES.items()}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def step_table() -> str:
    """Return seconds relative to AdamW, with their range."""
    found = steps()
    names = list(next(iter(found.values()))["steps"])
    rows = []
    for name in names:
        cells = []
        for task in found:
            f = found[task]["steps"][name]
            cells.append(f"{f['ratio']:.2f} ({f['min']:.2f} – {f['max']:.2f})")
        rows.append([name, *cells])
    return markdown(["", *(f"seconds, {get_task(t).label}" for t in found)], rows)


def memory_table() -> str:
    """Return peak memory relative to AdamW's."""
    found = steps()
    names = list(next(iter(found.values()))["memory"])
    rows = []
    for name in names:
        cells = []
        for task in found:
            f = found[task]["memory"][name]
            cells += [number(f["between_ratio"]), number(f["refresh_ratio"])]
        rows.append([name, *cells, f"{found[task]['memory'][name]['state']:.1f}"])
    heads = [f"memory, {get_task(t).label}, {w}" for t in found for w in ("between", "refresh")]
    return markdown(["", *heads, "state / parameters"], rows)


def update_table() -> str:
    """Return the cost of the update alone, relative to AdamW's."""
    found = steps()
    names = list(next(iter(found.values()))["update"])
    rows = [[name, *(f"{found[t]['update'][name]['ratio']:.2f}" for t in found)] for name in names]
    return markdown(["", *(f"update, {get_task(t).label}" for t in found)], rows)


def missed() -> str:
    """List the goals that were not reached."""
    texts = [
        f"{get_task(task).label}, {g['part']}: {g['contender']} {g['value']:.3f}, goal {g['goal']}"
        for task, found in steps().items()
        for g in found["goals"]
        if g["met"] is False
    ]
    return "\n".join(f"- {t}" for t in texts) if texts else "All are met."


def refresh(task: str, name: str) -> str:
    """Return the cost of a step that refreshes the curvature, in steps of AdamW."""
    found = steps()[task]["steps"]
    return f"{statistics.median(found[name]['due_seconds']) / found['AdamW']['seconds']:.1f}"


def number(value: float | None) -> str:
    """Format with two digits, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def ensembles() -> str:
    """Return the cost of seeds apart and together."""
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
    """Write the whole page."""
    setup = {task: load(file) for task, file in STEP_FILES.items()}
    first = setup["transformer"]
    machine, threads = first["machine"], first["threads"]
    streams = setup["transformer"]["setup"]["streams"]
    batch = setup["resnet18"]["setup"]["batch"]
    return f"""# What a training step costs

You will see the seconds and the memory of a training step of every optimizer, relative to AdamW, on networks of the published sizes.
`docs/build_step_cost.py` writes this page from `benchmarks/results/`.

**How to read this page.** *Seconds*: the median of the ratios within the rounds, and their range. *Memory*: peak resident memory of a
fresh process, in addition to that before the model, between two refreshes and at one. *Update*: `step()` alone at an ordinary step,
with gradients, relative to AdamW's multi-tensor one. A period is k steps, one of them refreshes the curvature. `-k1` refreshes at every
step. `-quarter` takes the curvature of a quarter of the batch. `-due` builds a foreign optimizer's graph only when it is read, which is
not its documented use. `plain` is SSDH, one tensor after the other, with the graph at every step.

`benchmarks/step_overhead.py`, one process a task, all contenders in turns, {first["setup"]["rounds"]} rounds; {machine["cpu"]}, {threads} thread, torch
{machine["torch"]}, pytorch_optimizer {first["pytorch_optimizer"]}. ResNet-18 has {batch} images of 32 × 32 a batch, the
Transformer {streams} streams of 35 words of 10,000. [On a GPU](gpu.md) has GPUs.

{beside(step_table(), memory_table(), update_table())}

*Goals*: at most 1.25 at k = 10 and 1.12 with a quarter of the batch. Less than every foreign optimizer with the same k. Memory
between refreshes at most 1.05, the update at most 1.2. {missed()}

## Where the speed comes from

1. *Curvature when due.* The graph of the gradient is built at one step in k and freed at once. Nine in ten steps cost what
   AdamW's do.
2. *Second derivatives in fused kernels.* PyTorch composes the second derivatives of convolutions, batch normalisation and
   cross-entropy from slices, some thirty reductions and a dozen passes. `optim/double_backward.py` uses the kernels of the first
   derivative. A refresh of SSDH on ResNet-18 then takes {refresh("resnet18", "SSDH-k10")} steps of AdamW, the same rule on PyTorch's own
   {refresh("resnet18", "plain-k10")}, and SophiaH {refresh("resnet18", "SophiaH-k10")}. Counted in convolutions, 9 for 3 is the least. On the Transformer:
   {refresh("transformer", "SSDH-k10")}, {refresh("transformer", "plain-k10")} and {refresh("transformer", "SophiaH-k10")}.
3. *The update goes through the cache.* On a CPU a multi-tensor operation is a loop over tensors. A megabyte of parameters at a
   time, in place, takes less than AdamW's update.
4. *The state is m and D*, two tensors a parameter like AdamW's.

## Seeds together or apart

`benchmarks/network_ensembles.py` trains four seeds of the small networks of `base` as one ensemble by `vmap` or one after the other. A
ratio above 1 favours the ensemble, so `training.ensemble: auto` trains networks below a million parameters together. Larger networks
and GPUs are not measured.

{ensembles()}
"""


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    (DOCS / "step_cost.md").write_text(page(), encoding="utf-8")
