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
from torch.nn.functional import cross_entropy

from .derivatives import NOT_REACHED, share_a_graph

__all__ = ["SampledLoss", "sampled_cross_entropy", "sampled_squared_error"]

NO_LABELS = (
    "curvature='gauss_newton' needs labels from the model: "
    "optimizer.backward(loss, lambda: sampled_cross_entropy(logits))"
)


@dataclass(frozen=True)
class SampledLoss:
    """A loss with targets drawn from the model.

    Attributes:
        loss: its mean; a scalar, or ``[members]``.
        terms: N, the number of likelihoods that it is the mean of.
    """

    loss: Tensor
    terms: float


def sampled_cross_entropy(
    logits: Tensor,
    *,
    dim: int = -1,
    members: int | None = None,
    scale: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> SampledLoss:
    r"""Cross-entropy with labels ŷ drawn from softmax(logits), for ``mean`` reduction.

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
        >>> round(sampled.loss.item(), 4), sampled.terms  # ln 10
        (2.3026, 8.0)
    """
    rows = logits.movedim(dim, -1).reshape(members or 1, -1, logits.shape[dim])
    flat = rows.flatten(0, 1)
    with torch.no_grad():
        # One random number a row: torch.multinomial draws one for each class.
        sums = torch.softmax(flat.float(), dim=-1).cumsum(-1)
        drawn = _uniform(rows.shape[:2], generator, sums.device).view(-1, 1)
        labels = torch.searchsorted(sums, drawn * sums[:, -1:])[:, 0].clamp_max(sums.shape[1] - 1)
    losses = cross_entropy(flat, labels, reduction="none").view(rows.shape[:2])
    return _scaled(losses, members, scale)


def sampled_squared_error(
    output: Tensor,
    *,
    members: int | None = None,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> SampledLoss:
    r"""Squared error with targets ŷ = f + z, z ~ N(0, ½), for ``mean`` reduction.

    With this variance the squared error is the negative log-likelihood, up to a constant; every
    element is a likelihood of its own.

    Args:
        output: f(x), of any shape.
        members, scale, generator: see :func:`sampled_cross_entropy`.

    Example:
        >>> sampled_squared_error(torch.zeros(5, 3, requires_grad=True)).terms
        15.0
    """
    with torch.no_grad():
        noise = torch.randn(output.shape, generator=generator, device=output.device)
        targets = output + noise.to(output) * 0.5**0.5
    losses = (output - targets).square().reshape(members or 1, -1)
    return _scaled(losses, members, scale)


def _uniform(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
) -> Tensor:
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(*shape, generator=generator, device=device)
    return torch.stack([torch.rand(*shape[1:], generator=g, device=device) for g in generator])


def _scaled(losses: Tensor, members: int | None, scale: float) -> SampledLoss:
    means = losses.mean(1)
    return SampledLoss((means if members else means[0]) * scale, losses.shape[1] / scale)


def gauss_newton_diagonal(
    draw: Tensor | Callable[[], SampledLoss], params: Sequence[Tensor], loss: Tensor
) -> dict[Tensor, Tensor]:
    """N ĝ ⊙ ĝ of the parameters that the sampled loss reaches.

    Args:
        draw: makes the sampled loss.
        params: to differentiate by.
        loss: that will be differentiated next; its graph is left alone.

    Raises:
        TypeError: ``draw`` makes no :class:`SampledLoss`.
        RuntimeError: the loss reaches none of the parameters, or a compiled model's graph would
            be used twice.
    """
    sampled = draw() if callable(draw) and not isinstance(draw, Tensor) else None
    if not isinstance(sampled, SampledLoss):
        raise TypeError(NO_LABELS)
    total = sampled.loss.sum()
    shared = share_a_graph(total, loss)
    try:
        found = torch.autograd.grad(total, list(params), retain_graph=shared, allow_unused=True)
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise RuntimeError(
            "the graph of a compiled model can be used once only; call the model anew in the "
            "function: optimizer.backward(loss, lambda: sampled_cross_entropy(model(x)))"
        ) from error
    pairs = zip(params, found, strict=True)
    reached = {p: sampled.terms * g.square() for p, g in pairs if g is not None}
    if not reached:
        raise RuntimeError(NOT_REACHED)
    return reached
