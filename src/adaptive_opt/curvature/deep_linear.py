r"""Closed forms of loss, gradient and Hessian for deep linear networks.

The network x ↦ W_L ⋯ W_1 x with exactly linear targets y = A x has the residual matrix
E = W_L ⋯ W_1 − A. Its mean squared error over a batch X (rows are samples) depends on the batch
only through the Gram matrix S = XᵀX / n:

    q = mean((X W_1ᵀ ⋯ W_Lᵀ − X Aᵀ)²) = tr(E S Eᵀ) / d_y.

Training is fast because the d_x² numbers of S replace a batch of n samples.
With P_i = W_L ⋯ W_{i+1} and Q_i = W_{i−1} ⋯ W_1 (empty products are identities),

    ∂q/∂W_i            = (2/d_y) P_iᵀ E S Q_iᵀ
    ∂²q/∂W_i[a,b]∂W_j[c,d], i ≤ j
                       = (2/d_y) (P_iᵀP_j)[a,c] (Q_i S Q_jᵀ)[b,d]
                       + (2/d_y) (P_jᵀ E S Q_iᵀ)[c,b] (W_{j−1} ⋯ W_{i+1})[d,a]    if i < j.

The first line is the Gauss–Newton part. For i = j the second line is zero, so the Hessian and
the Gauss–Newton matrix have the same diagonal. Losses: ``mse`` is q, ``rmse`` is √q with

    ∇√q = ∇q / (2√q),    ∇²√q = ∇²q / (2√q) − ∇q ∇qᵀ / (4 q^{3/2}).

Shapes: ``weights[i]`` is ``[..., d_i, d_{i−1}]``, A is ``[d_y, d_x]``, S is ``[..., d_x, d_x]``;
the leading dimensions are members. Parameters are ordered layer by layer, row by row.
Source: elementary; tested against automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

__all__ = [
    "LOSSES",
    "empirical_fisher",
    "gauss_newton_factor",
    "gradient",
    "hessian",
    "hessian_diagonal",
    "loss",
    "loss_and_gradient",
]

LOSSES = ("rmse", "mse")


def _matmul(weights: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """``bmm`` for an ensemble, because matmul's dispatch costs as much as a small product."""
    return torch.bmm if weights[0].ndim == 3 else torch.matmul


def _product(matrices: Sequence[Tensor], like: Tensor) -> Tensor:
    """``matrices[-1] ⋯ matrices[0]``; for no matrices, an identity of ``like``'s last size."""
    if not matrices:
        return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    return reduce(lambda done, w: w @ done, matrices)


def _residual(weights: Sequence[Tensor], target: Tensor) -> Tensor:
    if len(weights) == 2 and weights[0].ndim == 3:
        return torch.baddbmm(
            target.expand(len(weights[0]), -1, -1), weights[1], weights[0], beta=-1
        )
    return _product(weights, weights[0]) - target


def _floor(q: Tensor) -> Tensor:
    """Bound q from below, because √q has no derivative at zero."""
    return q.clamp_min(torch.finfo(q.dtype).tiny * 4)


def loss(weights: Sequence[Tensor], target: Tensor, gram: Tensor, kind: str) -> Tensor:
    """Loss of every member, ``[...]``, differentiable by autograd.

    Args:
        weights: W_1, …, W_L.
        target: A.
        gram: S.
        kind: ``mse`` or ``rmse``.

    Example:
        >>> eye = torch.eye(2)
        >>> loss([eye, 2 * eye], eye, eye, "mse")  # E = I, q = tr(I) / 2
        tensor(1.)
    """
    e = _residual(weights, target)
    q = (e * (e @ gram)).sum((-2, -1)) / target.shape[0]
    return q if kind == "mse" else _floor(q).sqrt()


def _mse_gradient(weights: Sequence[Tensor], residual_gram: Tensor) -> list[Tensor]:
    """``P_iᵀ R Q_iᵀ`` for all layers, with 2(L−1) products; ``residual_gram`` is R = c E S."""
    mm = _matmul(weights)
    suffixes = [residual_gram]
    for w in reversed(weights[1:]):
        suffixes.append(mm(w.mT, suffixes[-1]))
    grads = [suffixes.pop()]
    prefix = weights[0]
    for w in weights[1:]:
        grads.append(mm(suffixes.pop(), prefix.mT))
        if suffixes:
            prefix = mm(w, prefix)
    return grads


@torch.no_grad()
def loss_and_gradient(
    weights: Sequence[Tensor], target: Tensor, gram: Tensor, kind: str
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient in closed form, in a third of autograd's time; see :func:`loss`."""
    e = _residual(weights, target)
    r = _matmul(weights)(e, gram) if gram.ndim == e.ndim else e @ gram
    q = (e * r).sum((-2, -1)).div_(target.shape[0])
    if kind == "mse":
        return q, _mse_gradient(weights, r.mul_(2 / target.shape[0]))
    root = _floor(q).sqrt_()
    r.mul_((root * target.shape[0]).reciprocal_()[..., None, None])
    return root, _mse_gradient(weights, r)


def gradient(weights: Sequence[Tensor], target: Tensor, gram: Tensor, kind: str) -> Tensor:
    """Gradient by all parameters as one vector, ``[..., n]``; see :func:`loss`."""
    _, grads = loss_and_gradient(weights, target, gram, kind)
    return torch.cat([g.flatten(-2) for g in grads], dim=-1)


@torch.no_grad()
def hessian(
    weights: Sequence[Tensor],
    target: Tensor,
    gram: Tensor,
    kind: str,
    *,
    gauss_newton: bool = False,
) -> Tensor:
    """Exact Hessian, ``[..., n, n]``. That of RMSE does not exist at q = 0.

    Args:
        weights, target, gram, kind: see :func:`loss`.
        gauss_newton: the Gauss–Newton matrix instead, which leaves out the second derivatives of
            the product W_L ⋯ W_1.
    """
    layers, c = len(weights), 2 / target.shape[0]
    residual_gram = _residual(weights, target) @ gram
    lead = residual_gram.shape[:-2]
    sizes = [w.shape[-2] * w.shape[-1] for w in weights]
    offsets = [sum(sizes[:i]) for i in range(layers + 1)]
    h = residual_gram.new_empty(*lead, offsets[-1], offsets[-1])
    left = [_product(weights[i + 1 :], weights[-1].mT).expand(*lead, -1, -1) for i in range(layers)]
    right = [_product(weights[:i], weights[0]).expand(*lead, -1, -1) for i in range(layers)]
    for i in range(layers):
        for j in range(i, layers):
            outer = c * left[i].mT @ left[j]
            inner = right[i] @ gram @ right[j].mT
            rows, columns = slice(*offsets[i : i + 2]), slice(*offsets[j : j + 2])
            # View the block with indices a, b, c, d, to write it in place.
            block = h[..., rows, columns].unflatten(-1, weights[j].shape[-2:])
            block = block.unflatten(-3, weights[i].shape[-2:])
            torch.mul(outer[..., :, None, :, None], inner[..., None, :, None, :], out=block)
            if i < j and not gauss_newton:
                cross = c * left[j].mT @ residual_gram @ right[i].mT
                between = _product(weights[i + 1 : j], weights[i].mT).expand(*lead, -1, -1)
                block.addcmul_(cross.mT[..., None, :, :, None], between.mT[..., :, None, None, :])
            if i < j:
                h[..., columns, rows] = h[..., rows, columns].mT
    if kind == "rmse":
        root = loss(weights, target, gram, "rmse")[..., None, None]
        g = gradient(weights, target, gram, "rmse")[..., None]
        # With g the gradient of the root itself: ∇q ∇qᵀ / (4 q^{3/2}) = g gᵀ / √q.
        h.div_(2 * root).sub_((g / root) * g.mT)
    return h


@torch.no_grad()
def hessian_diagonal(
    weights: Sequence[Tensor], target: Tensor, gram: Tensor, kind: str
) -> list[Tensor]:
    """Exact diagonal, shaped like the weights, without the full Hessian; see :func:`loss`."""
    layers, c = len(weights), 2 / target.shape[0]
    diagonal = []
    for i in range(layers):
        left, right = _product(weights[i + 1 :], weights[-1].mT), _product(weights[:i], weights[0])
        outer = c * left.square().sum(-2)
        inner = torch.linalg.vecdot(right @ gram, right)
        diagonal.append((outer[..., :, None] * inner[..., None, :]).expand_as(weights[i]))
    if kind == "mse":
        return diagonal
    root, grads = loss_and_gradient(weights, target, gram, "rmse")
    root = root[..., None, None]
    return [d / (2 * root) - g * g / root for d, g in zip(diagonal, grads, strict=True)]


@torch.no_grad()
def empirical_fisher(
    weights: Sequence[Tensor], target: Tensor, inputs: Tensor, kind: str, samples: int
) -> list[Tensor]:
    r"""Mean of the squared gradients of the samples, shaped like the weights.

    With A_i = X Eᵀ P_i and B_i = X Q_iᵀ, sample s of ``mse`` has the gradient
    (2/d_y) A_i[s] ⊗ B_i[s], so the mean is (4 / (n d_y²)) (A_i²)ᵀ (B_i²). The root mean squared
    error of a batch is no mean over samples. The gradient of a sample is then ∇q_s / (2√q); the
    mean of these is the gradient of the batch.

    Args:
        weights, target, kind: see :func:`loss`.
        inputs: X, ``[..., rows, d_x]``; rows of zeros add nothing.
        samples: n, the number of samples without rows of zeros.
    """
    e = _residual(weights, target)
    output = inputs @ e.mT
    scale = 4 / (samples * target.shape[0] ** 2)
    found = []
    for i in range(len(weights)):
        left, right = _product(weights[i + 1 :], weights[-1].mT), _product(weights[:i], weights[0])
        a, b = (output @ left).square_(), (inputs @ right.mT).square_()
        found.append((a.mT @ b).mul_(scale))
    if kind == "mse":
        return found
    q = _floor(output.square_().sum((-2, -1)) / (samples * target.shape[0]))
    return [f.div_(4 * q[..., None, None]) for f in found]


@torch.no_grad()
def gauss_newton_factor(
    weights: Sequence[Tensor], target: Tensor, gram: Tensor, kind: str, noise: Tensor
) -> Tensor:
    r"""Random matrix C such that JᵀC has the Gauss–Newton matrix as its covariance.

    With J the Jacobian of the product W_L ⋯ W_1, E[(JᵀC)(JᵀC)ᵀ] = G, the Gauss–Newton matrix of
    the loss. From Gaussian noise N and S = L Lᵀ:

        mse:   C = √(2/d_y) N Lᵀ
        rmse:  C = (N Lᵀ − E S ⟨E, N Lᵀ⟩ / (d_y q)) / √(d_y √q)

    The second line projects out the direction of the residual, along which √q has no curvature.

    Args:
        weights, target, gram, kind: see :func:`loss`.
        noise: N, ``[..., d_y, d_x]`` of independent standard Gaussian numbers.

    Returns:
        C, ``[..., d_y, d_x]``.
    """
    # Regularise, because a batch smaller than d_x has a singular S.
    jitter = 32 * torch.finfo(gram.dtype).eps * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    lower = torch.linalg.cholesky_ex(gram + jitter[..., None, None] * eye).L
    c: Tensor = noise @ lower.mT
    if kind == "mse":
        return c.mul_((2 / target.shape[0]) ** 0.5)
    e = _residual(weights, target)
    r = e @ gram
    q = _floor((e * r).sum((-2, -1), keepdim=True) / target.shape[0])
    c -= r * ((e * c).sum((-2, -1), keepdim=True) / (target.shape[0] * q))
    return c.div_((target.shape[0] * q.sqrt()).sqrt_())
