"""Compare products by finite differences with those by second derivatives.

The networks and data are those of ``conf/base``. SSDH trains one run with the published
hyperparameters. At every tenth iteration, the Hessian of the batch is multiplied with a Rademacher
probe: by second derivatives, and by (g(θ + εv) − g(θ)) / ε for several ε, one of them the
library's. The cosine of the two products is printed; 1 means the same direction.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from _common import at_least_1, parser, write
from network_ensembles import TASKS, load, parameters
from torch import Tensor

from adaptive_opt.engine.network import build_network_task
from adaptive_opt.optim import SSDH
from adaptive_opt.optim.double_backward import twice_differentiable
from adaptive_opt.optim.finite_differences import FRACTION, Point, difference, step_length
from adaptive_opt.parameters import TrainingParameters, resolve_arm, task_parameters
from adaptive_opt.study import get_task
from adaptive_opt.tasks.networks import NetworkTask

FRACTIONS = (1.0, 0.1, FRACTION, 0.01)
"""c in ε = c √u (1 + ‖θ‖) / ‖v‖."""

COLOURS = ("#999999", "#e69f00", "#0072b2", "#009e73")


def flat(tensors: list[Tensor]) -> Tensor:
    """Concatenate to one vector in double precision."""
    return torch.cat([t.detach().reshape(-1) for t in tensors]).double()


def exact_product(
    problem: NetworkTask, params: list[Tensor], batch: Any, probe: list[Tensor]
) -> Tensor:
    """Compute Hv by second derivatives."""
    with twice_differentiable():
        loss = problem.curvature_loss(params, batch).sum()
        gradients = torch.autograd.grad(loss, params, create_graph=True)
    return flat(list(torch.autograd.grad(gradients, params, probe)))


def product(
    problem: NetworkTask, params: list[Tensor], batch: Any, probe: list[Tensor], fraction: float
) -> Tensor:
    """Compute Hv by a difference of gradients, as the optimizers do."""

    def gradient() -> Tensor:
        for p in params:
            p.grad = None
        loss = problem.loss(params, batch).sum()
        loss.backward()
        return loss

    def size(own: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        norms = (torch.linalg.vector_norm(flat(t)).float() for t in (own, v))
        length = step_length(*norms, own[0].dtype) * (fraction / FRACTION)
        return [length] * len(own)

    found = difference(
        gradient, Point.of(params), params, lambda _: probe, size, gradient_first=False, check=False
    )
    assert found is not None
    return flat(found.product)


def cosines(task: str, every: int, iterations: int | None) -> list[dict[str, float]]:
    """Return iterations and the cosine for each fraction, along one run."""
    data = load(task)
    settings = task_parameters(task, {task: parameters("tasks")[task]})
    training = TrainingParameters(**{**parameters("training"), "device": "cpu"})
    problem = build_network_task(data, task, [0], settings, training)
    params = problem.initial_parameters()
    given = resolve_arm("ssdh", parameters("arms")[task], training)["hyperparameters"]
    optimizer = SSDH(
        params,
        lr=given["lr"],
        betas=(given["beta1"], given["beta2"]),
        rho=given["rho"],
        max_grad_norm=settings.max_grad_norm,
        members=1,
        seed=[0],
    )
    total = settings.epochs * problem.batches_per_epoch
    total = total if iterations is None else min(total, iterations)
    rows: list[dict[str, float]] = []
    done = 0
    for epoch in range(settings.epochs):
        for batch in problem.epoch(epoch):
            if done >= total:
                return rows
            if done % every == 0:
                stream = torch.Generator().manual_seed(done)
                probe = [
                    torch.randint(0, 2, p.shape, generator=stream).to(p) * 2 - 1 for p in params
                ]
                exact = exact_product(problem, params, batch, probe)
                row: dict[str, float] = {"iteration": done}
                for fraction in FRACTIONS:
                    other = product(problem, params, batch, probe, fraction)
                    row[f"{fraction:g}"] = float(exact @ other / (exact.norm() * other.norm()))
                rows.append(row)
            optimizer.zero_grad()
            with optimizer.forward_context():
                loss = problem.loss(params, batch)
            optimizer.backward(loss)
            optimizer.step()
            done += 1
    return rows


def summary(rows: list[dict[str, float]], fraction: float) -> dict[str, float]:
    """Return the median, the minimum and the share of at least 0.999."""
    values = [row[f"{fraction:g}"] for row in rows]
    return {
        "median": statistics.median(values),
        "least": min(values),
        "above_0.999": sum(v >= 0.999 for v in values) / len(values),
    }


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw 1 − cosine along the runs, a panel for each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(figures["tasks"]), sharey=True, squeeze=False)[0]
    marks = zip(FRACTIONS, ("x", "s", "o", "^"), COLOURS, strict=True)
    styles = {f"{f:g}": {"marker": m, "color": c, "ls": ":", "ms": 4} for f, m, c in marks}
    for panel, (task, found) in zip(panels, figures["tasks"].items(), strict=True):
        at = [row["iteration"] for row in found["rows"]]
        for fraction, style in styles.items():
            away = [max(1 - row[fraction], 1e-7) for row in found["rows"]]
            panel.semilogy(at, away, lw=0.8, label=f"c = {fraction}", **style)
        panel.axhline(1e-3, color="black", lw=0.8)
        panel.set(title=get_task(task).label, xlabel="iteration")
    panels[0].set_ylabel("1 − cosine")
    panels[-1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, and write."""
    line = parser(__doc__, "--task resnet18 --every 20")
    line.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="networks")
    line.add_argument("--every", type=int, default=10, help="iterations between two comparisons")
    line.add_argument(
        "--iterations", type=int, default=None, help="iterations of the run; default: all"
    )
    line.add_argument("--figure", type=Path, metavar="FILE", help="draw the figure here")
    options = line.parse_args()
    at_least_1(line, options, "every")
    figures: dict[str, Any] = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "fraction": FRACTION,
        "tasks": {},
    }
    for task in options.task:
        rows = cosines(task, options.every, options.iterations)
        found = {f"{f:g}": summary(rows, f) for f in FRACTIONS}
        figures["tasks"][task] = {"rows": rows, "summary": found}
        print(f"{task}, {len(rows)} products")
        for fraction, one in found.items():
            print(
                f"  c = {fraction:5s} median {one['median']:.5f}, least {one['least']:.5f}, "
                f"at least 0.999: {one['above_0.999']:.0%}",
                flush=True,
            )
        write(options.json, figures, tell=False)
    write(options.json, figures)
    if options.figure is not None:
        draw(figures, options.figure)


if __name__ == "__main__":
    main()
