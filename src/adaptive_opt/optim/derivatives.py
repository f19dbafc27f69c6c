"""Second derivatives by automatic differentiation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["hessian_vector_product", "other_leaves"]


def hessian_vector_product(
    gradients: Sequence[Tensor],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    *,
    keep_graph: bool = False,
) -> list[Tensor]:
    """``H v`` by reverse over reverse, about the cost of two gradients.

    Args:
        gradients: of the loss with respect to ``params``, with their graph.
        params: what was differentiated by.
        vector: v, shaped like ``params``.
        keep_graph: for another product with the same H; else the graph is freed.

    Returns:
        One tensor for each parameter, zero where the gradient does not depend on it.

    Source: Pearlmutter, *Fast exact multiplication by the Hessian* (1994).

    Example:
        >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> g = torch.autograd.grad(p[0] * p[1], [p], create_graph=True)
        >>> hessian_vector_product(g, [p], [torch.tensor([1.0, 0.0])])
        [tensor([0., 1.])]
    """
    pairs = [(g, v) for g, v in zip(gradients, vector, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(p) for p in params]
    products = torch.autograd.grad(
        [g for g, _ in pairs],
        params,
        [v for _, v in pairs],
        retain_graph=keep_graph,
        allow_unused=True,
    )
    return [torch.zeros_like(p) if h is None else h for p, h in zip(params, products, strict=True)]


def other_leaves(total: Tensor, own: Sequence[Tensor]) -> list[Tensor]:
    """Leaves of a loss's graph that are not in ``own``; ``loss.backward()`` reaches them too.

    Example:
        >>> p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> other_leaves((p * q).sum(), [p])[0] is q
        True
    """
    leaves, known = [], set(own)
    stack, visited = [total.grad_fn], {total.grad_fn}
    while stack:
        node = stack.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf not in known:
            known.add(leaf)
            leaves.append(leaf)
        for following, _ in getattr(node, "next_functions", ()):
            if following is not None and following not in visited:
                visited.add(following)
                stack.append(following)
    return leaves
