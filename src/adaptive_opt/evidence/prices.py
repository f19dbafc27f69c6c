r"""Cost per step in seconds, from a calibration in which all arms take turns in one process.

Let t_plain be the seconds of a step without curvature, t_refresh the additional seconds of a
curvature refresh, and k the update period. A step costs t(k) = t_plain + t_refresh / k. An arm that
needs 1/s of the reference's iterations is faster in seconds if t(k) < s · t_reference, so from

    k* = t_refresh / (s · t_reference − t_plain).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

__all__ = ["PRICE_COLUMNS", "PriceRatio", "break_even", "price_of", "price_ratios"]

PRICE_COLUMNS = ("task", "arm", "round", "plain", "refresh", "step")
"""Columns of a calibration, in seconds; one row for each arm and round."""


@dataclass(frozen=True)
class PriceRatio:
    """Cost per step of an arm relative to the reference.

    Attributes:
        log: mean over rounds of the log ratio.
        error: standard error of ``log``.
        df: degrees of freedom, rounds − 1.
    """

    log: float
    error: float
    df: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the ratio."""
        half = float(stats.t.ppf(0.5 + confidence / 2, self.df)) * self.error
        return math.exp(self.log - half), math.exp(self.log + half)


def price_ratios(prices: pd.DataFrame, reference: str) -> dict[str, PriceRatio]:
    """Relative cost of every arm, paired by round; empty without the reference.

    Example:
        >>> rows = [("t", a, r, 1.0, 0.0, s) for r in range(3) for a, s in (("a", 1.0), ("b", 2.0))]
        >>> found = price_ratios(pd.DataFrame(rows, columns=list(PRICE_COLUMNS)), "a")
        >>> round(math.exp(found["b"].log), 6), found["b"].error
        (2.0, 0.0)
    """
    wide = np.log(prices.pivot(index="round", columns="arm", values="step"))
    if reference not in wide or len(wide) < 2:
        return {}
    found = {}
    for arm in wide:
        logs = (wide[arm] - wide[reference]).dropna()
        error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
        found[str(arm)] = PriceRatio(float(logs.mean()), error, len(logs) - 1)
    return found


def price_of(prices: pd.DataFrame, arm: str) -> Mapping[str, float]:
    """Medians over rounds of ``step``, ``plain`` and ``refresh``, in seconds."""
    own = prices[prices["arm"] == arm]
    return {name: float(own[name].median()) for name in ("step", "plain", "refresh")}


def break_even(speedup: float, reference: float, plain: float, refresh: float) -> float | None:
    """Update period from which an arm is faster in seconds; None if there is none.

    Args:
        speedup: speed-up in iterations, assumed to be independent of the update period.
        reference: seconds per step of the reference.
        plain: seconds per step of the arm without curvature.
        refresh: additional seconds of a curvature refresh.

    Example:
        >>> break_even(2.0, reference=1.0, plain=1.0, refresh=10.0)
        10.0
        >>> break_even(0.9, reference=1.0, plain=1.0, refresh=10.0) is None
        True
    """
    spare = speedup * reference - plain
    return None if spare <= 0 else max(1.0, refresh / spare)
