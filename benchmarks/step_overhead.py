"""Measure a training step of the second-order optimizers, AdamW and others.

Three figures for ResNet-18 and for the Transformer, each relative to torch's AdamW
(multi-tensor on a CPU, fused on CUDA):

* seconds per step. All contenders train a copy of the same model on the same batch within one
  process and take turns, in an order that rotates from round to round. A turn is one step at
  which curvature is due and ``--ordinary`` steps at which it is not; from the two the time of
  a whole period of k steps is put together, (due + (k − 1) · ordinary) / k. Which step is due
  depends on the step counter in the optimizer alone, so it is set back for every turn. The
  ratio to AdamW is taken within each round, so that a slow moment of the machine meets both;
  the figure is the median of the ratios over the rounds. ``--mode compiled`` compiles the model
  for the ordinary steps, ``--mode graphs`` replays them as CUDA graphs; a refresh stays eager, and
  contenders that need second derivatives at every step are left out.
* peak memory, of ordinary steps after a refresh ("between refreshes") and of a refresh, on top
  of what the process had before the model. On a CPU it is the resident memory of a fresh
  process for each contender, on CUDA what the allocator gave out. Also the size of the
  optimizer's state relative to the parameters.
* the update alone: ``step()`` at an ordinary step with gradients already there, relative to
  the multi-tensor AdamW.

The contenders, to be chosen from with ``--contenders 'SSDH*' plain-k10``:

* ``SADH-k10`` and so on: this package's, with ``forward_context()`` and ``backward()``;
  ``-k1`` refreshes at every step, ``-quarter`` takes the curvature of a quarter of the batch;
* ``SophiaH-k10``, ``AdaHessian-k1`` and ``AdaHessian-k10``: of the package pytorch_optimizer,
  as its FAQ says, ``loss.backward(create_graph=True)`` at every step; ``-due`` makes the graph
  at the steps only whose ``step()`` reads it, the cheapest use that its code allows;
* ``plain-k10``: SSDH one tensor after the other, with the graph at every step.

All have the same weight decay. Inputs are random; their values do not change the cost.
Threads that wait for a core would be what is timed: where other work runs on the machine, set
OMP_NUM_THREADS to the number of free cores.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from _common import at_least_1, parser, write
from _contenders import (
    COMMON,
    MODES,
    PERIOD,
    REFERENCE,
    SHARE,
    TASKS,
    Contender,
    Problem,
    Run,
    Sizes,
    contenders,
    multi_tensor_adamw,
    pytorch_optimizer,
)
from _memory import measure_memory
from torch import Tensor

from adaptive_opt.engine.device import resolve_device
from adaptive_opt.errors import StudyError

PARTS = ("steps", "memory", "update")
UPDATE_REFERENCE = "AdamW-foreach"
LIMITS = {"k10": 1.25, "quarter": 1.12, "first": 1.15, "memory": 1.05, "update": 1.2}
MIB = 2**20


def in_turn(runs: list[Run], number: int) -> list[Run]:
    """Return the order of a round; the first contender rotates."""
    first = number % len(runs)
    return runs[first:] + runs[:first]


def compare(times: list[float], reference: list[float]) -> dict[str, float]:
    """Summarise the ratios within the rounds."""
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    return {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def per_step(due: float, ordinary: float | None, k: int) -> float:
    """Return seconds per step over a whole period."""
    k = k or PERIOD
    return due if ordinary is None else (due + (k - 1) * ordinary) / k


def measure_steps(
    problem: Problem,
    chosen: list[Contender],
    rounds: int,
    ordinary: int,
    mode: str = "eager",
    backend: str = "inductor",
) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure seconds per step of all contenders in turns; report which could not be compiled.

    Raises:
        RuntimeError: the reference, or an eager contender, cannot step.
    """
    runs: list[Run] = []
    failed: dict[str, str] = {}
    for c in chosen:
        try:
            run = Run(c, problem, mode, backend)
            run.due_step()
            run.ordinary_step()
            run.optimizer.zero_grad()
            problem.synchronise()
        except RuntimeError as error:
            if mode == "eager" or c.name == REFERENCE:
                raise
            failed[c.name] = str(error).split("\n")[0]
            print(f"  {c.name} failed: {failed[c.name]}")
        else:
            runs.append(run)
    names = [run.contender.name for run in runs]
    times: dict[str, list[tuple[float, float | None]]] = {name: [] for name in names}
    for number in range(rounds):
        for run in in_turn(runs, number):
            times[run.contender.name].append(run.turn(ordinary))
        print(f"  round {number + 1} of {rounds} done", flush=True)
    periods = {c.name: c.period for c in chosen}
    steps = {name: [per_step(*t, periods[name]) for t in times[name]] for name in names}
    return {
        name: {
            "seconds": statistics.median(steps[name]),
            **compare(steps[name], steps[REFERENCE]),
            "due_seconds": [due for due, _ in took],
            "ordinary_seconds": [rest for _, rest in took],
        }
        for name, took in times.items()
    }, failed


def measure_updates(
    problem: Problem, chosen: list[Contender], repetitions: int
) -> dict[str, dict[str, float]]:
    """Measure milliseconds of ``step()`` alone at ordinary steps, in turns."""
    taking_part = [multi_tensor_adamw(UPDATE_REFERENCE)]
    if problem.device.type == "cuda":
        taking_part.append(next(c for c in chosen if c.name == REFERENCE))
    runs = [Run(c, problem) for c in [*taking_part, *(c for c in chosen if c.step_alone)]]
    for run in runs:
        for p in run.model.parameters():
            p.grad = 1e-2 * torch.randn_like(p)
        run.set_step(1)
        run.optimizer.step()
        # Ordinary values, no zeros and infinities.
        for state in run.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor) and value.ndim:
                    value.uniform_(0.5, 1.5)
    times: dict[str, list[float]] = {run.contender.name: [] for run in runs}
    for number in range(repetitions + 1):
        for run in in_turn(runs, number):
            run.set_step(1)
            took = problem.seconds(run.optimizer.step)
            if number:  # the first is to warm up
                times[run.contender.name].append(took)
    return {
        name: {"milliseconds": 1e3 * statistics.median(t), **compare(t, times[UPDATE_REFERENCE])}
        for name, t in times.items()
    }


def judge(chosen: list[Contender], figures: dict[str, Any]) -> list[dict[str, Any]]:
    """List the goals, and whether they are met."""
    goals: list[dict[str, Any]] = []

    def goal(part: str, c: Contender, text: str, value: float | None, met: bool | None) -> None:
        goals.append({"part": part, "contender": c.name, "goal": text, "value": value, "met": met})

    steps, memory, update = (figures.get(part, {}) for part in PARTS)
    rivals = [c for c in chosen if c.period and not c.own]
    for c in (c for c in chosen if c.own):
        if c.name in steps:
            value = steps[c.name]["ratio"]
            if c.period == PERIOD:
                limit = LIMITS[
                    "quarter" if c.quarter else "first" if c.once_differentiated else "k10"
                ]
                goal("steps", c, f"≤ {limit}", value, value <= limit)
            others = [steps[r.name]["ratio"] for r in rivals if r.period == c.period]
            if others:
                goal("steps", c, f"ahead, < {min(others):.3f}", value, value < min(others))
        if c.name in memory and c.period != 1:
            value, limit = memory[c.name]["between_ratio"], LIMITS["memory"]
            goal("memory", c, f"≤ {limit}", value, None if value is None else value <= limit)
        if c.name in update:
            value, limit = update[c.name]["ratio"], LIMITS["update"]
            goal("update", c, f"≤ {limit}", value, value <= limit)
    return goals


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Any]],
          goals: Sequence[dict[str, Any]]) -> None:  # fmt: skip
    """Print an aligned table with the goals in its last column."""
    print(f"\n{title}")
    print(f"  {'':20s}" + "".join(f"{c:>12s}" for c in columns) + "  goal")
    for name, row in rows.items():
        cells = "".join(f"{'–' if x is None else x:>12}" for x in row)
        told = {True: "met", False: "NOT MET", None: "unknown"}
        mine = [f"{g['goal']}: {told[g['met']]}" for g in goals if g["contender"] == name]
        print(f"  {name:20s}{cells}  {'; '.join(mine)}".rstrip())


def _show(value: float | None, digits: int = 3) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def report(task: str, chosen: list[Contender], figures: dict[str, Any]) -> None:
    """Print the three tables."""
    of = {p: [g for g in figures["goals"] if g["part"] == p] for p in PARTS}
    if "steps" in figures:
        found = figures["steps"]
        reference = found[REFERENCE]["seconds"]
        rows = {}
        for c in (c for c in chosen if c.name in found):
            f = found[c.name]
            ordinary = [s for s in f["ordinary_seconds"] if s is not None]
            rows[c.name] = [
                _show(1e3 * f["seconds"], 1), _show(f["ratio"]), _show(f["min"]), _show(f["max"]),
                _show(statistics.median(f["due_seconds"]) / reference, 2),
                _show(statistics.median(ordinary) / reference, 2) if ordinary else None,
            ]  # fmt: skip
        heads = ["ms/step", "ratio", "min", "max", "refresh", "ordinary"]
        table(f"{task}: seconds per step relative to {REFERENCE}", heads, rows, of["steps"])
    if "memory" in figures:
        rows = {}
        for name, f in figures["memory"].items():
            sizes = [None if f[p] is None else f[p] / MIB for p in ("between", "refresh")]
            rows[name] = [
                _show(sizes[0], 1), _show(f["between_ratio"]), _show(sizes[1], 1),
                _show(f["refresh_ratio"]), _show(f["state"], 2),
            ]  # fmt: skip
        heads = ["MiB", "ratio", "refresh MiB", "ratio", "state/par."]
        title = f"{task}: peak memory between refreshes and at one, relative to {REFERENCE}"
        table(title, heads, rows, of["memory"])
    if "update" in figures:
        rows = {
            name: [_show(f["milliseconds"], 2), *(_show(f[x]) for x in ("ratio", "min", "max"))]
            for name, f in figures["update"].items()
        }
        title = f"{task}: the update alone, relative to {UPDATE_REFERENCE}"
        table(title, ["ms", "ratio", "min", "max"], rows, of["update"])


def choose(every: list[Contender], patterns: Sequence[str] | None) -> list[Contender]:
    """List the contenders whose name fits a pattern, and the reference."""
    if patterns is None:
        return every
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(c.name, pattern) for c in every):
            raise StudyError(
                f"no contender fits {pattern!r}; there are {', '.join(c.name for c in every)}"
            )
    fits = [c for c in every if any(fnmatch.fnmatchcase(c.name, p) for p in patterns)]
    return [every[0], *(c for c in fits if c.name != REFERENCE)]


def arguments() -> argparse.ArgumentParser:
    """Command line."""
    made = parser(__doc__, "--task transformer --contenders 'SSDH*' --parts steps")
    made.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="networks")
    made.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="figures to measure"
    )
    made.add_argument(
        "--contenders", nargs="+", metavar="NAME",
        help="contenders with these names (* and ? allowed); the reference always takes part",
    )  # fmt: skip
    made.add_argument("--batch", type=int, default=256, help="images in a batch of ResNet-18")
    made.add_argument(
        "--streams",
        type=int,
        default=128,
        help="streams of 35 tokens in a batch of the Transformer",
    )
    made.add_argument("--rounds", type=int, default=5, help="rounds")
    made.add_argument("--ordinary", type=int, default=2, help="ordinary steps in a turn")
    made.add_argument("--repetitions", type=int, default=30, help="repetitions of the update alone")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device")
    made.add_argument(
        "--mode", choices=MODES, default="eager",
        help="how ordinary steps run: eager, by torch.compile, or as CUDA graphs",
    )  # fmt: skip
    made.add_argument("--backend", default="inductor", help="backend of torch.compile")
    made.add_argument("--small", action="store_true", help="tiny models, to try the benchmark")
    return made


def main() -> None:
    """Measure, print, and write."""
    line = arguments()
    options = line.parse_args()
    at_least_1(line, options, "batch", "streams", "rounds", "ordinary", "repetitions")
    try:
        device = resolve_device(options.device)
        if options.mode == "graphs" and device.type != "cuda":
            raise StudyError("--mode graphs needs a CUDA device; choose eager or compiled")
        if options.mode != "eager" and "steps" not in options.parts:
            raise StudyError("--mode changes the part 'steps' only; add it to --parts")
        chosen = choose(contenders(device, options.mode), options.contenders)
    except StudyError as error:
        line.error(str(error))
    sizes = Sizes(options.batch, options.streams, options.small)
    left_out: dict[str, str] = {}
    if pytorch_optimizer is None:
        reason = "the package pytorch_optimizer is not installed"
        left_out = dict.fromkeys(("SophiaH", "AdaHessian"), reason)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    figures: dict[str, Any] = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "device": device.type,
        "mode": options.mode,
        "threads": torch.get_num_threads(),
        "pytorch_optimizer": None if left_out else version("pytorch-optimizer"),
        "setup": {"period": PERIOD, "share": SHARE, "limits": LIMITS, **COMMON, **asdict(sizes)}
        | {"rounds": options.rounds, "ordinary": options.ordinary},
        "left_out": left_out,
        "tasks": {},
    }
    for task in options.task:
        print(f"{task} on {device.type}, {figures['threads']} threads", flush=True)
        problem = Problem(task, sizes, device)
        found: dict[str, Any] = {}
        if "steps" in options.parts:
            found["steps"], found["failed"] = measure_steps(
                problem, chosen, options.rounds, options.ordinary, options.mode, options.backend
            )
            gc.collect()
        if "memory" in options.parts:
            found["memory"] = measure_memory(device, chosen, task, sizes)
        if "update" in options.parts:
            found["update"] = measure_updates(problem, chosen, options.repetitions)
            gc.collect()
        found["goals"] = judge(chosen, found) if options.mode == "eager" else []
        figures["tasks"][task] = found
        report(task, chosen, found)
        print()
        write(options.json, figures, tell=task == options.task[-1])


if __name__ == "__main__":
    main()
