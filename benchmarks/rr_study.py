"""Measure the Rahimi–Recht study: ensembles against one run at a time.

Both sides train the same arms on the same function with the same optimizers. The plain side
is what a careful person writes first: a DataLoader, an ``nn.Module``, one run after the
other, the exact Hessian by one backward pass a row. They take turns within one process, so
that a slow moment of the machine meets both; the figures are medians over the rounds.

A third side is SSDH in JAX (``_jax_peer.py``), where that is installed (``pip install
'.[peers]'``): one compiled program of all members, in a process of its own on one core, in turns
with the ensemble.

The time of the whole published study (2 functions × 6 arms × 16 seeds × 24,000 iterations,
a Hessian with its statistics every 100) is measured for the ensemble with ``--study`` and
extrapolated from the measured slice for the plain side.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import parser, write
from torch.utils.data import DataLoader, TensorDataset

from adaptive_opt.curvature.statistics import TrajectoryStatistics, hessian_statistics
from adaptive_opt.engine.contract import Plan
from adaptive_opt.engine.optimizers import build_optimizer, load_optimizer_class
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.engine.train import train_ensemble
from adaptive_opt.optim import SecondOrderOptimizer
from adaptive_opt.parameters import TaskParameters, TrainingParameters, resolve_arm
from adaptive_opt.study import published_arms, tasks_of
from adaptive_opt.tasks.rahimi_recht import RahimiRecht
from adaptive_opt.tasks.rr_functions import RRFunction, synthesise

BATCH, SAMPLES = 128, 1000
STUDY = {"functions": 2, "arms": 6, "seeds": 16, "iterations": 24_000, "hessian_every": 100}
SECOND = {"lr": 0.2, "beta2": 0.99, "rho": 0.2}
ARMS: dict[str, dict[str, Any]] = {
    "sgdm": {"lr": 0.05},
    "adam": {"lr": 0.03, "beta2": 0.999},
    **dict.fromkeys(("sophia", "sadh", "ssdh", "ssvp"), SECOND),
}


def seconds(function: Callable[[], Any]) -> float:
    """Measure the wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class PlainRun:
    """One run with module, loader and optimizer."""

    def __init__(self, function: RRFunction, arm: str) -> None:
        self.x = function.inputs.float()
        self.y = self.x @ function.target.float().T
        self.loader = DataLoader(TensorDataset(self.x, self.y), batch_size=BATCH, shuffle=True)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(12, 13, bias=False), torch.nn.Linear(13, 14, bias=False)
        )
        for layer, w in zip(self.model, function.weights, strict=True):
            layer.weight.data = w.float()  # type: ignore[union-attr]
        spec = resolve_arm(arm, ARMS, TrainingParameters())
        kwargs = spec["hyperparameters"]
        if "beta2" in kwargs:
            kwargs["betas"] = (kwargs.pop("beta1"), kwargs.pop("beta2"))
        cls = load_optimizer_class(spec["optimizer"])
        if not issubclass(cls, SecondOrderOptimizer):
            # First-order arms with torch's own optimizers.
            cls = torch.optim.Adam if arm == "adam" else torch.optim.SGD
        self.optimizer = cls(self.model.parameters(), **kwargs)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Root mean squared error of a batch."""
        return torch.nn.functional.mse_loss(self.model(x), y).sqrt()

    def train(self, epochs: int) -> None:
        """Train some epochs and record the loss of every iteration."""
        for _ in range(epochs):
            for x, y in self.loader:
                self.optimizer.zero_grad()
                loss = self.loss(x, y)
                if isinstance(self.optimizer, SecondOrderOptimizer):
                    self.optimizer.backward(loss)
                else:
                    loss.backward()
                self.optimizer.step()
                loss.item()

    def hessian(self) -> None:
        """Exact Hessian by one backward pass a row, and its statistics, in float64."""
        model = self.model.double()
        params = list(model.parameters())
        loss = torch.nn.functional.mse_loss(model(self.x.double()), self.y.double()).sqrt()
        gradient = torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, params, create_graph=True)]
        )
        rows = [
            torch.cat([h.flatten() for h in torch.autograd.grad(g, params, retain_graph=True)])
            for g in gradient
        ]
        hessian_statistics(torch.stack(rows)[None], gradient.detach()[None])
        self.model.float()


class EnsembleRun:
    """All members of an arm as one ensemble."""

    def __init__(self, function: RRFunction, arm: str, members: int) -> None:
        self.problem = RahimiRecht(
            function,
            loss="rmse",
            batch_size=BATCH,
            weight_seeds=range(members),
            order_seeds=range(members),
            device=torch.device("cpu"),
        )
        self.params = self.problem.initial_parameters()
        spec = resolve_arm(arm, ARMS, TrainingParameters())
        self.optimizer = build_optimizer(
            spec["optimizer"],
            spec["hyperparameters"],
            self.params,
            probe_seeds=range(members),
        )

    def train(self, epochs: int) -> None:
        """Train some epochs with the study's own loop and logging."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01
        train_ensemble(self.problem, self.params, self.optimizer, Plan(epochs))

    def hessians(self, count: int) -> None:
        """Statistics of exact Hessians at ``count`` points."""
        flat = torch.cat([p.detach().flatten(1) for p in self.params], dim=1)
        work = TrajectoryStatistics(self.problem.hessian, torch.device("cpu"))
        work.submit(flat[:1].expand(count, -1).contiguous())
        work.result()


def measure(function: RRFunction, members: int, rounds: int, epochs: int) -> dict[str, Any]:
    """Measure microseconds a run-iteration of both sides, arm by arm, in turns."""
    figures = {}
    for arm in published_arms():
        plain, ensemble = PlainRun(function, arm), EnsembleRun(function, arm, members)
        plain.train(1)
        ensemble.train(1)
        iterations = epochs * ensemble.problem.batches_per_epoch
        times: dict[str, list[float]] = {"plain": [], "ensemble": []}
        for _ in range(rounds):
            times["plain"].append(seconds(lambda: plain.train(epochs)) / iterations)  # noqa: B023
            times["ensemble"].append(
                seconds(lambda: ensemble.train(epochs)) / iterations / members  # noqa: B023
            )
        figures[arm] = {side: 1e6 * statistics.median(t) for side, t in times.items()}
    return figures


def measure_hessians(function: RRFunction, rounds: int) -> dict[str, float]:
    """Measure milliseconds of an exact Hessian with its statistics, both sides in turns."""
    plain, ensemble = PlainRun(function, "sgdm"), EnsembleRun(function, "sgdm", 1)
    plain.hessian()
    ensemble.hessians(8)
    times: dict[str, list[float]] = {"plain": [], "ensemble": []}
    for _ in range(rounds):
        times["plain"].append(seconds(plain.hessian))
        times["ensemble"].append(seconds(lambda: ensemble.hessians(64)) / 64)
    return {side: 1e3 * statistics.median(t) for side, t in times.items()}


def jax_seconds(function: RRFunction, members: int, epochs: int) -> dict[str, Any]:
    """Measure one round of JAX on one core, without compilation."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    env = {**os.environ, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    program = str(Path(__file__).with_name("_jax_peer.py"))
    first = [f"W{i}" for i in range(1, 1 + len(function.weights))]
    tensors = {"A": function.target, "X": function.inputs}
    tensors |= dict(zip(first, function.weights, strict=True))
    pinned = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "function.npz")
        np.savez(path, **{name: t.numpy() for name, t in tensors.items()})
        command = [*pinned, sys.executable, program, str(path), str(members), str(epochs), "1"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure_peer(function: RRFunction, members: int, rounds: int, epochs: int) -> dict[str, float]:
    """Measure microseconds a run-iteration of SSDH, the ensemble and JAX in turns."""
    ensemble = EnsembleRun(function, "ssdh", members)
    ensemble.train(1)
    iterations = epochs * ensemble.problem.batches_per_epoch
    times: dict[str, list[float]] = {"jax": [], "ensemble": []}
    for _ in range(rounds):
        found = jax_seconds(function, members, epochs)["seconds"][0]
        times["jax"].append(found / iterations / members)
        times["ensemble"].append(seconds(lambda: ensemble.train(epochs)) / iterations / members)
    both = {side: 1e6 * statistics.median(t) for side, t in times.items()}
    ratios = [a / b for a, b in zip(times["jax"], times["ensemble"], strict=True)]
    return {**both, "ratio": statistics.median(ratios)}


def matrix_product_peak() -> float:
    """Measure GFLOP/s of a large float32 matrix product on one core."""
    a = torch.randn(1536, 1536)
    a @ a
    return 2 * 1536**3 / min(seconds(lambda: a @ a) for _ in range(5)) / 1e9


def flops_per_iteration() -> int:
    """Count operations of one gradient of one member, in Gram form."""
    x, w, y = 12, 13, 14
    products = y * w * x + y * x * x + w * y * x + y * x * w
    batch_gram = x * x * BATCH
    return 2 * (products + batch_gram)


def run_study(functions: dict[str, RRFunction]) -> dict[str, Any]:
    """Run and time the whole published study with the ensemble."""
    training = TrainingParameters(device="cpu", log_every=10, hessian_every=100)
    parts = {}
    start = time.perf_counter()
    for task, function in functions.items():
        for arm in published_arms():
            parameters = TaskParameters(epochs=3000, seeds=16, target=1.0)
            before = time.perf_counter()
            _, _, summary = run_rahimi_recht(
                function,
                task=task,
                arm=arm,
                **resolve_arm(arm, ARMS, training),
                task_parameters=parameters,
                training=training,
            )
            took = time.perf_counter() - before
            parts[f"{task}.{arm}"] = {"seconds": took, "training": summary["device_seconds"]}
            print(f"  {task} {arm}: {took:.1f} s, of it training {summary['device_seconds']:.1f} s")
    return {"seconds": time.perf_counter() - start, "parts": parts}


def main() -> None:
    """Measure, print, and write."""
    options = parser(__doc__, "--members 16 96 --json rr.json")
    options.add_argument("--rounds", type=int, default=5, help="rounds")
    options.add_argument(
        "--epochs", type=int, default=25, help="epochs of a turn, 8 iterations each"
    )
    options.add_argument("--members", type=int, nargs="+", default=[16, 96, 256])
    options.add_argument("--study", action="store_true", help="also run the whole study")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    sizes = {"x_dim": 12, "hidden_dim": 13, "y_dim": 14, "layers": 2, "samples": SAMPLES}
    conditions = {"rr_cond29": 29.32, "rr_cond15099": 15099.0}
    functions = {
        t.name: synthesise("singular_values", condition=conditions[t.name], seed=0, **sizes)
        for t in tasks_of("rahimi_recht")
    }
    function = functions["rr_cond29"]

    figures: dict[str, Any] = {"peak_gflops": matrix_product_peak(), "members": {}}
    for members in chosen.members:
        found = measure(function, members, chosen.rounds, chosen.epochs)
        ratios = {arm: f["plain"] / f["ensemble"] for arm, f in found.items()}
        figures["members"][members] = {"microseconds": found, "ratios": ratios}
        print(f"\n{members} members, µs a run-iteration      plain  ensemble  ratio")
        for arm, f in found.items():
            print(f"  {arm:28s}{f['plain']:12.1f}{f['ensemble']:10.2f}{ratios[arm]:7.0f}")
        mean = {s: statistics.mean(f[s] for f in found.values()) for s in ("plain", "ensemble")}
        figures["members"][members]["mean"] = {**mean, "ratio": mean["plain"] / mean["ensemble"]}
        speed = flops_per_iteration() / mean["ensemble"] / 1e3
        figures["members"][members]["gflops"] = speed
        print(f"  {'mean':28s}{mean['plain']:12.1f}{mean['ensemble']:10.2f}"
              f"{mean['plain'] / mean['ensemble']:7.0f}")  # fmt: skip
        if importlib.util.find_spec("jax"):
            peer = measure_peer(function, members, chosen.rounds, 10 * chosen.epochs)
            figures["members"][members]["jax"] = peer
            print(f"  SSDH, JAX {peer['jax']:.1f}, ensemble {peer['ensemble']:.2f}, "
                  f"ratio {peer['ratio']:.2f}")  # fmt: skip
        else:
            print("  JAX is not installed: pip install '.[peers]'")
        print(f"  {speed:.2f} GFLOP/s of the gradient, of {figures['peak_gflops']:.0f} in a large "
              "matrix product on one core")  # fmt: skip

    figures["hessian_ms"] = measure_hessians(function, chosen.rounds)
    h = figures["hessian_ms"]
    print(f"\nexact Hessian with statistics, ms: plain {h['plain']:.0f}, ensemble "
          f"{h['ensemble']:.2f}, ratio {h['plain'] / h['ensemble']:.0f}")  # fmt: skip

    runs = STUDY["functions"] * STUDY["arms"] * STUDY["seeds"]
    hessians = runs * (STUDY["iterations"] // STUDY["hessian_every"] + 1)
    mean = figures["members"].get(16, next(iter(figures["members"].values())))["mean"]
    plain = runs * STUDY["iterations"] * mean["plain"] / 1e6 + hessians * h["plain"] / 1e3
    figures["study"] = {"plain_extrapolated_seconds": plain}
    print(f"\nthe whole study, plain, extrapolated: {plain / 3600:.2f} h")
    if chosen.study:
        print("the whole study, ensemble, measured:")
        figures["study"] |= run_study(functions)
        took = figures["study"]["seconds"]
        figures["study"]["ratio"] = plain / took
        print(f"{took:.0f} s, {plain / took:.0f} times faster than plain")
    write(chosen.json, figures)


if __name__ == "__main__":
    main()
