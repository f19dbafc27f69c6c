"""How kernels are chosen where second derivatives, or several members at once, need it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable_kernels", "matrix_units", "written_out_encoder"]


@contextmanager
def matrix_units(precision: str) -> Iterator[None]:
    """How CUDA multiplies 32-bit numbers, convolutions included, whose default is TF32.

    Args:
        precision: ``ieee`` or ``tf32``.
    """
    backends: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [b.fp32_precision for b in backends]
    try:
        for b in backends:
            b.fp32_precision = precision
        yield
    finally:
        for b, kept in zip(backends, before, strict=True):
            b.fp32_precision = kept


@contextmanager
def written_out_encoder() -> Iterator[None]:
    """Without the fused inference kernel of Transformer layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Attention and encoder by their formulae, 32-bit numbers multiplied as such."""
    with ExitStack() as stack:
        stack.enter_context(matrix_units("ieee"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(written_out_encoder())
        yield
