"""The answer in three sentences, each number of which is read from the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_opt.study import get_arm

from .ladder import STEPS
from .schema import ArmVerdict, Result, TaskVerdict

__all__ = ["CLOCK_WORDS", "answer", "arm_answer", "ratio_words"]

CLOCK_WORDS = {
    "iteration": "iterations",
    "gradient_equivalents": "gradient-equivalents",
    "device_seconds": "seconds",
}


def answer(tasks: Sequence[TaskVerdict]) -> list[str]:
    """Three sentences: in iterations, in what they cost, and what the gain is made of."""
    return [_on_iterations(tasks), _on_costs(tasks), _on_ladders(tasks)]


def arm_answer(tasks: Sequence[TaskVerdict], arm: str, clock: str = "iteration") -> str:
    """A sentence a task on one arm against the best baseline, at the headline target, in Markdown.

    Args:
        tasks: the verdict's.
        arm: its name.
        clock: a key of :data:`CLOCK_WORDS`.
    """
    said = []
    for task in tasks:
        for r in task.arms:
            if (r.arm, r.clock, r.headline) != (arm, clock, True):
                continue
            versus, words = get_arm(r.versus).label, CLOCK_WORDS[clock]
            said.append(
                f"- {task.label}: {r.label} is **{r.verdict}**, {ratio_words(r)} times the {words} "
                f"of {versus} to a loss of {r.level:.2g}; {r.arrived} of {r.pairs} runs get there, "
                f"{r.arrived_other} of {versus}."
            )
    return "\n".join(said)


def ratio_words(result: Result) -> str:
    """As in ``0.45 (0.40–0.52)``: the ratio of times and its interval, which may have no bound."""
    low, high = ("∞" if v is None else _ratio(v) for v in (result.low, result.high))
    return f"{_ratio(result.ratio)} ({low}–{high})"


def _ratio(value: float) -> str:
    """Two digits; near 1, where a few per cent are the question, to the hundredth."""
    return f"{value:.2f}" if 0.5 <= value < 2 else f"{value:.2g}"


def _headlines(task: TaskVerdict, clock: str) -> list[ArmVerdict]:
    found = [r for r in task.arms if r.headline and r.clock == clock]
    return [r for r in found if get_arm(r.arm).kind == "second-order"]


def _on_iterations(tasks: Sequence[TaskVerdict]) -> str:
    faster, parts = 0, []
    for task in tasks:
        results = _headlines(task, "iteration")
        if not results:
            continue
        won = [r for r in results if r.verdict == "faster"]
        faster += bool(won)
        best = min(won or results, key=lambda r: r.ratio)
        parts.append(
            f"{task.label}: {best.label} {best.verdict}, "
            f"{ratio_words(best)} times the iterations of {get_arm(best.versus).label}"
        )
    return (
        f"In iterations to the loss that the tuned first-order baselines come down to, some "
        f"second-order method is faster on {faster} of {len(parts)} tasks ({'; '.join(parts)})."
    )


def _on_costs(tasks: Sequence[TaskVerdict]) -> str:
    parts = []
    for clock in ("gradient_equivalents", "device_seconds"):
        results = {t.label: _headlines(t, clock) for t in tasks}
        results = {label: rows for label, rows in results.items() if rows}
        won = [n for n, rows in results.items() if any(r.verdict == "faster" for r in rows)]
        lost = [n for n, rows in results.items() if all(r.verdict == "slower" for r in rows)]
        text = f"in {CLOCK_WORDS[clock]} one is on {len(won)} of {len(results)}"
        if lost:
            text += f" and all are slower on {len(lost)}"
        parts.append(text)
    return f"Counting what curvature costs, {', and '.join(parts)}."


def _on_ladders(tasks: Sequence[TaskVerdict]) -> str:
    """On how many tasks each part of the curvature gains, by arm."""
    steps = [r for task in tasks for r in task.ladder if r.headline]
    said = []
    for parent in dict.fromkeys(r.parent for r in steps):
        own = [r for r in steps if r.parent == parent]
        over = len({t.task for t in tasks if any(r.parent == parent for r in t.ladder)})
        counts = []
        for part in dict.fromkeys(step.part for step in STEPS[1:]):
            verdicts = [r.verdict for r in own if r.part == part]
            if verdicts:
                harm = verdicts.count("slower")
                counts.append(
                    f"{part} on {verdicts.count('faster')}"
                    + (f", harming on {harm}" if harm else "")
                )
        better = [r.verdict for r in own if r.part == STEPS[0].part].count("faster")
        text = f"of {over} tasks {get_arm(parent).label} gains from {'; '.join(counts)}"
        if better:
            text += f"; and the exact diagonal would do better on {better}"
        said.append(text)
    if not said:
        return "What a gain is made of was not asked: no placebo arm is in this comparison."
    return f"Taken apart by placebos, {'. '.join(_capital(t, i) for i, t in enumerate(said))}."


def _capital(text: str, position: int) -> str:
    return text[0].upper() + text[1:] if position else text
