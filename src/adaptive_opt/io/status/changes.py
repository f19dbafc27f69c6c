"""Why a result is stale: the differences between two records of its inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["changes"]

DIGESTS = ("code", "data")
"""Keys whose values are hashes, which are not printed."""


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the keys that differ, with their values; empty if nothing was recorded.

    Example:
        >>> changes({"lr": 0.1, "code": "a1"}, {"lr": 0.2, "code": "b2"})
        'lr: 0.1, now 0.2, code'
    """
    now = json.loads(json.dumps(now))
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)] if then else []
    return ", ".join(
        key if key in DIGESTS else f"{key}: {_short(then.get(key))}, now {_short(now.get(key))}"
        for key in keys
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
