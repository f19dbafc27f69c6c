r"""The ladder upwards: how much of the whole matrix's speed-up the diagonal has, at what price.

For the reference r, a diagonal arm d and a whole matrix w, let x be the mean log speed over
searches (:mod:`adaptive_opt.evidence.statistics`). The share of the diagonal is the ratio of two
log speed-ups over the reference,

    s = (x_d − x_r) / (x_w − x_r).

Logarithms add up where speed-ups multiply: a speed-up of 2 is half of one of 4. The interval is
that of Fieller (*Some problems in interval estimation*, 1954). With X the numerator and Y the
denominator, it has all s for which X − s Y does not differ from zero,

    (X − s Y)² ≤ t² (V_X − 2 s C + s² V_Y),    C = Var(x_r),

with the moderated variances of the verdict. A bootstrap over three searches would be too narrow
(docs/comparison.md). The interval exists only if that of Y excludes zero. Otherwise the whole
matrix gives no proven speed-up to have a share of. There is no share either if a run is beyond the
trained lengths, because its speed is only a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from scipy import stats

from adaptive_opt.study import get_arm

from .answer import CLOCK_WORDS, speedup_words
from .judge import Judge
from .schema import ArmVerdict, TaskVerdict
from .statistics import compare

__all__ = ["PAIRS", "Point", "Share", "frontier", "paragraph", "points"]
__all__ += ["ratio_interval", "read_shares", "share_table", "shares"]

PAIRS = (
    ("sadh_diagonal", "sadh_whole"),
    ("sadh_layers", "sadh_whole"),
    ("sadh", "sadh_whole"),
    ("ssdh", "sadh_whole"),
    ("sophia_g", "sadh_whole_gauss_newton"),
)
"""Arms, and the whole matrices that they are compared with. The first pair differs in nothing but
the rank of the matrix."""

BEYOND = "runs are beyond the trained lengths, so only bounds on their speed are known"
NO_GAIN = "the whole matrix has no proven speed-up over the reference"


@dataclass(frozen=True)
class Share:
    """Share of a whole matrix's log speed-up that another arm has, on one clock.

    Attributes:
        task, arm, whole, clock: names.
        share: s; None without one.
        low, high: ends of its interval; None without one.
        reason: why there is no share or no interval; empty if there is.
    """

    task: str
    arm: str
    whole: str
    clock: str
    share: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def shares(judge: Judge) -> list[Share]:
    """All shares of a task, by training loss, in iterations and in seconds.

    Args:
        judge: has judged the task, or can.
    """
    comparison, reference = judge.comparisons.get("train_loss"), judge.reference
    if comparison is None or reference is None:
        return []
    found = []
    for arm, whole in PAIRS:
        if not {arm, whole} <= {*comparison.groups}:
            continue
        for clock in ("iteration", "device_seconds"):
            if clock == "device_seconds" and not {arm, whole} <= {*judge.ratios}:
                continue
            named = Share(judge.data.task, arm, whole, clock)
            if any(any(comparison.speeds[a].bounded) for a in (arm, whole, reference)):
                found.append(replace(named, reason=BEYOND))
            else:
                found.append(_measured(judge, named))
    return found


def _measured(judge: Judge, named: Share) -> Share:
    """The share of one pair, from speeds without bounds."""
    groups = judge.comparisons["train_loss"].groups
    base = groups[str(judge.reference)]
    gains = []
    for arm in (named.arm, named.whole):
        gain = compare(groups[arm], base)
        price = judge.ratios.get(arm) if named.clock == "device_seconds" else None
        if price is not None:
            gain = gain.shifted(-price.log, price.error, price.df)
        gains.append(gain)
    own, whole = gains
    t = float(stats.t.ppf(0.5 + judge.settings["confidence"] / 2, min(own.df, whole.df)))
    errors = own.error**2, whole.error**2
    interval = ratio_interval(own.estimate, whole.estimate, *errors, base.variance_of_mean, t)
    if interval is None:
        return replace(named, reason=NO_GAIN)
    share = own.estimate / whole.estimate
    return replace(named, share=share, low=interval[0], high=interval[1])


def ratio_interval(
    x: float, y: float, variance_x: float, variance_y: float, covariance: float, t: float
) -> tuple[float, float] | None:
    """Fieller's interval of x / y; None if the interval of y includes zero.

    Args:
        x, y: estimates.
        variance_x, variance_y, covariance: squared standard errors, and their covariance.
        t: quantile of Student's t.

    Example:
        >>> ratio_interval(1.0, 2.0, 0.0, 0.0, 0.0, 2.0)
        (0.5, 0.5)
        >>> ratio_interval(1.0, 2.0, 0.0, 1.5, 0.0, 2.0) is None
        True
    """
    a = y * y - t * t * variance_y
    if not a > 0 or not math.isfinite(variance_x):
        return None
    b = x * y - t * t * covariance
    root = math.sqrt(max(0.0, b * b - a * (x * x - t * t * variance_x)))
    return (b - root) / a, (b + root) / a


def share_table(found: Sequence[Share]) -> pd.DataFrame:
    """One row for each share, with the fields of :class:`Share`."""
    return pd.DataFrame([vars(s) for s in found], columns=list(Share.__dataclass_fields__))


def read_shares(table: pd.DataFrame) -> list[Share]:
    """Inverse of :func:`share_table`, also after CSV, which has NaN for None."""
    found = []
    for _, row in table.iterrows():
        task, arm, whole, clock = (str(row[n]) for n in ("task", "arm", "whole", "clock"))
        share, low, high = (
            None if pd.isna(row[n]) else float(row[n]) for n in ("share", "low", "high")
        )
        reason = "" if pd.isna(row["reason"]) else str(row["reason"])
        found.append(Share(task, arm, whole, clock, share, low, high, reason))
    return found


@dataclass(frozen=True)
class Point:
    """Speed-up and price of an arm; ends are None where they are unknown.

    Attributes:
        arm, label: names.
        price, price_low, price_high: seconds of a step, relative to the reference.
        speedup, low, high: speed-up over the reference.
        bound: whether most runs are beyond the trained lengths.
    """

    arm: str
    label: str
    price: float
    price_low: float
    price_high: float
    speedup: float
    low: float | None
    high: float | None
    bound: bool = False


def points(task: TaskVerdict, clock: str = "iteration") -> list[Point]:
    """Speed-up and price of every arm that has both; the reference is at (1, 1)."""
    found = []
    for arm in task.arms:
        if arm.arm == task.reference and arm.price is not None:
            found.append(Point(arm.arm, arm.label, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
        elif (point := _point(arm, clock)) is not None:
            found.append(point)
    return found


def _point(arm: ArmVerdict, clock: str) -> Point | None:
    own, price = arm.speedup(clock), arm.price
    if own is None or price is None or arm.failed:
        return None
    ends = (price.ratio, price.low, price.high)
    bound = own.bound in ("<", ">")
    return Point(arm.arm, arm.label, *ends, own.ratio, own.low, own.high, bound)


def frontier(found: Sequence[Point]) -> list[Point]:
    """The Pareto frontier: points that no other one with a price as low exceeds, by price.

    Example:
        >>> rows = [("a", 1.0, 1.0), ("b", 2.0, 3.0), ("c", 3.0, 2.0)]
        >>> made = [Point(n, n, p, p, p, s, s, s) for n, p, s in rows]
        >>> [point.arm for point in frontier(made)]
        ['a', 'b']
    """
    kept: list[Point] = []
    for point in sorted(found, key=lambda p: (p.price, -p.speedup)):
        if not kept or point.speedup > kept[-1].speedup:
            kept.append(point)
    return kept


def paragraph(task: TaskVerdict, found: Sequence[Share]) -> str:
    """Say in plain words what more information gives on a task, and which arms are worth it.

    Args:
        task: verdict on the task.
        found: shares of all tasks.
    """
    sentences = [
        sentence
        for pair in (PAIRS[0], PAIRS[-1])
        for s in found
        if s.task == task.task and (s.arm, s.whole) == pair
        for sentence in [_share_sentence(s)]
    ]
    for clock, words in CLOCK_WORDS.items():
        best = frontier(points(task, clock))
        if clock == "gradient_equivalents" or not best:
            continue
        listed = "; ".join(_point_words(task, p, clock) for p in best)
        sentences.append(f"In {words}, no other arm with as cheap a step is faster than: {listed}.")
    if not sentences:
        return f"{task.label}: nothing to compare, because no arm has both a speed-up and a price."
    return f"{task.label}: {' '.join(sentences)}"


def _share_sentence(s: Share) -> str:
    arm, whole = get_arm(s.arm).label, get_arm(s.whole).label
    clock = CLOCK_WORDS[s.clock]
    if s.share is None:
        return f"The share of {whole} that {arm} has in {clock}: none, because {s.reason}."
    low, high = (f"{100 * v:.0f}" for v in (s.low or 0.0, s.high or 0.0))
    return (
        f"In {clock}, {arm} gets {100 * s.share:.0f} % ({low} to {high} %) of what {whole} would "
        "give, in log speed-up over the reference."
    )


def _point_words(task: TaskVerdict, point: Point, clock: str) -> str:
    arm = task.arm(point.arm)
    own = arm.speedup(clock) if arm is not None else None
    words = "the reference" if own is None else speedup_words(own)
    return f"{point.label}, {words}, at {point.price:.2f} times the reference's seconds a step"
