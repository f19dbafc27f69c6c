"""What each process of the distributed tests does; importable, as it is spawned."""

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
    """Weights after :data:`STEPS` steps on part of each batch."""
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


def begin(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)


CASES = [(name, n) for name in METHODS for n in (1, 2) if (name, n) != ("SSVP", 2)]
"""Methods, and backward passes a step; a momentum probe is fixed by the first of them."""


def data_parallel(rank: int, world: int, folder: str) -> None:
    begin(rank, world, f"{folder}/store")
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
"""Methods, backward passes a step, whether gradients are views of the reducer's memory."""


def differences(rank: int, world: int, folder: str) -> None:
    """Finite differences of the gradient, with and without accumulation inside no_sync."""
    begin(rank, world, f"{folder}/store")
    size = 16 // world
    part = slice(rank * size, (rank + 1) * size)
    found = {}
    for name, accumulate, view in DIFFERENCES:
        model = DistributedDataParallel(network(), gradient_as_bucket_view=view)
        weights, _ = train(model, name, part, accumulate, hvp="finite_difference")
        found[f"{name} {accumulate} {view}"] = weights
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def estimates(rank: int, world: int, folder: str) -> None:
    """Averaged estimates of the same Hessian, many times, with shared and with own probes."""
    begin(rank, world, f"{folder}/store")
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


def uneven(rank: int, world: int, folder: str) -> None:
    """Ranks that have no curvature to average, and no reducer that would say so."""
    begin(rank, world, f"{folder}/store")
    x, y = batches(1)[0]

    def fewer(model: nn.Module, optimizer: Any) -> None:
        optimizer.backward(((model(x) - y) ** 2).mean() if rank else model[0](x).square().mean())

    def others(model: nn.Module, optimizer: Any) -> None:
        del model
        a, b = (p for g in optimizer.param_groups for p in g["params"])
        optimizer.backward(((b if rank else a) ** 2).sum())

    def forgotten(model: nn.Module, optimizer: Any) -> None:
        del optimizer
        ((model(x) - y) ** 2).mean().backward()

    def one_forgot(model: nn.Module, optimizer: Any) -> None:
        optimizer.backward(
            (model(x) ** 2).mean(), None if rank else sampled_squared_error(model(x))
        )

    said = {}
    for way in (fewer, others, forgotten, one_forgot):
        model = network()
        params = list(model.parameters())
        if way is others:  # two parameters of one size
            params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
        source = "gauss_newton" if way is one_forgot else "estimate"
        optimizer = SSDH(params, lr=0.01, curvature=source)
        way(model, optimizer)
        try:
            optimizer.step()
            said[way.__name__] = "nothing"
        except RuntimeError as error:
            said[way.__name__] = str(error)
    (Path(folder) / f"{rank}.txt").write_text(json.dumps(said))
    dist.barrier()  # who leaves first would break off the other's last reduction
    dist.destroy_process_group()


def two_types(rank: int, world: int, folder: str) -> None:
    """Parameters of two types, whose curvature is averaged."""
    begin(rank, world, f"{folder}/store")
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]
    optimizer = SADH(params, lr=0.0, betas=(0.0, 0.0))
    optimizer.backward((rank + 1) * sum((p.float() ** 2).sum() for p in params))
    optimizer.step()
    torch.save([optimizer.state[p]["curvature"] for p in params], Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def sharded(rank: int, world: int, folder: str) -> None:
    """FSDP2 with finite differences; the weights are gathered."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    begin(rank, world, f"{folder}/store")
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
        found[f"{name} {probe}"] = gathered(model)
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


def sharded_checkpoint(rank: int, world: int, folder: str) -> None:
    """Training under FSDP2 in one go, and by way of a checkpoint of torch.distributed."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    begin(rank, world, f"{folder}/store")
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
        found[name] = [gathered(model), gathered(again)]
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def gathered(model: nn.Module) -> torch.Tensor:
    full = [p.full_tensor().detach().flatten() for p in model.parameters()]  # type: ignore[operator]
    return torch.cat(full)


SHARDED = ("rademacher", "gaussian", "constant", "momentum_sign", "momentum_sign_cumulative")
"""Probes of the tests of sharded parameters."""

SHARDED_CASES = [
    *(("SSDH", probe) for probe in SHARDED),
    ("Sophia", "gaussian"),
    ("SADH", "rademacher"),
]
"""Methods and probes; the network has layers of 3 rows, which two ranks share unevenly."""
