"""What a training step costs: the second-order optimizers against AdamW and their rivals.

Three figures for ResNet-18 and for the Transformer, each relative to torch's AdamW
(multi-tensor on a CPU, fused on CUDA):

* seconds per step. All contenders train a copy of the same model on the same batch within one
  process and take turns, in an order that rotates from round to round. A turn is one step at
  which curvature is due and ``--ordinary`` steps at which it is not; from the two the time of
  a whole period of k steps is put together, (due + (k − 1) · ordinary) / k. Which step is due
  depends on the step counter in the optimizer alone, so it is set back for every turn. The
  ratio to AdamW is taken within each round, so that a slow moment of the machine meets both;
  the figure is the median of the ratios over the rounds.
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
import contextlib
import copy
import ctypes
import fnmatch
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from _common import parser, write
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adaptive_opt.engine.device import resolve_device
from adaptive_opt.errors import StudyError
from adaptive_opt.optim import SADH, SSDH, SSVP, SecondOrderOptimizer, Sophia
from adaptive_opt.tasks.models import ResNet, TransformerLanguageModel

try:
    import pytorch_optimizer
except ImportError:
    pytorch_optimizer = None

TASKS = ("resnet18", "transformer")
PARTS = ("steps", "memory", "update")
REFERENCE, UPDATE_REFERENCE = "AdamW", "AdamW-foreach"
PERIOD, SHARE = 10, 0.25
DUE_STEPS_AT_1 = 2
LIMITS = {"k10": 1.25, "quarter": 1.12, "memory": 1.05, "update": 1.2}
MIB = 2**20
# Too small a rate to change anything, so that all stay at the same point.
COMMON = {"lr": 1e-6, "weight_decay": 1e-2}


class Problem:
    """A model, a batch and their loss."""

    def __init__(self, task: str, sizes: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        small = sizes.small
        if task == "resnet18":
            model = ResNet(3, 10, [4, 8], [1, 1]) if small else ResNet(3, 10, *_resnet18())
            side = 8 if small else 32
            inputs = torch.randn(sizes.batch, 3, side, side)
            self.inputs = inputs.to(device, memory_format=torch.channels_last)
            self.targets = torch.randint(10, (sizes.batch,), device=device)
            self.model = model.to(device, memory_format=torch.channels_last).train()
        else:
            words, window = (50, 8) if small else (10_000, 35)
            model = TransformerLanguageModel(
                words,
                width=16 if small else 256,
                heads=2 if small else 4,
                feedforward=16 if small else 256,
                layers=1 if small else 4,
                dropout=0.2,
                window=window,
            )
            tokens = torch.randint(words, (sizes.streams, window + 1), device=device)
            self.inputs, self.targets = tokens[:, :-1], tokens[:, 1:]
            self.model = model.to(device).train()

    def loss(self, model: nn.Module, share: float = 1.0) -> Tensor:
        """Mean cross-entropy over the first part of the batch."""
        rows = max(1, round(share * len(self.inputs)))
        logits = model(self.inputs[:rows])
        flat = logits.reshape(-1, logits.shape[-1])
        return nn.functional.cross_entropy(flat, self.targets[:rows].reshape(-1))

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], Any], times: int = 1) -> float:
        """Wall time of one of so many calls."""
        self.synchronise()
        start = time.perf_counter()
        for _ in range(times):
            function()
        self.synchronise()
        return (time.perf_counter() - start) / times


def _resnet18() -> tuple[list[int], list[int]]:
    return [64, 128, 256, 512], [2, 2, 2, 2]


class Plain(torch.optim.Optimizer):
    """SSDH as one first writes it: tensor by tensor, with the graph at every step."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__(params, {**COMMON, "step": 0})

    def backward(self, loss: Tensor) -> None:
        """Gradients, and every tenth time the estimate of the Hessian's diagonal."""
        group = self.param_groups[0]
        params = group["params"]
        grads = torch.autograd.grad(loss, params, create_graph=True)
        if group["step"] % PERIOD == 0:
            probes = [torch.randint_like(p, 2) * 2 - 1 for p in params]
            for p, v, h in zip(
                params, probes, torch.autograd.grad(grads, params, probes), strict=True
            ):
                self.state[p]["estimate"] = v * h
        for p, g in zip(params, grads, strict=True):
            p.grad = g.detach()

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """``θ ← (1 − ηλ) θ − η clip(m / (√D + ε), ρ)``."""
        group = self.param_groups[0]
        for p in group["params"]:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"], state["curvature"] = torch.zeros_like(p), torch.zeros_like(p)
            m, curvature = state["momentum"], state["curvature"]
            m.lerp_(p.grad, 0.04)
            if "estimate" in state:
                curvature.lerp_(state.pop("estimate") ** 2, 0.01)
            update = (m / (curvature.sqrt() + 1e-12)).clamp(-0.01, 0.01)
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
        group["step"] += 1


# How the gradients of a step come about. Each takes the run and whether curvature is due.


def first_order(run: Run, due: bool) -> None:
    """An ordinary backward pass."""
    del due
    run.loss().backward()


def whole_batch(run: Run, due: bool) -> None:
    """This package's way."""
    del due
    optimizer = run.second_order
    with optimizer.forward_context():
        loss = run.loss()
    optimizer.backward(loss)


def part_of_batch(run: Run, due: bool) -> None:
    """This package's way, with the curvature of the first part of the batch."""
    del due
    optimizer = run.second_order
    loss, part = run.loss(), None
    if optimizer.graph_due:
        with optimizer.forward_context():
            part = run.loss(SHARE)
    optimizer.backward(loss, curvature_loss=part, curvature_share=SHARE)


def graph_always(run: Run, due: bool) -> None:
    """The graph of the gradient at every step."""
    del due
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        run.loss().backward(create_graph=True)


def graph_when_due(run: Run, due: bool) -> None:
    """The graph of the gradient at the steps that need it."""
    (graph_always if due else first_order)(run, due)


def plain(run: Run, due: bool) -> None:
    """As :class:`Plain` does it."""
    del due
    with sdpa_kernel(SDPBackend.MATH):
        loss = run.loss()
    assert isinstance(run.optimizer, Plain)
    run.optimizer.backward(loss)


@dataclass(frozen=True)
class Contender:
    """An optimizer and the way it is used.

    Attributes:
        name: in tables, figures and ``--contenders``.
        build: parameters to optimizer.
        gradients: see above.
        period: steps from one refresh to the next; 0 where there is no curvature.
        own: whether it is this package's.
        step_alone: whether it stands for its optimizer in the table of the update alone.
    """

    name: str
    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    gradients: Callable[[Run, bool], None]
    period: int
    own: bool = False
    step_alone: bool = False

    @property
    def quarter(self) -> bool:
        """Whether its curvature is that of a part of the batch."""
        return self.gradients is part_of_batch


def contenders(device: torch.device) -> list[Contender]:
    """All there are, the reference first."""
    cuda = device.type == "cuda"

    def adamw(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, **COMMON, foreach=not cuda, fused=cuda)

    made = [Contender(REFERENCE, adamw, first_order, 0)]
    for cls in (SADH, SSDH, SSVP, Sophia):
        for k, gradients, ending in (
            (PERIOD, whole_batch, f"k{PERIOD}"),
            (1, whole_batch, "k1"),
            (PERIOD, part_of_batch, f"k{PERIOD}-quarter"),
        ):
            build = _builder(cls, update_period=k)
            alone = ending == f"k{PERIOD}"
            made.append(Contender(f"{cls.__name__}-{ending}", build, gradients, k, True, alone))
    if pytorch_optimizer is not None:
        for name, k in (("SophiaH", PERIOD), ("AdaHessian", 1), ("AdaHessian", PERIOD)):
            build = _builder(getattr(pytorch_optimizer, name), update_period=k)
            alone = k == PERIOD
            made.append(Contender(f"{name}-k{k}", build, graph_always, k, step_alone=alone))
            if k == PERIOD:
                made.append(Contender(f"{name}-k{k}-due", build, graph_when_due, k))
    made.append(Contender(f"plain-k{PERIOD}", Plain, plain, PERIOD, step_alone=True))
    return made


def _builder(cls: Any, **kwargs: Any) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda params: cls(params, **COMMON, **kwargs)


class Run:
    """A contender with its copy of the model."""

    def __init__(self, contender: Contender, problem: Problem) -> None:
        self.contender, self.problem = contender, problem
        self.model = copy.deepcopy(problem.model)
        self.optimizer = contender.build(list(self.model.parameters()))

    @property
    def second_order(self) -> SecondOrderOptimizer:
        """The optimizer, one of this package's."""
        assert isinstance(self.optimizer, SecondOrderOptimizer)
        return self.optimizer

    def loss(self, share: float = 1.0) -> Tensor:
        """Of this copy of the model."""
        return self.problem.loss(self.model, share)

    def set_step(self, number: int) -> None:
        """Make the coming step the one of this number, where it matters."""
        if self.contender.period:
            for group in self.optimizer.param_groups:
                group["step"] = number

    def step(self, due: bool) -> None:
        """One step of training."""
        self.optimizer.zero_grad()
        self.contender.gradients(self, due)
        self.optimizer.step()

    def due_step(self) -> None:
        """A step that refreshes the curvature."""
        self.set_step(0)
        self.step(True)

    def ordinary_step(self) -> None:
        """Any other; also of those that have no other."""
        self.set_step(1)
        self.step(self.contender.period == 1)

    def turn(self, ordinary: int) -> tuple[float, float | None]:
        """Seconds of a step with and of one without a refresh."""
        k = self.contender.period
        first = self.problem.seconds(self.due_step, DUE_STEPS_AT_1 if k == 1 else 1)
        rest = None if k == 1 else self.problem.seconds(self.ordinary_step, ordinary)
        # What the gradients hold is not to be alive in the turns of others.
        self.optimizer.zero_grad()
        gc.collect()
        return first, rest

    def state_bytes(self) -> int:
        """Size of all tensors of the optimizer's state."""
        states = [t for s in self.optimizer.state.values() for t in s.values()]
        return sum(t.numel() * t.element_size() for t in states if isinstance(t, Tensor))

    def parameter_bytes(self) -> int:
        """Size of the parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


def per_step(due: float, ordinary: float | None, k: int) -> float:
    """Seconds per step over a whole period; the reference has one kind of steps only."""
    if ordinary is None:
        return due
    k = k or PERIOD
    return (due + (k - 1) * ordinary) / k


def measure_steps(
    problem: Problem, chosen: list[Contender], rounds: int, ordinary: int
) -> dict[str, Any]:
    """Seconds per step of all contenders, in turns."""
    runs = [Run(c, problem) for c in chosen]
    for run in runs:
        run.due_step()
        run.ordinary_step()
        run.optimizer.zero_grad()
    times: dict[str, list[tuple[float, float | None]]] = {c.name: [] for c in chosen}
    for number in range(rounds):
        first = number % len(runs)
        for run in runs[first:] + runs[:first]:
            times[run.contender.name].append(run.turn(ordinary))
        print(f"  round {number + 1} of {rounds} done", flush=True)
    reference = [per_step(*t, 0) for t in times[REFERENCE]]
    figures = {}
    for c in chosen:
        steps = [per_step(*t, c.period) for t in times[c.name]]
        ratios = [s / r for s, r in zip(steps, reference, strict=True)]
        figures[c.name] = {
            "seconds": statistics.median(steps),
            "ratio": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "due_seconds": [due for due, _ in times[c.name]],
            "ordinary_seconds": [rest for _, rest in times[c.name]],
        }
    return figures


class Peak:
    """The highest memory since it was reset, in bytes.

    The peak that ``getrusage`` tells only ever grows. Linux also keeps one that writing 5 to
    ``/proc/self/clear_refs`` sets back to the present use; elsewhere there is no figure.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def reset(self) -> None:
        """Forget the peak so far."""
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        # What was freed and is kept for reuse would count otherwise.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int | None:
        """The peak."""
        if self.cuda:
            return torch.cuda.max_memory_allocated()
        return self._status("VmHWM")

    def now(self) -> int | None:
        """Present use."""
        return torch.cuda.memory_allocated() if self.cuda else self._status("VmRSS")

    def _status(self, name: str) -> int | None:
        status = Path("/proc/self/status")
        if not status.is_file() or not os.access("/proc/self/clear_refs", os.W_OK):
            return None
        found = re.search(rf"{name}:\s+(\d+)", status.read_text())
        return None if found is None else 1024 * int(found[1])


def peaks(contender: Contender, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a contender, alone, with and without a refresh."""
    device = resolve_device(options.device)
    # Code and workspaces that the first steps load belong to the base: take a few tiny ones.
    tiny = argparse.Namespace(small=True, batch=4, streams=4)
    first = Run(contender, Problem(task, tiny, device))
    for _ in range(2):
        first.due_step()
        first.ordinary_step()
    del first
    problem = Problem(task, options, device)
    peak = Peak(device)
    peak.reset()
    base = peak.now()
    run = Run(contender, problem)
    run.due_step()
    run.ordinary_step()

    def over(function: Callable[[], None]) -> int | None:
        peak.reset()
        function()
        found = peak.read()
        return None if found is None or base is None else found - base

    return {
        "between": None if contender.period == 1 else over(run.ordinary_step),
        "refresh": over(run.due_step),
        "base": base,
        "state": run.state_bytes() / run.parameter_bytes(),
    }


def peaks_in_child(contender: Contender, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a fresh process, which owes nothing to those before."""
    sizes = [f"--batch={options.batch}", f"--streams={options.streams}"]
    if options.small:
        sizes.append("--small")
    # Freed memory goes back to the system at once, as if every tensor had pages of its own.
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(  # noqa: S603 - this file, with options of its own
        [sys.executable, __file__, "--task", task, "--device=cpu", *sizes,
         "--memory-of", contender.name],
        env=environment, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_memory(
    device: torch.device, chosen: list[Contender], task: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Peak memory of all contenders, relative to the reference's."""
    figures = {}
    for c in chosen:
        if device.type == "cuda":
            figures[c.name] = peaks(c, task, options)
        else:
            figures[c.name] = peaks_in_child(c, task, options)
    reference = figures[REFERENCE]["between"]
    for found in figures.values():
        for phase in ("between", "refresh"):
            known = found[phase] is not None and reference is not None
            found[f"{phase}_ratio"] = found[phase] / reference if known else None
    return figures


def measure_updates(
    problem: Problem, chosen: list[Contender], repetitions: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of ``step()`` alone at ordinary steps, in turns."""

    def foreach(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, **COMMON, foreach=True)

    taking_part = [Contender(UPDATE_REFERENCE, foreach, first_order, 0)]
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
        first = number % len(runs)
        for run in runs[first:] + runs[:first]:
            run.set_step(1)
            took = problem.seconds(run.optimizer.step)
            if number:  # the first is to warm up
                times[run.contender.name].append(took)
    reference = times[UPDATE_REFERENCE]
    figures = {}
    for name, took in times.items():
        ratios = [t / r for t, r in zip(took, reference, strict=True)]
        figures[name] = {
            "milliseconds": 1e3 * statistics.median(took),
            "ratio": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        }
    return figures


def judge(chosen: list[Contender], figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals, whether they are met, and by what."""
    goals: list[dict[str, Any]] = []

    def goal(part: str, c: Contender, text: str, value: float | None, met: bool | None) -> None:
        goals.append({"part": part, "contender": c.name, "goal": text, "value": value, "met": met})

    steps, memory, update = (figures.get(part, {}) for part in PARTS)
    rivals = [c for c in chosen if c.period and not c.own]
    for c in (c for c in chosen if c.own):
        if c.name in steps:
            value = steps[c.name]["ratio"]
            if c.period == PERIOD:
                limit = LIMITS["quarter" if c.quarter else "k10"]
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


def table(title: str, columns: Sequence[str], rows: dict[str, Sequence[Any]],
          goals: Sequence[dict[str, Any]]) -> None:  # fmt: skip
    """A table in aligned text with what became of the goals in its last column."""
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
    """Three tables."""
    of = {p: [g for g in figures["goals"] if g["part"] == p] for p in PARTS}
    if "steps" in figures:
        found = figures["steps"]
        reference = found[REFERENCE]["seconds"]
        rows = {}
        for c in chosen:
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
    """Those whose name fits a pattern, and the reference."""
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
    """The command line."""
    made = parser(__doc__)
    made.formatter_class = _Help
    made.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="networks")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="figures")
    made.add_argument(
        "--contenders", nargs="+", metavar="NAME",
        help="only those with these names, * and ? allowed; the reference takes part always",
    )  # fmt: skip
    made.add_argument("--batch", type=int, default=256, help="images in a batch of ResNet-18")
    made.add_argument("--streams", type=int, default=128, help="of 35 tokens, the Transformer's")
    made.add_argument("--rounds", type=int, default=5, help="turns each contender takes")
    made.add_argument("--ordinary", type=int, default=2, help="ordinary steps in a turn")
    made.add_argument("--repetitions", type=int, default=30, help="of each update alone")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where")
    made.add_argument("--small", action="store_true", help="tiny models, to try the benchmark")
    made.add_argument("--memory-of", metavar="NAME", help=argparse.SUPPRESS)
    return made


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults, and the description with its lists."""


def main() -> None:
    """Measure, print, and write."""
    # A gradient with a graph refers to its parameter; zero_grad() breaks that cycle.
    warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True")
    line = arguments()
    options = line.parse_args()
    for name in ("batch", "streams", "rounds", "ordinary", "repetitions"):
        if getattr(options, name) < 1:
            line.error(f"--{name} must be at least 1")
    try:
        device = resolve_device(options.device)
        every = contenders(device)
        chosen = choose(every, options.contenders)
    except StudyError as error:
        line.error(str(error))
    if options.memory_of:
        contender = next(c for c in every if c.name == options.memory_of)
        print(json.dumps(peaks(contender, options.task[0], options)))
        return
    left_out = {}
    if pytorch_optimizer is None:
        reason = "the package pytorch_optimizer is not installed"
        left_out = dict.fromkeys(("SophiaH", "AdaHessian"), reason)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    figures: dict[str, Any] = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "device": device.type,
        "threads": torch.get_num_threads(),
        "pytorch_optimizer": _version(),
        "setup": {"period": PERIOD, "share": SHARE, "limits": LIMITS, **COMMON}
        | {k: getattr(options, k) for k in ("batch", "streams", "rounds", "ordinary", "small")},
        "left_out": left_out,
        "tasks": {},
    }
    for task in options.task:
        print(f"{task} on {device.type}, {figures['threads']} threads", flush=True)
        problem = Problem(task, options, device)
        found: dict[str, Any] = {}
        if "steps" in options.parts:
            found["steps"] = measure_steps(problem, chosen, options.rounds, options.ordinary)
            gc.collect()
        if "memory" in options.parts:
            found["memory"] = measure_memory(device, chosen, task, options)
        if "update" in options.parts:
            found["update"] = measure_updates(problem, chosen, options.repetitions)
            gc.collect()
        found["goals"] = judge(chosen, found)
        figures["tasks"][task] = found
        report(task, chosen, found)
        print()
    write(options.json, figures)


def _version() -> str | None:
    return None if pytorch_optimizer is None else version("pytorch-optimizer")


if __name__ == "__main__":
    main()
