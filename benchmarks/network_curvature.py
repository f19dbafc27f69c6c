"""Measure the cost of a network's curvature: minutes and memory, relative to a training step.

ResNet-18 as trained on CIFAR-10 (11.2 million parameters), after some epochs of SGD on the images.
One block Lanczos iteration and some fresh vectors give the top two eigenpairs, trace, Frobenius
norm and spectral density of the Hessian over them. Memory is the highest additional use, network
included, beside that of a step of SGD with momentum on a batch of 256. It does not depend on the
number of images; minutes are proportional to it.

Results are written after every step, so that an interrupted run leaves them.

Images: of an ``.npz`` with ``x`` ``[N, H, W, 3]`` and ``y`` ``[N]``, or noise of their shape.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import at_least_1, parser, write
from _memory import forget_peak, memory
from torch import Tensor, nn

from adaptive_opt.curvature.block_lanczos import BlockLanczos
from adaptive_opt.curvature.operators import NetworkLoss
from adaptive_opt.engine.device import resolve_device
from adaptive_opt.tasks.models import ResNet

PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Freed memory goes back to the system at once, as if every tensor had pages of its own."""

SMALL = ([4, 8], [1, 1])
LARGE = ([64, 128, 256, 512], [2, 2, 2, 2])


def load(path: Path | None, count: int) -> tuple[Tensor, Tensor]:
    """Load normalised images ``[count, 3, H, W]`` and classes."""
    if path is None:
        stream = torch.Generator().manual_seed(0)
        noise = torch.randn(count, 3, 32, 32, generator=stream)
        return noise, torch.randint(10, (count,), generator=stream)
    arrays = np.load(path, allow_pickle=False)
    x = torch.from_numpy(arrays["x"][:count]).permute(0, 3, 1, 2).float() / 255
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return x.contiguous(), torch.from_numpy(arrays["y"][:count]).long()


class Meter:
    """Measure processor minutes, wall minutes and bytes since it was made.

    Args:
        base: bytes in use before anything was there.
        cuda: whether they are a GPU's.
    """

    def __init__(self, base: int | None, cuda: bool) -> None:
        forget_peak(cuda)
        self._base, self._cuda = base, cuda
        self._start = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float | int | None]:
        """Read the use so far."""
        if self._cuda:
            torch.cuda.synchronize()
        peak = memory(self._cuda, peak=True)
        return {
            "cpu_minutes": (time.process_time() - self._start[0]) / 60,
            "minutes": (time.perf_counter() - self._start[1]) / 60,
            "bytes": None if peak is None or self._base is None else peak - self._base,
        }


def step_on(network: nn.Module, batch: int, device: torch.device) -> Callable[[], None]:
    """Make a step of SGD with momentum, with existing buffers."""
    x, y = load(None, batch)
    x, y = x.to(device), y.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    step()
    return step


def train(network: nn.Module, x: Tensor, y: Tensor, epochs: int, device: torch.device) -> None:
    """Train with SGD with momentum in batches of 50, then set the running statistics."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    stream = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=stream).split(50):
            optimizer.zero_grad()
            given, wanted = x[rows].to(device), y[rows].to(device)
            nn.functional.cross_entropy(network(given), wanted).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for part in x.split(250):
            network(part.to(device))


def told(lanczos: BlockLanczos, pairs: int) -> dict[str, Any]:
    """Return the present results of the iteration."""
    count = min(pairs, lanczos.size)
    values, residuals = lanczos.eigenvalues(count)
    found = lanczos.density(points=200)
    density = {k: getattr(found, k).tolist() for k in ("grid", "value", "error")}
    return {
        "eigenvalues": values.tolist(),
        "residuals": residuals.tolist(),
        "density": {**density, "width": found.width},
    }


def options_of() -> argparse.Namespace:
    """Command line."""
    line = parser(__doc__)
    line.add_argument("--images", type=int, default=1000, help="images of the loss")
    line.add_argument("--data", type=Path, help="an .npz of images")
    line.add_argument("--epochs", type=int, default=3, help="epochs of training before")
    line.add_argument("--micro-batch", type=int, default=25, dest="micro_batch")
    line.add_argument("--batch", type=int, default=256, help="batch of the training step")
    line.add_argument("--pairs", type=int, default=2, help="eigenpairs")
    line.add_argument("--block", type=int, default=2, help="start vectors of Lanczos")
    line.add_argument("--steps", type=int, default=16, help="Lanczos steps, at most")
    line.add_argument("--tolerance", type=float, default=1e-3, help="stop at this residual")
    line.add_argument("--draws", type=int, default=6, help="random vectors for the trace")
    line.add_argument("--minutes", type=float, default=float("inf"), help="stop after these")
    line.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    line.add_argument("--small", action="store_true", help="a tiny network")
    options = line.parse_args()
    at_least_1(line, options, "images", "micro_batch", "batch", "pairs", "block", "steps", "draws")
    return options


def prepared(
    options: argparse.Namespace, device: torch.device
) -> tuple[NetworkLoss, dict[str, Any], Meter]:
    """Prepare the loss, the figures of a training step, and a meter."""
    torch.manual_seed(0)
    cuda = device.type == "cuda"
    forget_peak(cuda)
    base = memory(cuda, peak=False)
    network = ResNet(3, 10, *(SMALL if options.small else LARGE)).to(device)
    step = step_on(network, options.batch, device)
    meter = Meter(base, cuda)
    step()
    figures = {"step": meter.read()}
    del step
    network.zero_grad(set_to_none=True)
    x, y = load(options.data, options.images)
    train(network, x, y, options.epochs, device)
    loss = NetworkLoss(network, [(x, y)], device=device, micro_batch=options.micro_batch)
    figures["loss"] = loss.value()
    return loss, figures, Meter(base, cuda)


def main() -> None:
    """Measure and print."""
    options = options_of()
    device = resolve_device(options.device)
    if device.type != "cuda" and any(os.environ.get(k) != v for k, v in PAGES.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PAGES})  # noqa: S606
    loss, figures, meter = prepared(options, device)
    names = ("images", "epochs", "micro_batch", "batch", "block", "tolerance")
    figures |= {name: getattr(options, name) for name in names}
    figures |= {
        "parameters": loss.size,
        "threads": torch.get_num_threads(),
        "data": "noise" if options.data is None else options.data.stem,
        "history": [],
    }
    products = 0

    def count(number: int) -> None:
        nonlocal products
        products += number

    def record(state: str, **found: Any) -> None:
        figures.update(found, state=state, products=products, **meter.read())
        known = figures["bytes"] and figures["step"]["bytes"]
        figures["memory_ratio"] = figures["bytes"] / figures["step"]["bytes"] if known else None
        write(options.json, figures, tell=False)
        ratio = "–" if not known else f"{figures['memory_ratio']:.2f}"
        print(
            f"{products} products, {figures['cpu_minutes']:.1f} processor minutes, memory {ratio} "
            f"of a training step's: {state}",
            flush=True,
        )

    lanczos = BlockLanczos(loss.operator("hessian", count), options.block)
    for _ in range(options.steps):
        lanczos.step()
        found = told(lanczos, options.pairs)
        figures["history"].append({k: found[k] for k in ("eigenvalues", "residuals")})
        record("Lanczos", **found)
        shown = zip(found["eigenvalues"], found["residuals"], strict=True)
        print("  " + ", ".join(f"λ = {v:.6g} (residual {r:.1e})" for v, r in shown), flush=True)
        enough = len(found["residuals"]) == options.pairs
        if enough and max(found["residuals"]) <= options.tolerance:
            break
        if lanczos.exhausted or figures["minutes"] >= options.minutes:
            break
    trace, norm = lanczos.moments(max(2, options.draws))
    parts = {"trace": trace, "frobenius_norm": norm}
    record("done", **{k: {"value": e.value, "error": e.error} for k, e in parts.items()})
    for name, e in parts.items():
        print(f"{name}: {e.value:.6g} ± {e.error:.2g}")


if __name__ == "__main__":
    main()
