"""What differs between two records of what a result was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["changes"]


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Keys that differ, with their values where they are short; empty where nothing is on record.

    Example:
        >>> changes({"lr": 0.1, "code": "a1"}, {"lr": 0.2, "code": "b2"})
        'lr: 0.1, now 0.2, code'
    """
    now = json.loads(json.dumps(now))
    keys = [k for k in {**then, **now} if then.get(k) != now.get(k)]
    return ", ".join(_change(k, then.get(k), now.get(k)) for k in keys) if then else ""


def _change(key: str, then: Any, now: Any) -> str:
    if key in ("code", "data"):  # digests say nothing
        return key
    return f"{key}: {_short(then)}, now {_short(now)}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
