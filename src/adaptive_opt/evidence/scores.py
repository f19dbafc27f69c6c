"""Over tasks: performance profiles and the integrated score; and the price of curvature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["CAVEAT", "break_even_period", "integrated_scores", "performance_profiles"]

LARGEST_RATIO = 4.0
"""Of a profile's axis, as in AlgoPerf."""

CAVEAT = (
    "With so few tasks a profile moves in steps of one task, and adding or removing an arm changes "
    "the scores of the others: read them as a summary, not as a measurement."
)


def performance_profiles(times: pd.DataFrame, largest: float = LARGEST_RATIO) -> pd.DataFrame:
    """Share of the tasks that an arm solves within a factor of the fastest arm on each.

    At every τ where a profile moves (Dolan & Moré, 2002),

        ρ(a, τ) = |{tasks: t(a, task) ≤ τ · min over arms t}| / |tasks|.

    Args:
        times: tasks × arms, infinite where an arm never arrives. A task that no arm solves
            counts against all.
        largest: end of the axis.

    Returns:
        Columns ``ratio``, ``arm``, ``share``.

    Example:
        >>> times = pd.DataFrame({"a": [1.0, 1.0], "b": [2.0, np.inf]})
        >>> profiles = performance_profiles(times)
        >>> profiles[profiles["arm"] == "b"].round(2).values.tolist()
        [[1.0, 'b', 0.0], [2.0, 'b', 0.5], [4.0, 'b', 0.5]]
    """
    ratios = _ratios(times)
    finite = ratios.to_numpy()
    at = np.unique(np.concatenate([[1.0, largest], finite[finite <= largest]]))
    rows = [
        {"ratio": float(r), "arm": str(arm), "share": float((ratios[arm] <= r).mean())}
        for arm in ratios
        for r in at
    ]
    return pd.DataFrame(rows, columns=["ratio", "arm", "share"])


def integrated_scores(times: pd.DataFrame, largest: float = LARGEST_RATIO) -> dict[str, float]:
    """Mean height of an arm's profile, 1/(r − 1) ∫₁ʳ ρ(a, τ) dτ, from 0 to 1.

    The benchmark score of AlgoPerf (Dahl et al., 2023), on a linear axis up to r = 4.

    Example:
        >>> integrated_scores(pd.DataFrame({"a": [1.0, 1.0], "b": [2.0, np.inf]}))
        {'a': 1.0, 'b': 0.3333333333333333}
    """
    ratios = _ratios(times).clip(lower=1.0, upper=largest)
    return {str(arm): float(((largest - ratios[arm]) / (largest - 1)).mean()) for arm in ratios}


def _ratios(times: pd.DataFrame) -> pd.DataFrame:
    best = times.min(axis=1)
    solved = np.isfinite(best)
    return times.div(best.where(solved, 1.0), axis=0).where(np.isfinite(times), np.inf)


def break_even_period(
    *,
    iterations: float,
    seconds: float,
    seconds_without: float,
    update_period: int,
    baseline_seconds: float,
) -> Mapping[str, Any]:
    """From which update period k on a second-order arm is faster on the clock.

    An iteration takes t(k) = t_first + t_curvature / k. With both measured, at the period that
    the arm was trained with and without any curvature, and the number of iterations taken not
    to depend on k (which is why the number holds near the measured k only), the arm reaches the
    target in N · t(k) seconds, less than the baseline's from

        k* = t_curvature / (baseline's seconds / N − t_first).

    Args:
        iterations: N to the target.
        seconds, seconds_without: an iteration with curvature every k, and with none.
        update_period: k as trained.
        baseline_seconds: of the best first-order arm to the same target; infinite: never.

    Returns:
        ``first`` and ``curvature`` in seconds, and ``period``: 1 where every k wins, infinite
        where none does, missing where the arm never arrives.

    Example:
        >>> found = break_even_period(iterations=100, seconds=2.0, seconds_without=1.0,
        ...                           update_period=10, baseline_seconds=150.0)
        >>> found["curvature"], found["period"]
        (10.0, 20.0)
    """
    curvature = update_period * max(0.0, seconds - seconds_without)
    period = math.nan
    if math.isfinite(iterations) and iterations > 0:
        spare = baseline_seconds / iterations - seconds_without
        period = math.inf if spare <= 0 else max(1.0, curvature / spare)
    return {"first": seconds_without, "curvature": curvature, "period": period}
