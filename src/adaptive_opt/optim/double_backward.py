"""Convolution, batch normalisation and cross-entropy with a fast second derivative.

A Hessian-vector product differentiates the backward pass of a network. PyTorch composes the
second derivative of a convolution from slices and transposes, that of batch normalisation from
some thirty reductions, and that of cross-entropy from a dozen passes over the logits. Here they
use the kernels of the first derivative, or closed forms, and take a fraction of the time. Values
are equal up to rounding. Third derivatives are not supported.

Inside :class:`FastDoubleBackward` all calls of ``conv1d``, ``conv2d``, ``conv3d``, of
``batch_norm`` in training mode and of ``cross_entropy`` with class labels use these
implementations. The optimizers' ``forward_context()`` enters it when a second derivative is due.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["FastDoubleBackward", "twice_differentiable"]

_convolution = torch.ops.aten.convolution
_convolution_backward = torch.ops.aten.convolution_backward
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward


class _Convolution(Function):
    """``y = x ∗ w`` (cross-correlation), without bias, in any number of dimensions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, geometry: tuple[Any, ...]) -> Any:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _convolution(x, w, None, *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        gx, gw = _ConvolutionBackward.apply(grads[0], x, w, ctx.geometry, wanted)
        return gx, gw, None


class _ConvolutionBackward(Function):
    """Gradients gx, bilinear in (gy, w), and gw, bilinear in (gy, x).

    For cotangents a of gx and b of gw, the derivative by gy is ``a ∗ w + x ∗ b``. Those by x and
    w are the gradients of a convolution with input a and weight b.
    """

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, w: Tensor, geometry: tuple[Any, ...], wanted: bool
    ) -> Any:
        ctx.save_for_backward(gy, x, w)
        ctx.geometry, ctx.wanted = geometry, wanted
        ctx.set_materialize_grads(False)
        gx, gw, _ = _convolution_backward(gy, x, w, None, *geometry, [wanted, True, False])
        return gx, gw

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> Any:
        gy, x, w = ctx.saved_tensors
        parts = []
        if a is not None:
            parts.append(_convolution(a, w, None, *ctx.geometry))
        if b is not None:
            parts.append(_convolution(x, b, None, *ctx.geometry))
        if not parts:
            return (None,) * 5
        through_x = ctx.wanted and b is not None
        gx, gw, _ = _convolution_backward(
            gy,
            x if a is None else a,
            w if b is None else b,
            None,
            *ctx.geometry,
            [through_x, a is not None, False],
        )
        return sum(parts[1:], parts[0]), gx, gw, None, None


class _BatchNorm(Function):
    """Batch normalisation with batch statistics, over all dimensions but the second.

    ``y = γ x̂ + β``, ``x̂ = (x − μ) r``, ``r = (σ² + ε)^(−1/2)``. Running statistics are
    updated in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        momentum: float,
        eps: float,
    ) -> Any:
        y, mean, invstd = torch.native_batch_norm(x, weight, bias, *running, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.eps, ctx.has_bias = eps, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, mean, invstd = ctx.saved_tensors
        gx, gw, gb = _BatchNormBackward.apply(grads[0], x, weight, mean, invstd, ctx.eps)
        if weight is None:
            gw = None
        return gx, gw, gb if ctx.has_bias else None, None, None, None


class _BatchNormBackward(Function):
    """Gradients of batch normalisation.

    With M(·) the mean over the n values of a channel:
    ``gx = γ r (gy − M(gy) − x̂ M(gy x̂))``, ``gγ = n M(gy x̂)``, ``gβ = n M(gy)``.
    For cotangents G of gx, a of gγ and b of gβ the derivatives are

        by gy:  γ r (G − M(G) − x̂ M(G x̂)) + a x̂ + b
        by γ:   r n s,   s = M(G gy) − M(G) M(gy) − M(G x̂) M(gy x̂)
        by x:   r (q − M(q) − x̂ (M(q x̂) + γ r s)),
                q = (a − γ r M(G x̂)) gy − γ r M(gy x̂) G

    The kernel of the first derivative computes the first term by gy and the means in it. The
    formulae result from differentiating gx and its statistics by hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        eps: float,
    ) -> Any:
        gx, gw, gb = _kernel(gy, x, weight, mean, invstd, eps)
        ctx.save_for_backward(gy, x, weight, mean, invstd, gw, gb)
        ctx.eps = eps
        return gx, gw, gb

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor | None, a: Tensor | None, b: Tensor | None) -> Any:
        gy, x, weight, mean, invstd, gw, gb = ctx.saved_tensors
        g = torch.zeros_like(x) if cotangent is None else cotangent
        n = x.numel() // x.shape[1]
        own, n_gx, n_g = _kernel(g, x, weight, mean, invstd, ctx.eps)
        scale = invstd if weight is None else weight * invstd
        m_gx, m_g, m_yx, m_y = n_gx / n, n_g / n, gw / n, gb / n
        s = _channel_sum(g * gy) / n - m_g * m_y - m_gx * m_yx
        by_gamma = torch.zeros_like(mean) if a is None else a
        p = by_gamma - scale * m_gx  # factor of gy in q
        m_q = p * m_y - scale * m_yx * m_g
        m_qx = p * m_yx - scale * m_yx * m_gx
        # x̂ = (x − μ) r adds to both results a multiple of x and a constant for each channel.
        slope = invstd * (m_qx + scale * s)
        of_x = gy * _wide(invstd * p, x)
        of_x.addcmul_(g, _wide(-invstd * scale * m_yx, x))
        of_x.addcmul_(x, _wide(-invstd * slope, x))
        of_x.add_(_wide(invstd * (slope * mean - m_q), x))
        if a is not None:
            own.addcmul_(x, _wide(a * invstd, x))
        constant = torch.zeros_like(mean) if b is None else b
        if a is not None:
            constant = constant - a * invstd * mean
        own.add_(_wide(constant, x))
        of_weight = None if weight is None else invstd * n * s
        return own, of_x, of_weight, None, None, None


class _CrossEntropy(Function):
    """``Σ_i w_i (logΣexp(z_i) − z_i[y_i])`` for logits z ``[n, classes]``, labels y ``[n, 1]``.

    The weights w ``[n, 1]`` are 0 for ignored rows, and 1 / (number of other rows) else.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor) -> Any:
        log_p = torch.log_softmax(logits, 1)
        ctx.save_for_backward(logits, log_p, targets, weights)
        return -(log_p.gather(1, targets) * weights).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _CrossEntropyBackward.apply(grads[0], *ctx.saved_tensors), None, None


class _CrossEntropyBackward(Function):
    """``gz = g w (p − e_y)`` with p the softmax of z.

    For a cotangent a of gz the derivative by g is ``Σ_i w_i (a·p − a_y)``, and that by z is
    ``g w p (a − a·p)``, with dot products of rows.
    """

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, logits: Tensor, log_p: Tensor, targets: Tensor, weights: Tensor
    ) -> Any:
        del logits  # an input only because backward returns its derivative
        p = log_p.exp()
        ctx.save_for_backward(g, p, targets, weights)
        scale = g * weights
        return (p * scale).scatter_add_(1, targets, -scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> Any:
        g, p, targets, weights = ctx.saved_tensors
        of_z = p * a
        dots = of_z.sum(1, keepdim=True)
        of_g = ((dots - a.gather(1, targets)) * weights).sum()
        of_z.addcmul_(p, -dots).mul_(g * weights)
        return of_g, of_z, None, None, None


def _kernel(
    gy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # A missing weight is replaced by ones, so that the kernel also returns the two sums.
    weight = torch.ones_like(mean) if weight is None else weight
    gx, gw, gb = _batch_norm_backward(
        gy, x, weight, None, None, mean, invstd, True, eps, [True, True, True]
    )
    return gx, gw, gb


def _wide(channel: Tensor, like: Tensor) -> Tensor:
    """Reshape ``[C]`` to ``[1, C, 1, …]``."""
    return channel.view(1, -1, *[1] * (like.ndim - 2))


def _channel_sum(t: Tensor) -> Tensor:
    """Sum over all but the second dimension; fast for channels-last tensors too."""
    if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last):
        return t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]).sum(0)
    return t.sum([d for d in range(t.ndim) if d != 1])


class FastDoubleBackward(TorchFunctionMode):
    """Context manager that replaces torch's operations by those of this module.

    Example:
        >>> x = torch.randn(2, 1, 5, 5, dtype=torch.float64)
        >>> w = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
        >>> def product():
        ...     loss = torch.nn.functional.conv2d(x, w).square().sum()
        ...     (g,) = torch.autograd.grad(loss, w, create_graph=True)
        ...     return torch.autograd.grad(g, w, torch.ones_like(w))[0]
        >>> plain = product()
        >>> with FastDoubleBackward():
        ...     fast = product()
        >>> torch.allclose(plain, fast)
        True
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = _REPLACEMENTS.get(func)
        # torch.func's transforms (vmap over an ensemble) need torch's operations.
        if replacement is not None and torch._C._functorch.peek_interpreter_stack() is None:
            result = replacement(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


def _fast_convolution(dimensions: int) -> Any:
    def convolve(
        input: Tensor,  # noqa: A002 - same name as in torch
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or input.ndim != dimensions + 2 or not weight.requires_grad:
            return None  # use torch's operation
        each = [_tuple(v, dimensions) for v in (stride, padding, dilation)]
        geometry = (*each, False, [0] * dimensions, groups)
        input, weight, bias = (_autocast(t) for t in (input, weight, bias))  # noqa: A001
        y: Tensor = _Convolution.apply(input, weight, geometry)
        return y if bias is None else y + _wide(bias, y)

    return convolve


def _autocast(tensor: Any) -> Any:
    """Cast as autocast would, because backward passes run outside autocast."""
    if tensor is None or tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor
    device = tensor.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def _tuple(value: Any, dimensions: int) -> list[int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * dimensions if len(values) == 1 else values


def _fast_batch_norm(
    input: Tensor,  # noqa: A002 - same name as in torch
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if not training or input.numel() == input.shape[1]:
        return None  # use torch's operation, which raises an error for one value per channel
    running = (running_mean, running_var)
    y: Tensor = _BatchNorm.apply(input, weight, bias, running, momentum, eps)
    return y


def _fast_cross_entropy(
    input: Tensor,  # noqa: A002 - same name as in torch
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    classes = input.ndim == 2 and target.ndim == 1 and not target.is_floating_point()
    exact = input.dtype in (torch.float32, torch.float64)
    changed = (weight, size_average, reduce) != (None, None, None) or label_smoothing
    if not (classes and exact) or changed or reduction != "mean":
        return None  # use torch's operation
    kept = (target != ignore_index)[:, None]
    weights = kept.to(input.dtype) / kept.sum()
    y: Tensor = _CrossEntropy.apply(input, torch.where(kept, target[:, None], 0), weights)
    return y


_REPLACEMENTS = {
    torch.conv1d: _fast_convolution(1),
    torch.conv2d: _fast_convolution(2),
    torch.conv3d: _fast_convolution(3),
    torch.nn.functional.batch_norm: _fast_batch_norm,
    torch.nn.functional.cross_entropy: _fast_cross_entropy,
}


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Context for a forward pass: math attention kernel and :class:`FastDoubleBackward`."""
    with sdpa_kernel(SDPBackend.MATH), FastDoubleBackward():
        yield
