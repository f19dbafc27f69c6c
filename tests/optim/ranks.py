"""Functions that the distributed tests run in each process; spawned processes import them."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adaptive_opt.optim import SADH, SSDH, SSVP, Sophia, sampled_squared_error

METHODS = {cls.__name__: cls for cls in (Sophia, SADH, SSDH, SSVP)}
STEPS = 50


def network(*, frozen: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    if frozen:
        model[0].bias.requires_grad_(False)
    return model


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    stream = torch.Generator().manual_seed(1)

    def draw(width: int) -> torch.Tensor:
        return torch.randn(16, width, generator=stream, dtype=torch.float64)

    return [(draw(5), draw(3)) for _ in range(count)]


def train(
    model: nn.Module, name: str, share: slice, accumulate: int = 1, **options: Any
) -> tuple[torch.Tensor, Any]:
    """Train :data:`STEPS` steps on a share of each batch; returns weights and optimizer."""
    optimizer = METHODS[name](
        model.parameters(), lr=0.05, rho=0.1, update_period=4, seed=3, **options
    )
    for i, (x, y) in enumerate(batches(STEPS)):
        optimizer.zero_grad()
        pieces = list(zip(x[share].chunk(accumulate), y[share].chunk(accumulate), strict=True))
        for j, (a, b) in enumerate(pieces):
            last = j == len(pieces) - 1
            context = nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
            with context:

                def loss(a: Any = a, b: Any = b) -> torch.Tensor:
                    return ((model(a) - b) ** 2).mean() / accumulate

                optimizer.backward(loss if options.get("hvp") == "finite_difference" else loss())
        assert i < STEPS
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()]), optimizer


def init_process_group(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)


CASES = [(name, n) for name in METHODS for n in (1, 2) if (name, n) != ("SSVP", 2)]
"""Methods and backward passes per step; the first pass determines a momentum probe."""


def train_data_parallel(rank: int, world: int, folder: str) -> None:
    init_process_group(rank, world, f"{folder}/store")
    size = 16 // world
    found = {}
    for name, accumulate in CASES:
        model = DistributedDataParallel(network(frozen=name == "SADH"))
        part = slice(rank * size, (rank + 1) * size)
        weights, optimizer = train(model, name, part, accumulate)
        found[f"{name} {accumulate}"] = weights
        found[f"{name} {accumulate} D"] = torch.cat(
            [s["curvature"].flatten() for s in optimizer.state.values()]
        )
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


DIFFERENCES = [("SSDH", 1, False), ("SSDH", 2, False), ("SSDH", 2, True), ("SSVP", 1, True)]
"""Methods, backward passes per step, whether gradients are views of the reducer's memory."""


def train_by_differences(rank: int, world: int, folder: str) -> None:
    """Finite differences of the gradient, with and without accumulation inside no_sync."""
    init_process_group(rank, world, f"{folder}/store")
    size = 16 // world
    part = slice(rank * size, (rank + 1) * size)
    found = {}
    for name, accumulate, view in DIFFERENCES:
        model = DistributedDataParallel(network(), gradient_as_bucket_view=view)
        weights, _ = train(model, name, part, accumulate, hvp="finite_difference")
        found[f"{name} {accumulate} {view}"] = weights
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def average_estimates(rank: int, world: int, folder: str) -> None:
    """Save many averaged estimates of the same Hessian, with shared and with separate probes."""
    init_process_group(rank, world, f"{folder}/store")
    x, y = batches(1)[0]
    found = {}
    for own in (False, True):
        model = DistributedDataParallel(network())
        optimizer = SSDH(
            model.parameters(), lr=0.0, update_period=1, betas=(0.0, 0.0), rank_probes=own, seed=3
        )
        rows = []
        for _ in range(300):
            optimizer.zero_grad()
            optimizer.backward(((model(x) - y) ** 2).mean())
            optimizer._before_step()
            rows.append(torch.cat([c.flatten() for c in optimizer._pending_estimates.values()]))
        found[str(own)] = torch.stack(rows)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def mismatched_ranks(rank: int, world: int, folder: str) -> None:
    """Save the errors of ranks whose estimates cannot be averaged, without a DDP reducer."""
    init_process_group(rank, world, f"{folder}/store")
    x, y = batches(1)[0]

    def reaches_fewer_parameters(model: nn.Module, optimizer: Any) -> None:
        optimizer.backward(((model(x) - y) ** 2).mean() if rank else model[0](x).square().mean())

    def reaches_other_parameters(model: nn.Module, optimizer: Any) -> None:
        del model
        a, b = (p for g in optimizer.param_groups for p in g["params"])
        optimizer.backward(((b if rank else a) ** 2).sum())

    def plain_backward(model: nn.Module, optimizer: Any) -> None:
        del optimizer
        ((model(x) - y) ** 2).mean().backward()

    def one_rank_without_estimate(model: nn.Module, optimizer: Any) -> None:
        optimizer.backward(
            (model(x) ** 2).mean(), None if rank else sampled_squared_error(model(x))
        )

    messages = {}
    for way in (
        reaches_fewer_parameters,
        reaches_other_parameters,
        plain_backward,
        one_rank_without_estimate,
    ):
        model = network()
        params = list(model.parameters())
        if way is reaches_other_parameters:  # two parameters of one size
            params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
        source = "gauss_newton" if way is one_rank_without_estimate else "estimate"
        optimizer = SSDH(params, lr=0.01, curvature=source)
        way(model, optimizer)
        try:
            optimizer.step()
            messages[way.__name__] = "nothing"
        except RuntimeError as error:
            messages[way.__name__] = str(error)
    (Path(folder) / f"{rank}.txt").write_text(json.dumps(messages))
    dist.barrier()  # leaving early would interrupt the last reduction of the other rank
    dist.destroy_process_group()


def average_two_types(rank: int, world: int, folder: str) -> None:
    """Average the curvature of parameters of two types."""
    init_process_group(rank, world, f"{folder}/store")
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]
    optimizer = SADH(params, lr=0.0, betas=(0.0, 0.0))
    optimizer.backward((rank + 1) * sum((p.float() ** 2).sum() for p in params))
    optimizer.step()
    torch.save([optimizer.state[p]["curvature"] for p in params], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def train_sharded(rank: int, world: int, folder: str) -> None:
    """Train with finite differences under FSDP2, and gather the weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    init_process_group(rank, world, f"{folder}/store")
    size = 16 // world
    found = {}
    # The last case is replicated over one dimension and sharded over another.
    hybrid = init_device_mesh("cpu", (1, world), mesh_dim_names=("replicate", "shard"))
    plain = init_device_mesh("cpu", (world,))
    for name, probe in SHARDED_CASES:
        model = network()
        fully_shard(model, mesh=hybrid if (name, probe) == SHARDED_CASES[-1] else plain)
        optimizer = sharded_optimizer(name, probe, model)
        for x, y in batches(STEPS):
            part = slice(rank * size, (rank + 1) * size)
            optimizer.step(closure_of(model, optimizer, x[part], y[part]))
        found[f"{name} {probe}"] = gather_weights(model)
    try:
        SSDH(model.parameters(), rank_probes=True)
    except ValueError as error:
        (Path(folder) / f"{rank}.txt").write_text(str(error))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def sharded_optimizer(name: str, probe: str, model: nn.Module) -> Any:
    return METHODS[name](
        model.parameters(), lr=0.05, rho=0.1, update_period=4, seed=3, probe=probe,
        hvp="finite_difference",
    )  # fmt: skip


def closure_of(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        return loss.detach()

    return closure


def resume_sharded(rank: int, world: int, folder: str) -> None:
    """Train under FSDP2 without interruption, and again from a checkpoint."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    init_process_group(rank, world, f"{folder}/store")
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for name in SHARDED:
        options: dict[str, Any] = {"probe": name, "hvp": "finite_difference", "update_period": 4}

        def make(options: dict[str, Any] = options) -> tuple[nn.Module, Any]:
            model = network()
            fully_shard(model, mesh=mesh)
            return model, SSDH(model.parameters(), lr=0.05, rho=0.1, seed=3, **options)

        def train(model: nn.Module, optimizer: Any, part: slice) -> None:
            mine = slice(rank * 16 // world, (rank + 1) * 16 // world)
            for x, y in batches(14)[part]:
                optimizer.step(closure_of(model, optimizer, x[mine], y[mine]))

        model, optimizer = make()
        train(model, optimizer, slice(0, 6))
        weight, state = get_state_dict(model, optimizer)
        dcp.save({"model": weight, "optimizer": state}, checkpoint_id=f"{folder}/{name}")
        train(model, optimizer, slice(6, 14))
        again, other = make()
        weight, state = get_state_dict(again, other)
        dcp.load({"model": weight, "optimizer": state}, checkpoint_id=f"{folder}/{name}")
        set_state_dict(again, other, model_state_dict=weight, optim_state_dict=state)
        train(again, other, slice(6, 14))
        found[name] = [gather_weights(model), gather_weights(again)]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def gather_weights(model: nn.Module) -> torch.Tensor:
    full = [p.full_tensor().detach().flatten() for p in model.parameters()]  # type: ignore[operator]
    return torch.cat(full)


SHARDED = ("rademacher", "gaussian", "constant", "momentum_sign", "momentum_sign_cumulative")
"""Probes in the tests with sharded parameters."""

SHARDED_CASES = [
    *(("SSDH", probe) for probe in SHARDED),
    ("Sophia", "gaussian"),
    ("SADH", "rademacher"),
]
"""Methods and probes; the network has layers of 3 rows, which two ranks share unevenly."""
