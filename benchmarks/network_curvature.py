"""What the curvature of a network costs: minutes, and memory beside a training step's.

ResNet-18 as it is trained on CIFAR-10 (11.2 million parameters), freshly initialised, its running
statistics those of the images: top two eigenpairs, trace and spectral density of the Hessian of
the loss over some images, in micro-batches. Memory is the highest use above what is there before,
the network itself included, and stands beside that of a step of SGD with momentum on a batch of
256. It does not depend on the number of images; minutes grow in proportion to it.

Images: of an ``.npz`` with ``x`` ``[N, H, W, 3]`` and ``y`` ``[N]``, or noise of their shape.
"""

from __future__ import annotations

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

from adaptive_opt.curvature.operators import NetworkLoss
from adaptive_opt.curvature.spectrum import density, eigenpairs, moments
from adaptive_opt.engine.device import resolve_device
from adaptive_opt.tasks.models import ResNet

PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Freed memory goes back to the system at once, as if every tensor had pages of its own."""

SMALL = ([4, 8], [1, 1])
LARGE = ([64, 128, 256, 512], [2, 2, 2, 2])


def load(path: Path | None, count: int) -> tuple[Tensor, Tensor]:
    """Images ``[count, 3, H, W]``, normalised, and classes."""
    if path is None:
        stream = torch.Generator().manual_seed(0)
        noise = torch.randn(count, 3, 32, 32, generator=stream)
        return noise, torch.randint(10, (count,), generator=stream)
    arrays = np.load(path, allow_pickle=False)
    x = torch.from_numpy(arrays["x"][:count]).permute(0, 3, 1, 2).float() / 255
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return x.contiguous(), torch.from_numpy(arrays["y"][:count]).long()


def measured(function: Callable[[], Any], base: int | None, cuda: bool) -> dict[str, Any]:
    """Seconds and bytes above the base, and what the function gives."""
    forget_peak(cuda)
    start = time.perf_counter()
    found = function()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = memory(cuda, peak=True)
    bytes_above = None if peak is None or base is None else peak - base
    return {"minutes": seconds / 60, "bytes": bytes_above, "found": found}


def step_on(network: nn.Module, batch: int, device: torch.device) -> Callable[[], None]:
    """A step of SGD with momentum, its buffers there already."""
    x, y = load(None, batch)
    x, y = x.to(device), y.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    step()
    return step


def main() -> None:
    """Measure and print."""
    line = parser(__doc__)
    line.add_argument("--images", type=int, default=1000, help="of the loss")
    line.add_argument("--data", type=Path, help="an .npz of images")
    line.add_argument("--micro-batch", type=int, default=50, dest="micro_batch")
    line.add_argument("--batch", type=int, default=256, help="of the training step")
    line.add_argument("--restarts", type=int, default=30, help="of Lanczos, at most")
    line.add_argument("--draws", type=int, default=8, help="of random vectors, for the trace")
    line.add_argument("--steps", type=int, default=20, help="of Lanczos, for the density")
    line.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    line.add_argument("--small", action="store_true", help="a tiny network")
    options = line.parse_args()
    at_least_1(line, options, "images", "micro_batch", "batch", "restarts", "draws", "steps")
    device = resolve_device(options.device)
    cuda = device.type == "cuda"
    if not cuda and any(os.environ.get(k) != v for k, v in PAGES.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PAGES})  # noqa: S606

    torch.manual_seed(0)
    forget_peak(cuda)
    base = memory(cuda, peak=False)
    network = ResNet(3, 10, *(SMALL if options.small else LARGE)).to(device)
    step = measured(step_on(network, options.batch, device), base, cuda)
    network.zero_grad(set_to_none=True)

    x, y = load(options.data, options.images)
    network.train()
    with torch.no_grad():
        for part in x.split(options.batch):
            network(part.to(device))
    loss = NetworkLoss(network, [(x, y)], device=device, micro_batch=options.micro_batch)
    products = 0

    def told(number: int) -> None:
        nonlocal products
        products += number
        print(f"\r{products} products", end="", file=sys.stderr, flush=True)

    operator = loss.operator("hessian", told)
    parts: dict[str, Callable[[], Any]] = {
        "eigenpairs": lambda: eigenpairs(operator, 2, max_restarts=options.restarts),
        "trace": lambda: moments(operator, options.draws)[0],
        "density": lambda: density(operator, steps=options.steps, draws=2),
    }
    figures: dict[str, Any] = {
        "parameters": loss.size, "images": options.images, "micro_batch": options.micro_batch,
        "batch": options.batch, "threads": torch.get_num_threads(), "data": str(options.data),
        "step": {k: v for k, v in step.items() if k != "found"},
    }  # fmt: skip
    for name, function in parts.items():
        before = products
        one = measured(function, base, cuda)
        found = one.pop("found")
        one["products"] = products - before
        one["memory_ratio"] = one["bytes"] / step["bytes"] if one["bytes"] else None
        if name == "eigenpairs":
            one |= {"values": found.values.tolist(), "residuals": found.residuals.tolist()}
        elif name == "trace":
            one |= {"value": found.value, "error": found.error}
        figures[name] = one
        ratio = "–" if one["memory_ratio"] is None else f"{one['memory_ratio']:.2f}"
        print(
            f"\n{name}: {one['minutes']:.1f} min, {one['products']} products, "
            f"memory {ratio} of a training step's"
        )
    write(options.json, figures)


if __name__ == "__main__":
    main()
