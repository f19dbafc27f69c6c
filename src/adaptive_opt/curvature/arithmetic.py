"""Context managers that select kernels for second derivatives and for ensembles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable_kernels", "matrix_units", "written_out_encoder"]


@contextmanager
def matrix_units(precision: str) -> Iterator[None]:
    """Set the precision of CUDA's 32-bit matrix products and convolutions.

    Args:
        precision: ``ieee``, or ``tf32`` (CUDA's default for convolutions).
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
    """Disable the fused inference kernel of Transformer layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Select kernels with second derivatives: math attention, no fused encoder, no TF32."""
    with ExitStack() as stack:
        stack.enter_context(matrix_units("ieee"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(written_out_encoder())
        yield
