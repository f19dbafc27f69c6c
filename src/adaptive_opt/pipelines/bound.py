"""Functions of nodes with what is known of them when a pipeline is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

__all__ = ["bound"]


def bound(function: Callable[..., Any], *first: Any) -> Any:
    """A node's function with its first arguments given, under its own name and with its source.

    Example:
        >>> bound(max, 3).__name__, bound(max, 3)(1)
        ('max', 3)
    """
    return update_wrapper(partial(function, *first), function)
