"""The answer in words, each number of which is read from the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from .schema import ArmVerdict, Speedup, TaskVerdict

__all__ = ["CLOCK_WORDS", "METRIC_WORDS", "answer", "arm_answer", "factor", "speedup_words"]
__all__ += ["task_answer"]

CLOCK_WORDS = {
    "iteration": "iterations",
    "gradient_equivalents": "gradient-equivalents",
    "device_seconds": "seconds",
}

METRIC_WORDS = {"train_loss": "training loss", "valid_loss": "validation loss"}


def answer(tasks: Sequence[TaskVerdict]) -> str:
    """The headline, at most 60 words: how often second-order arms are faster, and by how much."""
    judged = [t for t in tasks if t.reference and _second_order(t)]
    if not judged:
        return "No verdict: a comparison needs a second-order arm, and SGDM or Adam."
    number = f"{len(judged)} task{'s' if len(judged) > 1 else ''}"
    counts = {
        clock: sum(any(_word(a, clock) == "faster" for a in _second_order(t)) for t in judged)
        for clock in CLOCK_WORDS
    }
    text = (
        f"A second-order optimizer trained faster than the best tuned first-order one on "
        f"{counts['iteration']} of {number}, counted in iterations"
    )
    timed = any(a.speedup("device_seconds") for t in judged for a in t.arms)
    text += f", and on {counts['device_seconds']} in seconds." if timed else "."
    candidates = [
        (s.ratio, t, a)
        for t in judged
        for a in _second_order(t)
        if (s := a.speedup()) is not None and s.verdict == "faster"
    ]
    if candidates:
        _, task, arm = max(candidates, key=lambda c: c[0])
        best = arm.speedup()
        if best is not None:
            text += f" The largest speed-up in iterations was {factor(best)}: "
            text += f"{arm.label} on {task.label}."
    return text


def _second_order(task: TaskVerdict) -> list[ArmVerdict]:
    return [a for a in task.arms if a.kind == "second-order" and a.speedups]


def _word(arm: ArmVerdict, clock: str) -> str | None:
    found = arm.speedup(clock)
    return None if found is None else found.verdict


def task_answer(task: TaskVerdict, clock: str = "iteration") -> str:
    """One sentence on a task: which arms are faster, equivalent, slower or undecided.

    Args:
        task: of the verdict.
        clock: a key of :data:`CLOCK_WORDS`.
    """
    judged = [a for a in task.arms if a.speedup(clock) and a.kind != "ladder"]
    if not judged:
        return "; ".join(task.missing) + "." if task.missing else "Nothing was compared."
    reference = next(a.label for a in task.arms if a.arm == task.reference)
    parts = []
    for word, verb in (
        ("faster", "faster"),
        ("equivalent", "equivalent"),
        ("slower", "slower"),
        ("undecided", "undecided"),
        ("failed", "failed"),
    ):
        own = [a for a in judged if _word(a, clock) == word]
        if own:
            names = ", ".join(f"{a.label} {factor(a.speedup(clock))}" for a in own)  # type: ignore[arg-type]
            parts.append(f"{verb}: {names}")
    return f"Against {reference}, counted in {CLOCK_WORDS[clock]} — {'; '.join(parts)}."


def arm_answer(tasks: Sequence[TaskVerdict], arm: str, clock: str = "iteration") -> str:
    """A line a task on one arm against the reference, in Markdown.

    Args:
        tasks: the verdict's.
        arm: its name.
        clock: a key of :data:`CLOCK_WORDS`.
    """
    said = []
    for task in tasks:
        own = task.arm(arm)
        found = own.speedup(clock) if own else None
        if own is None or found is None or task.reference is None:
            continue
        reference = next(a.label for a in task.arms if a.arm == task.reference)
        said.append(
            f"- {task.label}: {own.label} is **{found.verdict}**: {speedup_words(found)} the speed "
            f"of {reference}, counted in {CLOCK_WORDS[clock]}."
        )
    return "\n".join(said)


def factor(found: Speedup) -> str:
    """The speed-up alone, as in ``2.1×`` or ``< 0.062×``.

    Example:
        >>> factor(Speedup(metric="train_loss", clock="iteration", verdict="slower", ratio=0.0625,
        ...                low=None, high=0.07, bound="<", p_different=0, p_equivalent=1))
        '< 1/16×'
    """
    if found.low is None and found.high is None and not found.bound:
        return "mixed"  # runs at both bounds
    sign = f"{found.bound} " if found.bound else ""
    return f"{sign}{_number(found.ratio, exact=bool(found.bound))}×"


def speedup_words(found: Speedup) -> str:
    """The speed-up with its interval, as in ``2.1× (1.8–2.5)``; bounds stay bounds.

    Where only a bound is known of most runs the bound is all that is said.
    """
    if found.bound in ("<", ">") or (found.low is None and found.high is None):
        return factor(found)
    low = "?" if found.low is None else _number(found.low)
    high = "?" if found.high is None else _number(found.high)
    return f"{factor(found)} ({low}–{high})"


def _number(value: float, *, exact: bool = False) -> str:
    """Two digits, near 1 to the hundredth; a bound below 1 as a fraction where it is one."""
    if exact and value < 1 and abs(round(1 / value) - 1 / value) < 1e-6:
        return f"1/{round(1 / value)}"
    return f"{value:.2f}" if 0.5 <= value < 2 else f"{value:.2g}"
