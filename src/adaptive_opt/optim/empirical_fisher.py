r"""The empirical Fisher diagonal: the mean of the squared gradients of the samples.

Let the loss be the mean of N sample losses, with gradients g_i. The empirical Fisher matrix is
Σ_i g_i g_iᵀ / N, and its diagonal is

    c = (1/N) Σ_i g_i ⊙ g_i.

It is the Fisher information with the labels of the data in place of labels sampled from the model
(:mod:`.gauss_newton`), on the same scale: that of the mean loss, not N times it. The squared
gradient of the batch is about N times smaller where the gradients of the samples cancel.

Source: Kunstner, Balles & Hennig, *Limitations of the empirical Fisher approximation for natural
gradient descent* (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

__all__ = ["squared_sample_gradients"]

MISSING_SAMPLES = (
    "curvature='empirical_fisher' needs the squared gradients of the samples: call "
    "optimizer.backward(loss, lambda: squared_sample_gradients(model, loss_fn, x, y))"
)

SampleGradients = Mapping[Tensor, Tensor]
"""Mean of the squared gradients of the samples, by parameter."""


def squared_sample_gradients(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> dict[Tensor, Tensor]:
    """Mean over the samples of a batch of their squared gradients.

    Each sample passes through the model alone, as a batch of one. A model whose samples depend on
    each other in training (batch normalisation) has no gradient of one sample.

    Args:
        model: maps inputs ``[N, ...]`` to outputs ``[N, ...]``.
        loss_fn: maps outputs and targets to the mean loss.
        x, y: inputs and targets, ``[N, ...]`` each.

    Returns:
        One tensor of its shape for each parameter that requires a gradient.

    Raises:
        ValueError: the model has batch normalisation in training mode.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> x, y = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)
        >>> loss = lambda output, y: output.sum()  # sample gradients 1 and 3
        >>> squared_sample_gradients(model, loss, x, y)[model.weight]
        tensor([[5.]])
    """
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()):
        raise ValueError(
            "curvature='empirical_fisher' needs the gradient of each sample alone, but batch "
            "normalisation makes samples depend on each other; use curvature='gauss_newton'"
        )
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    fixed: dict[str, Tensor] = dict(model.named_buffers())
    fixed |= {n: p for n, p in model.named_parameters() if not p.requires_grad}

    def loss(weights: dict[str, Tensor], one_x: Tensor, one_y: Tensor) -> Tensor:
        output = functional_call(model, {**fixed, **weights}, (one_x[None],))
        return loss_fn(output, one_y[None])

    detached = {n: p.detach() for n, p in wanted.items()}
    each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(detached, x, y)
    return {p: each[n].square().mean(0) for n, p in wanted.items()}


@torch.no_grad()
def check_sample_gradients(make: Any, due: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """The squared gradients that a function returns, for the parameters that are due.

    Raises:
        TypeError: ``make`` is no function that returns a tensor by parameter.
        ValueError: one has another shape than its parameter.
    """
    with torch.enable_grad():
        found = make() if callable(make) and not isinstance(make, Tensor) else None
    if not isinstance(found, Mapping):
        raise TypeError(MISSING_SAMPLES)
    chosen = {p: found[p] for p in due if p in found}
    for p, c in chosen.items():
        if c.shape != p.shape:
            raise ValueError(
                f"the squared gradients have shape {list(c.shape)}, their parameter {list(p.shape)}"
            )
    return chosen
