"""Sentences of the verdict. Every number in them is read from the record."""

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

BOUND_WORDS = {"<": "less than", "≤": "at most", ">": "more than", "≥": "at least"}


def answer(tasks: Sequence[TaskVerdict]) -> str:
    """Answer the study's question in two sentences, at most 60 words.

    The first counts the tasks on which a second-order arm is faster. The second names the largest
    speed-up in iterations; it is left out if no second-order arm is faster.
    """
    judged = [t for t in tasks if t.reference and _second_order(t)]
    if not judged:
        return "No verdict: a comparison needs a second-order arm, and SGDM or Adam."
    number = f"{len(judged)} task{'s' if len(judged) > 1 else ''}"
    counts = {
        clock: sum(any(_verdict(a, clock) == "faster" for a in _second_order(t)) for t in judged)
        for clock in CLOCK_WORDS
    }
    text = (
        "A second-order optimizer reached the loss of the better first-order one (SGDM or Adam) in "
        f"fewer iterations on {counts['iteration']} of {number}"
    )
    timed = any(a.speedup("device_seconds") for t in judged for a in t.arms)
    text += f", and in less time on {counts['device_seconds'] or 'none'}." if timed else "."
    faster = [
        (s, t, a)
        for t in judged
        for a in _second_order(t)
        if (s := a.speedup()) is not None and s.verdict == "faster"
    ]
    if faster:
        best, task, arm = max(faster, key=lambda found: found[0].ratio)
        tied = sum(factor(s) == factor(best) for s, _, _ in faster) > 1
        text += f" The largest speed-up is {_factor_in_words(best)}"
        text += f"{', for example' if tied else ':'} {arm.label} on {task.label}."
    return text


def _second_order(task: TaskVerdict) -> list[ArmVerdict]:
    return [a for a in task.arms if a.kind == "second-order" and a.speedups]


def _verdict(arm: ArmVerdict, clock: str) -> str | None:
    found = arm.speedup(clock)
    return None if found is None else found.verdict


def _reference_label(task: TaskVerdict) -> str:
    return next(a.label for a in task.arms if a.arm == task.reference)


def task_answer(task: TaskVerdict, clock: str = "iteration") -> str:
    """List the arms of a task by verdict: faster, equivalent, slower, undecided or failed.

    Args:
        task: verdict on the task; placebos are left out.
        clock: a key of :data:`CLOCK_WORDS`.
    """
    judged = [a for a in task.arms if a.speedup(clock) and a.kind != "ladder"]
    if not judged:
        return "; ".join(task.missing) + "." if task.missing else "Nothing was compared."
    reference = _reference_label(task)
    sentences: list[str] = []
    for verdict, opening in (
        ("faster", f"Faster than {reference}"),
        ("equivalent", f"Equivalent to {reference}"),
        ("slower", f"Slower than {reference}"),
        ("undecided", f"Undecided against {reference}"),
        ("failed", "Failed"),
    ):
        own = [a for a in judged if _verdict(a, clock) == verdict]
        if own:
            names = ", ".join(f"{a.label} ({factor(a.speedup(clock))})" for a in own)  # type: ignore[arg-type]
            where = f" in {CLOCK_WORDS[clock]}" if not sentences else ""
            sentences.append(f"{opening}{where}: {names}.")
    return " ".join(sentences)


def arm_answer(tasks: Sequence[TaskVerdict], arm: str, clock: str = "iteration") -> str:
    """Compare one arm with the reference of each task, as a Markdown list.

    Args:
        tasks: verdicts, one for each task. Tasks without this arm are left out.
        arm: name of the arm.
        clock: a key of :data:`CLOCK_WORDS`.
    """
    lines = []
    for task in tasks:
        own = task.arm(arm)
        found = own.speedup(clock) if own else None
        if own is None or found is None or task.reference is None:
            continue
        lines.append(
            f"- {task.label}: {own.label} against {_reference_label(task)}: **{found.verdict}**, "
            f"speed-up {speedup_words(found)} in {CLOCK_WORDS[clock]}."
        )
    return "\n".join(lines)


def factor(found: Speedup) -> str:
    """Format a speed-up without its interval: ``2.1×``, or a bound such as ``< 1/16×``.

    ``mixed`` means that some runs are beyond the upper bound and others beyond the lower one.

    Example:
        >>> factor(Speedup(metric="train_loss", clock="iteration", verdict="slower", ratio=0.0625,
        ...                low=None, high=0.07, bound="<", p_different=0, p_equivalent=1))
        '< 1/16×'
    """
    if found.low is None and found.high is None and not found.bound:
        return "mixed"
    sign = f"{found.bound} " if found.bound else ""
    return f"{sign}{_number(found.ratio, exact=bool(found.bound))}×"


def _factor_in_words(found: Speedup) -> str:
    text = factor(found)
    return f"{BOUND_WORDS[found.bound]} {text[2:]}" if found.bound else text


def speedup_words(found: Speedup) -> str:
    """Format a speed-up with its interval: ``2.1× (1.8–2.5)``. A missing end is a question mark.

    If most runs are beyond a bound and the verdict says so too, only that bound is given.
    """
    beyond = found.bound in ("<", ">") and found.verdict != "undecided"
    if beyond or (found.low is None and found.high is None):
        return factor(found)
    low = "?" if found.low is None else _number(found.low)
    high = "?" if found.high is None else _number(found.high)
    return f"{factor(found)} ({low}–{high})"


def _number(value: float, *, exact: bool = False) -> str:
    """Two significant digits; near 1, two decimals. ``exact`` keeps fractions such as 1/16."""
    if exact and value < 1 and abs(round(1 / value) - 1 / value) < 1e-6:
        return f"1/{round(1 / value)}"
    return f"{value:.2f}" if 0.5 <= value < 2 else f"{value:.2g}"
