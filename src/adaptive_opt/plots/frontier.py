"""Speed-up against the price of a step, with the Pareto frontier."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_opt.evidence.answer import CLOCK_WORDS
from adaptive_opt.evidence.schema import Verdict
from adaptive_opt.evidence.upward import Point, frontier, points

from .colours import arm_style
from .figure import Figure, Line, Panel

__all__ = ["frontier_figure"]


def frontier_figure(verdict: Verdict, paragraphs: Sequence[str] = ()) -> Figure:
    """One panel for each task and clock (iterations, seconds), one point for each arm.

    Args:
        verdict: record with the tasks to draw.
        paragraphs: sentences on the tasks, for the caption.
    """
    panels = []
    for task in verdict.tasks:
        for clock in ("iteration", "device_seconds"):
            found = points(task, clock)
            lines = [_frontier(frontier(found))] if found else []
            lines += [line for point in found for line in _drawn(point)]
            panels.append(
                Panel(
                    task.label,
                    lines,
                    f"speed-up in {CLOCK_WORDS[clock]}",
                    "seconds of a step, relative to the reference",
                    level=1.0,
                    x_log=True,
                )
            )
    caption = (
        "Each point is an arm, with 95 % intervals of its speed-up and of its price; an open "
        "triangle is only a bound. Arms on the grey line are the frontier: no other arm with as "
        "cheap a step is faster. "
    )
    title = "Speed-up over the reference against the price of a step: up and left is better"
    return Figure(title, panels, caption=caption + " ".join(paragraphs))


def _frontier(kept: Sequence[Point]) -> Line:
    """Steps from each point of the frontier to the next."""
    x, y = [kept[0].price], [kept[0].speedup]
    for point in kept[1:]:
        x += [point.price, point.price]
        y += [y[-1], point.speedup]
    return Line(x, y, "frontier", "#999999")


def _drawn(point: Point) -> list[Line]:
    colour = arm_style(point.arm).colour
    ends = [point.speedup if end is None else end for end in (point.low, point.high)]
    symbol = "triangle" if point.bound else "dot"
    return [
        Line([point.price] * 2, ends, "", colour),
        Line([point.price_low, point.price_high], [point.speedup] * 2, "", colour),
        Line([point.price], [point.speedup], point.label, colour, marker=True, symbol=symbol),
    ]
