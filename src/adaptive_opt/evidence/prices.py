r"""What a step costs in seconds, from arms that took turns within one process.

With t_plain and t_refresh the seconds of a step without curvature and what a refresh adds, a step
costs t(k) = t_plain + t_refresh / k. An arm that needs 1/s of the reference's iterations wins on
seconds where t(k) < s · t_reference, so from

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
"""Of a calibration: seconds, a row for each arm and round."""


@dataclass(frozen=True)
class PriceRatio:
    """Seconds a step of an arm over those of the reference.

    Attributes:
        log: mean over rounds of the log ratio.
        error: its standard error.
        df: degrees of freedom, rounds − 1.
    """

    log: float
    error: float
    df: float

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Of the ratio."""
        half = float(stats.t.ppf(0.5 + confidence / 2, self.df)) * self.error
        return math.exp(self.log - half), math.exp(self.log + half)


def price_ratios(prices: pd.DataFrame, reference: str) -> dict[str, PriceRatio]:
    """Of every arm, paired by round; empty without the reference.

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
    """Medians over rounds: ``step``, ``plain`` and ``refresh``, in seconds."""
    own = prices[prices["arm"] == arm]
    return {name: float(own[name].median()) for name in ("step", "plain", "refresh")}


def break_even(speedup: float, reference: float, plain: float, refresh: float) -> float | None:
    """The update period from which an arm wins on seconds; None: from none.

    Args:
        speedup: in iterations, taken not to depend on k.
        reference: seconds of a step of the reference.
        plain, refresh: seconds of the arm.

    Example:
        >>> break_even(2.0, reference=1.0, plain=1.0, refresh=10.0)
        10.0
        >>> break_even(0.9, reference=1.0, plain=1.0, refresh=10.0) is None
        True
    """
    spare = speedup * reference - plain
    return None if spare <= 0 else max(1.0, refresh / spare)
