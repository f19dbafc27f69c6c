"""Node functions with some arguments bound when the pipeline is created."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

__all__ = ["bound"]


def bound(function: Callable[..., Any], *first: Any) -> Any:
    """Bind a function's first arguments; keep its name and source, which Kedro-Viz shows.

    Example:
        >>> bound(max, 3).__name__, bound(max, 3)(1)
        ('max', 3)
    """
    return update_wrapper(partial(function, *first), function)
