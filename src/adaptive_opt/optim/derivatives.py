"""Second derivatives by automatic differentiation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .base import check_dense

__all__ = [
    "NOT_REACHED",
    "explained",
    "free",
    "hand_over",
    "hessian_vector_product",
    "other_leaves",
    "share_a_graph",
]

NOT_REACHED = (
    "the loss reaches no parameter of this optimizer, so there is no curvature. Under FSDP the "
    "parameters of the forward pass are others: use hvp='finite_difference' and "
    "optimizer.step(closure)"
)

NO_SECOND_DERIVATIVE = (
    "not implemented",
    "double backward",
    "double backwards",
    "once_differentiable",
    "not differentiable twice",
    "create_graph",
    "sparse",
    "check_random_bounds",
    "aot_autograd",
)
"""Parts of PyTorch's errors where something cannot be differentiated twice."""


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
    for node in _nodes(total):
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf not in known:
            known.add(leaf)
            leaves.append(leaf)
    return leaves


def share_a_graph(a: Tensor | GradientEdge, b: Tensor) -> bool:
    """Whether two outputs come from the same forward pass, or from a part of it.

    Example:
        >>> p = torch.ones(2, requires_grad=True)
        >>> q = p * 2
        >>> share_a_graph(q.sum(), q.square().sum()), share_a_graph(q.sum(), (p * 2).sum())
        (True, False)
    """
    inner = [{n for n in _nodes(t) if not hasattr(n, "variable")} for t in (a, b)]
    return not inner[0].isdisjoint(inner[1])


def _nodes(total: Tensor | GradientEdge) -> Iterator[Any]:
    """Of a tensor's graph, those of the leaves too."""
    root = total.grad_fn if isinstance(total, Tensor) else total.node
    stack, visited = [root], {root}
    while stack:
        node = stack.pop()
        yield node
        for following, _ in getattr(node, "next_functions", ()):
            if following is not None and following not in visited:
                visited.add(following)
                stack.append(following)


@contextmanager
def explained() -> Iterator[None]:
    """PyTorch's errors about second derivatives, with the ways out.

    Raises:
        RuntimeError: in place of one that says that something cannot be differentiated twice.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        said = str(error).split("\n")[0]
        if not any(part in str(error) for part in NO_SECOND_DERIVATIVE):
            raise
        raise RuntimeError(
            f"adaptive_opt: this model has no second derivative here ({said[:160]}). Run its "
            "forward pass inside optimizer.forward_context() (attention), or use "
            "hvp='finite_difference' with optimizer.step(closure) (compiled models, fused or "
            "custom kernels, CTC, reentrant checkpointing), or curvature='squared_gradient'."
        ) from error


def hand_over(gradients: Mapping[Tensor, Tensor]) -> None:
    """Accumulate gradients into their leaves as ``loss.backward()`` does, hooks included.

    Hooks on the accumulation run, DistributedDataParallel's reducer among them. Hooks on the
    tensors ran when the gradients were made and are kept from running again.

    Args:
        gradients: by leaf.
    """
    check_dense(gradients.values())
    # Copies: a reducer writes into what it is given, and the graph still needs the originals.
    copies = [g.detach().clone() for g in gradients.values()]
    with without_hooks(gradients):
        torch.autograd.backward(list(gradients), copies)


@contextmanager
def without_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Hooks on these tensors do not run inside.

    Args:
        tensors: whose hooks ran when their gradients were made, and are part of these.
    """
    # The only list of them that PyTorch has; emptied and filled, it stays the same object.
    hooked = [h for p in tensors if (h := getattr(p, "_backward_hooks", None))]
    kept = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, saved in zip(hooked, kept, strict=True):
            hooks.update(saved)


def free(loss: Tensor) -> None:
    """Let the graph go that ``loss``, if the caller holds on to it, would keep alive."""
    if not loss._is_view():
        loss.detach_()
