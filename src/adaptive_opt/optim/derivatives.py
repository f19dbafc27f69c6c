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
    "NO_PARAMETER_REACHED",
    "accumulate_gradients",
    "explain_errors",
    "hessian_vector_product",
    "other_leaves",
    "release_graph",
    "shares_graph",
]

NO_PARAMETER_REACHED = (
    "the loss does not depend on any parameter of this optimizer, so there is no curvature. FSDP "
    "uses other tensors in the forward pass: use hvp='finite_difference' and "
    "optimizer.step(closure)"
)

DOUBLE_BACKWARD_ERRORS = (
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
"""Parts of PyTorch's error messages for operations that cannot be differentiated twice."""


def hessian_vector_product(
    gradients: Sequence[Tensor],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    *,
    keep_graph: bool = False,
) -> list[Tensor]:
    """``H v`` by reverse-over-reverse differentiation, at the cost of about two gradients.

    Args:
        gradients: gradients of the loss with respect to ``params``, with their graph.
        params: the parameters.
        vector: v, one tensor for each parameter, of its shape.
        keep_graph: keep the graph for another product; default False: free it.

    Returns:
        One tensor for each parameter; zeros where the gradient does not depend on it.

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
    """Leaf tensors in the graph of a loss that are not in ``own``.

    ``loss.backward()`` computes their gradients too.

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


def shares_graph(a: Tensor | GradientEdge, b: Tensor) -> bool:
    """Whether the graphs of two outputs have a node in common, besides leaves.

    Example:
        >>> p = torch.ones(2, requires_grad=True)
        >>> q = p * 2
        >>> shares_graph(q.sum(), q.square().sum()), shares_graph(q.sum(), (p * 2).sum())
        (True, False)
    """
    inner = [{n for n in _nodes(t) if not hasattr(n, "variable")} for t in (a, b)]
    return not inner[0].isdisjoint(inner[1])


def _nodes(total: Tensor | GradientEdge) -> Iterator[Any]:
    """All nodes of a graph, including those of the leaves."""
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
def explain_errors() -> Iterator[None]:
    """Replace PyTorch's errors about second derivatives by one that names alternatives.

    Raises:
        RuntimeError: an operation cannot be differentiated twice.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        message = str(error).split("\n")[0]
        if not any(part in str(error) for part in DOUBLE_BACKWARD_ERRORS):
            raise
        raise RuntimeError(
            f"adaptive_opt: this model has no second derivative here ({message[:160]}). Run its "
            "forward pass inside optimizer.forward_context() (attention), or use "
            "hvp='finite_difference' with optimizer.step(closure) (compiled models, fused or "
            "custom kernels, CTC, reentrant checkpointing), or curvature='squared_gradient'."
        ) from error


def accumulate_gradients(gradients: Mapping[Tensor, Tensor]) -> None:
    """Accumulate gradients into ``.grad`` and run hooks, as ``loss.backward()`` does.

    Hooks on the accumulation run, including the reducer of DistributedDataParallel. Hooks on the
    tensors do not: they ran when the gradients were computed.

    Args:
        gradients: the gradient of each leaf.

    Raises:
        TypeError: a gradient is sparse or complex.
    """
    check_dense(gradients.values())
    # Pass copies: a reducer writes into its input, and the graph still needs the originals.
    copies = [g.detach().clone() for g in gradients.values()]
    with without_hooks(gradients):
        torch.autograd.backward(list(gradients), copies)


@contextmanager
def without_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Context in which the hooks on some tensors do not run.

    Args:
        tensors: tensors whose hooks have already changed their gradients.
    """
    # Empty and refill PyTorch's own dict, because autograd holds a reference to it.
    hooked = [h for p in tensors if (h := getattr(p, "_backward_hooks", None))]
    kept = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, saved in zip(hooked, kept, strict=True):
            hooks.update(saved)


def release_graph(loss: Tensor) -> None:
    """Detach ``loss``, so that keeping it does not keep its graph in memory."""
    if not loss._is_view():
        loss.detach_()
