"""The Gauss–Newton–Bartlett estimate: curvature from one more gradient.

Let the loss be the mean of N negative log-likelihoods −ln p(y | f(x)). Its Gauss–Newton matrix G
is the Fisher information: the mean outer product of the gradients for targets ŷ sampled from the
model. With ĝ the mean of these gradients,

    E[N ĝ ⊙ ĝ] = diag(G),

because the gradients of different samples are independent and have expectation zero (Bartlett's
first identity). The diagonal of G has no negative entry.

Source: Liu et al., *Sophia* (2023), algorithm 2 (Sophia-G).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from .derivatives import NO_PARAMETER_REACHED, shares_graph

__all__ = ["SampledLoss", "sampled_cross_entropy", "sampled_squared_error"]

MISSING_LABELS = (
    "curvature='gauss_newton' needs labels sampled from the model: call "
    "optimizer.backward(loss, lambda: sampled_cross_entropy(logits))"
)

CHUNK_ELEMENTS = 2**20
"""Most elements of the logits to compute probabilities for at a time, to save memory."""


@dataclass
class SampledLoss:
    """A loss with targets sampled from the model, which can be differentiated once.

    Attributes:
        output: the model's output, or its gradient edge, which holds no memory; or the sampled
            loss itself, a scalar or ``[members]``.
        terms: N, the number of likelihoods in the mean.
        gradient: the gradient of the sampled loss with respect to ``output``; None (default):
            ``output`` is the loss. The optimizer sets it to None after use to free its memory.
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
    r"""Mean cross-entropy with labels ŷ sampled from softmax(logits).

    Its gradient is (softmax(logits) − onehot(ŷ)) / N. No graph is built, and the result does not
    keep the logits in memory.

    Args:
        logits: ``[..., classes]``; with ``members`` the first dimension is that of the members.
        dim: dimension of the classes; default: the last.
        members: ensemble size; None (default): a single model.
        scale: factor of the training loss: the scale of a ``GradScaler``, or 1 / (number of
            accumulated batches); default 1.
        generator: random generator; with ``members`` also a sequence of one for each member.

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
    # Inverse transform sampling, as torch.multinomial draws a random number for each class.
    drawn = _uniform(members or 1, terms, generator, flat.device)
    gradient = torch.empty_like(flat)
    size = max(1, CHUNK_ELEMENTS // max(1, flat.shape[1]))
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
    r"""Mean squared error with sampled targets ŷ = f + z, z ~ N(0, ½).

    With this variance the squared error of an element is its negative log-likelihood, up to a
    constant, and N is the number of elements. The gradient is −2 z / N.

    Args:
        output: f(x), of any shape; with ``members`` the first dimension is that of the members.
        members, scale: see :func:`sampled_cross_entropy`.
        generator: random generator.

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
    """Uniform random numbers in [0, 1), ``[members · count, 1]``."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(members * count, 1, generator=generator, device=device)
    return torch.cat([torch.rand(count, 1, generator=g, device=device) for g in generator])


def _edge(output: Tensor) -> Tensor | GradientEdge:
    """The output's gradient edge, which does not keep the output in memory."""
    return get_gradient_edge(output) if output.requires_grad else output


def gauss_newton_diagonal(
    draw: Tensor | SampledLoss | Callable[[], SampledLoss],
    params: Sequence[Tensor],
    loss: Tensor | None,
) -> dict[Tensor, Tensor]:
    """N ĝ ⊙ ĝ for the parameters on which the sampled loss depends.

    Args:
        draw: the sampled loss, or a function that returns it.
        params: parameters to differentiate by.
        loss: the training loss, to be differentiated next; if it shares a graph with the sampled
            loss, that graph is kept. None: the graph is freed.

    Raises:
        TypeError: ``draw`` is or returns no :class:`SampledLoss`.
        RuntimeError: the sampled loss depends on no parameter, was used before, or would use the
            graph of a compiled model twice.
    """
    sampled = draw() if callable(draw) and not isinstance(draw, Tensor) else draw
    if not isinstance(sampled, SampledLoss):
        raise TypeError(MISSING_LABELS)
    output, gradient, sampled.gradient = sampled.output, sampled.gradient, None
    if isinstance(output, Tensor):
        if not output.requires_grad:
            raise RuntimeError(NO_PARAMETER_REACHED)
        output = output.sum() if gradient is None else output
    elif gradient is None:
        raise RuntimeError("a sampled loss was used twice; sample new labels for each backward")
    shared = loss is not None and shares_graph(output, loss)
    try:
        gradients = torch.autograd.grad(
            output, params, gradient, retain_graph=shared, allow_unused=True
        )
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise RuntimeError(
            "the graph of a compiled model can be used only once; call the model again inside the "
            "function: optimizer.backward(loss, lambda: sampled_cross_entropy(model(x)))"
        ) from error
    found, reached = list(gradients), {}
    del gradient, gradients
    for p in params:
        if (g := found.pop(0)) is not None:
            reached[p] = g.square().mul_(sampled.terms)
    if not reached:
        raise RuntimeError(NO_PARAMETER_REACHED)
    return reached
