"""SSDH on a Rahimi–Recht function in JAX, as a peer of the ensemble; run by ``rr_study.py``.

    python benchmarks/_jax_peer.py FUNCTION.npz MEMBERS EPOCHS ROUNDS

Members by ``vmap``, iterations and epochs by ``lax.scan``, the loss in Gram form, curvature by
``jvp`` of the gradient at every tenth step, everything compiled as one program in float32. Prints
seconds of each round, the first of which is left out with the compilation, and the loss at the end.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BATCH, PERIOD = 128, 10
LR, BETA1, BETA2, RHO, EPS = 0.01, 0.96, 0.99, 0.2, 1e-12

State = dict[str, Any]


def loss(weights: list[Any], gram: Any, target: Any, size: Any) -> Any:
    """√(tr(D G Dᵀ) / (n y)) with D = W2 W1 − A and G = XᵀX of the batch of n samples."""
    away = weights[1] @ weights[0] - target
    return jnp.sqrt(jnp.sum((away @ gram) * away) / (size * len(target)))


def step(state: State, gram: Any, due: Any, target: Any, size: Any) -> tuple[State, Any]:
    """Make one iteration of a member."""
    of_batch = partial(loss, gram=gram, target=target, size=size)
    value, g = jax.value_and_grad(of_batch)(state["w"])
    m = [BETA1 * a + (1 - BETA1) * b for a, b in zip(state["m"], g, strict=True)]

    def refreshed(_: None) -> tuple[list[Any], Any]:
        key, own = jax.random.split(state["key"])
        keys = jax.random.split(own, len(g))
        v = [jax.random.rademacher(k, w.shape, w.dtype) for k, w in zip(keys, g, strict=True)]
        _, hv = jax.jvp(jax.grad(of_batch), (state["w"],), (v,))
        smoothed = [
            BETA2 * d + (1 - BETA2) * (a * b) ** 2
            for d, a, b in zip(state["d"], v, hv, strict=True)
        ]
        return smoothed, key

    # Outside of what vmap maps over, so that it stays a branch.
    d, key = lax.cond(due, refreshed, lambda _: (state["d"], state["key"]), None)
    w = [
        p - LR * jnp.clip(a / (jnp.sqrt(b) + EPS), -RHO, RHO)
        for p, a, b in zip(state["w"], m, d, strict=True)
    ]
    return {"w": w, "m": m, "d": d, "key": key}, value


def make(inputs: Any, target: Any, epochs: int) -> Any:
    """Map the states of all members to states and losses after the epochs."""
    samples = len(inputs)
    bounds = [(i, min(i + BATCH, samples)) for i in range(0, samples, BATCH)]
    width = len(bounds) * BATCH
    sizes = jnp.array([b - a for a, b in bounds], inputs.dtype)
    padded = jnp.concatenate([inputs, jnp.zeros((width - samples, inputs.shape[1]))])

    def epoch(states: State, number: Any) -> tuple[State, Any]:
        def order(key: Any) -> Any:
            drawn = jax.random.permutation(jax.random.fold_in(key, number), samples)
            return jnp.concatenate([drawn, jnp.arange(samples, width)]).reshape(-1, BATCH)

        orders = jax.vmap(order)(states["key"]).swapaxes(0, 1)

        def iteration(inner: State, at: Any) -> tuple[State, Any]:
            index, rows, size = at
            batch = padded[rows]
            gram = jnp.einsum("mbi,mbj->mij", batch, batch)
            due = (number * len(bounds) + index) % PERIOD == 0
            return jax.vmap(step, (0, 0, None, None, None))(inner, gram, due, target, size)

        return lax.scan(iteration, states, (jnp.arange(len(bounds)), orders, sizes))

    return jax.jit(lambda states: lax.scan(epoch, states, jnp.arange(epochs)))


def main() -> None:
    """Measure and print."""
    path, members, epochs, rounds = sys.argv[1], *map(int, sys.argv[2:5])
    given = np.load(path)
    inputs, target = (jnp.asarray(given[n], jnp.float32) for n in ("X", "A"))
    stream = np.random.default_rng(0)

    def stacked(name: str) -> Any:
        noise = 1 + 0.01 * stream.standard_normal((members, *given[name].shape))
        return jnp.asarray(given[name] * noise, jnp.float32)

    weights = [stacked("W1"), stacked("W2")]
    zeros = [jnp.zeros_like(w) for w in weights]
    keys = jax.random.split(jax.random.key(0), members)
    states: State = {"w": weights, "m": zeros, "d": zeros, "key": keys}
    program = make(inputs, target, epochs)
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        states, losses = jax.block_until_ready(program(states))
        taken.append(time.perf_counter() - start)
    print(json.dumps({"seconds": taken[1:], "loss": float(losses[-1, -1].mean())}))


if __name__ == "__main__":
    main()
