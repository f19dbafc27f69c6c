"""The Gauss–Newton–Bartlett estimate: curvature from one more gradient, without second derivatives.

Let the loss be the mean of N negative log-likelihoods −ln p(y | f(x)). The Gauss–Newton matrix of
such a loss is its Fisher information, the mean of the outer products of gradients with targets ŷ
that are drawn from the model itself. Their mean gradient ĝ then has

    E[N ĝ ⊙ ĝ] = diag(G),

because gradients of different samples are independent and have expectation zero (Bartlett's first
identity). The diagonal of G has no negative entry.

Source: Liu et al., *Sophia* (2023), algorithm 2 (Sophia-G).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .derivatives import NOT_REACHED, share_a_graph

__all__ = ["SampledLoss", "sampled_cross_entropy", "sampled_squared_error"]

NO_LABELS = (
    "curvature='gauss_newton' needs labels from the model: "
    "optimizer.backward(loss, lambda: sampled_cross_entropy(logits))"
)

CHUNK = 2**20
"""Elements of the logits whose probabilities are in memory at a time."""


@dataclass
class SampledLoss:
    """A loss with targets drawn from the model, ready to be differentiated once.

    Attributes:
        output: what the model's graph is entered by: the output, or its gradient edge, which
            holds no memory; or the sampled loss itself, a scalar or ``[members]``.
        terms: N, the number of likelihoods that the loss is the mean of.
        gradient: of the sampled loss with respect to ``output``; None: ``output`` is the loss.
            The optimizer sets it to None after use, which frees its memory.
    """

    output: Tensor | GradientEdge
    terms: float
    gradient: Tensor | None = None


def sampled_cross_entropy(
    logits: Tensor,
    *,
    dim: int = -1,
    members: int | None = None,
    scale: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> SampledLoss:
    r"""Cross-entropy with labels ŷ drawn from softmax(logits), for ``mean`` reduction.

    Its gradient is (softmax(logits) − onehot(ŷ)) / N. No graph is built, and the result does not
    hold the logits.

    Args:
        logits: ``[..., classes]``; with ``members`` the first dimension is the ensemble's.
        dim: of the classes.
        members: size of the ensemble.
        scale: what the training loss is multiplied with before ``backward``: that of a
            ``GradScaler``, or one over the number of accumulated batches.
        generator: of the draws; with ``members`` also one for each member.

    Example:
        >>> logits = torch.zeros(8, 10, requires_grad=True)
        >>> sampled = sampled_cross_entropy(logits)
        >>> row = sampled.gradient[0].sort().values  # (0.1 − 1) / 8 for the label, else 0.1 / 8
        >>> round(row[0].item(), 4), round(row[1].item(), 4), sampled.terms
        (-0.1125, 0.0125, 8.0)
    """
    rows = logits.detach().movedim(dim, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    terms = len(flat) // (members or 1)
    # One random number a row: torch.multinomial draws one for each class.
    drawn = _uniform(members or 1, terms, generator, flat.device)
    gradient = torch.empty_like(flat)
    size = max(1, CHUNK // max(1, flat.shape[1]))
    for part, u, out in zip(flat.split(size), drawn.split(size), gradient.split(size), strict=True):
        p = torch.softmax(part, dim=-1, dtype=torch.promote_types(part.dtype, torch.float32))
        sums = p.cumsum(-1)
        labels = torch.searchsorted(sums, u * sums[:, -1:]).clamp_max(sums.shape[1] - 1)
        p.scatter_add_(1, labels, -torch.ones_like(labels, dtype=p.dtype))
        out.copy_(p.mul_(scale / terms))
    return SampledLoss(_edge(logits), terms / scale, gradient.view(rows.shape).movedim(-1, dim))


def sampled_squared_error(
    output: Tensor,
    *,
    members: int | None = None,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> SampledLoss:
    r"""Squared error with targets ŷ = f + z, z ~ N(0, ½), for ``mean`` reduction.

    With this variance the squared error is the negative log-likelihood, up to a constant; every
    element is a likelihood of its own. The gradient is −2 z / N.

    Args:
        output: f(x), of any shape.
        members, scale, generator: see :func:`sampled_cross_entropy`.

    Example:
        >>> sampled_squared_error(torch.zeros(5, 3, requires_grad=True)).terms
        15.0
    """
    terms = output.numel() // (members or 1)
    noise = torch.randn(output.shape, generator=generator, device=output.device)
    gradient = noise.mul_(-(2**0.5) * scale / terms).to(output.dtype)
    return SampledLoss(_edge(output), terms / scale, gradient)


def _uniform(
    members: int,
    count: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
) -> Tensor:
    """Numbers from [0, 1), one for each likelihood, ``[members · count, 1]``."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(members * count, 1, generator=generator, device=device)
    return torch.cat([torch.rand(count, 1, generator=g, device=device) for g in generator])


def _edge(output: Tensor) -> Tensor | GradientEdge:
    """The way into the graph, without the output's memory."""
    return get_gradient_edge(output) if output.requires_grad else output


def gauss_newton_diagonal(
    draw: Tensor | SampledLoss | Callable[[], SampledLoss], params: Sequence[Tensor], loss: Tensor
) -> dict[Tensor, Tensor]:
    """N ĝ ⊙ ĝ of the parameters that the sampled loss reaches.

    Args:
        draw: the sampled loss, or a function that makes it.
        params: to differentiate by.
        loss: that will be differentiated next; its graph is left alone.

    Raises:
        TypeError: ``draw`` makes no :class:`SampledLoss`.
        RuntimeError: the loss reaches none of the parameters, or a compiled model's graph would
            be used twice.
    """
    sampled = draw() if callable(draw) and not isinstance(draw, Tensor) else draw
    if not isinstance(sampled, SampledLoss):
        raise TypeError(NO_LABELS)
    output, gradient, sampled.gradient = sampled.output, sampled.gradient, None
    if isinstance(output, Tensor):
        if not output.requires_grad:
            raise RuntimeError(NOT_REACHED)
        output = output.sum() if gradient is None else output
    elif gradient is None:
        raise RuntimeError("a sampled loss was used twice; draw new labels for each backward")
    shared = share_a_graph(output, loss)
    try:
        gradients = torch.autograd.grad(
            output, params, gradient, retain_graph=shared, allow_unused=True
        )
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise RuntimeError(
            "the graph of a compiled model can be used once only; call the model anew in the "
            "function: optimizer.backward(loss, lambda: sampled_cross_entropy(model(x)))"
        ) from error
    found, reached = list(gradients), {}
    del gradient, gradients
    for p in params:
        if (g := found.pop(0)) is not None:
            reached[p] = g.square().mul_(sampled.terms)
    if not reached:
        raise RuntimeError(NOT_REACHED)
    return reached
