"""The verdict in Markdown, and its tables for any page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adaptive_opt.study import get_arm

from .answer import CLOCK_WORDS, METRIC_WORDS, speedup_words, task_answer
from .schema import METRICS, ArmVerdict, TaskVerdict, Verdict
from .tables import markdown

__all__ = [
    "arm_rows",
    "break_even_rows",
    "failures",
    "final_rows",
    "ladder_rows",
    "matrix_rows",
    "price_rows",
    "protocol",
    "search_rows",
    "sections",
    "summary",
    "threats",
]

Rows = tuple[list[str], list[list[str]]]
"""A table's head and body."""


def matrix_rows(verdict: Verdict, clock: str = "iteration", metric: str = "train_loss") -> Rows:
    """Tasks × arms: speed-up and verdict, on one clock and by one loss."""
    arms = matrix_arms(verdict)
    body = []
    for task in verdict.tasks:
        cells = []
        for name in arms:
            own = task.arm(name)
            found = own.speedup(clock, metric) if own else None
            if name == task.reference:
                cells.append("reference")
            else:
                cells.append(f"{speedup_words(found)} {found.verdict}" if found else "–")
        body.append([task.label, *cells])
    return ["task", *(get_arm(a).label for a in arms)], body


def matrix_arms(verdict: Verdict) -> list[str]:
    """The arms of the matrix: all but placebos, in the order of the grid."""
    return list(dict.fromkeys(a.arm for t in verdict.tasks for a in t.arms if a.kind != "ladder"))


def arm_rows(task: TaskVerdict, metric: str = "train_loss") -> Rows:
    """Every arm against the reference, on every clock, by one loss."""
    head = ["arm", *(f"speed-up in {w}" for w in CLOCK_WORDS.values()), "verdict in iterations"]
    head += ["verdict in seconds", "runs at a bound"]
    body = []
    for arm in task.arms:
        found = {clock: arm.speedup(clock, metric) for clock in CLOCK_WORDS}
        if found["iteration"] is None:
            continue
        said = [speedup_words(s) if s else "–" for s in found.values()]
        seconds = found["device_seconds"]
        words = [found["iteration"].verdict, seconds.verdict if seconds else "–"]
        body.append([arm.label, *said, *words, f"{arm.bounded} of {arm.runs}"])
    return head, body


def search_rows(task: TaskVerdict) -> Rows:
    """How far searches and seeds differ, which failed, and which values lie at a bound."""
    head = ["arm", "spread between searches", "between seeds", "failed searches", "stuck runs"]
    head += ["values at a bound"]
    body = [
        [
            a.label,
            *(
                "–" if s is None else f"× {s:.2f}"
                for s in (a.spread_of_searches, a.spread_of_seeds)
            ),
            f"{len(a.failed_searches)} of {a.searches}",
            f"{a.stuck} of {a.runs}",
            ", ".join(a.at_bound) or "–",
        ]
        for a in task.arms
    ]
    return head, body


def final_rows(task: TaskVerdict) -> Rows:
    """Quality at the end of the full length, with intervals."""
    metrics = [m for m in (*METRICS, "valid_accuracy") if any(_final(a, m) for a in task.arms)]
    head = ["arm", *(METRIC_WORDS.get(m, m.replace("valid_", "validation ")) for m in metrics)]
    body = [[a.label, *(_final(a, m) or "–" for m in metrics)] for a in task.arms]
    return head, body


def _final(arm: ArmVerdict, metric: str) -> str:
    found = next((f for f in arm.final if f.metric == metric), None)
    if found is None:
        return ""
    digits = "{:.3f}" if metric == "valid_accuracy" else "{:.4g}"
    ends = [digits.format(e) if e is not None else "?" for e in (found.low, found.high)]
    return f"{digits.format(found.mean)} ({'–'.join(ends)})"


def price_rows(task: TaskVerdict) -> Rows:
    """What a step costs, measured side by side."""
    head = ["arm", "ms a step", "ms without curvature", "ms of a refresh", "relative to reference"]
    body = [
        [
            a.label,
            *(f"{1e3 * v:.3g}" for v in (a.price.step, a.price.plain, a.price.refresh)),
            f"{a.price.ratio:.2f} ({a.price.low:.2f}–{a.price.high:.2f})",
        ]
        for a in task.arms
        if a.price is not None
    ]
    return head, body


def break_even_rows(task: TaskVerdict) -> Rows:
    """From which update period an arm wins on seconds."""
    head = ["arm", "k as trained", "wins on seconds from k =", "interval"]
    body = [
        [b.label, str(b.update_period), _period(b.period), f"{_period(b.low)} – {_period(b.high)}"]
        for b in task.break_even
    ]
    return head, body


def _period(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f}"


def ladder_rows(task: TaskVerdict) -> Rows:
    """Every rung of the ladder against the next."""
    head = ["rung", "against", "part that is lost", "speed-up in iterations", "verdict"]
    body = [
        [
            get_arm(s.upper).label,
            get_arm(s.lower).label,
            s.part,
            speedup_words(s.result),
            s.result.verdict,
        ]
        for s in task.ladder
    ]
    return head, body


def failures(task: TaskVerdict) -> list[str]:
    """A line for each arm that failed, or whose searches did, with the remedy."""
    said = []
    for arm in task.arms:
        if arm.failed:
            said.append(
                f"{arm.label} has no run: {arm.failed}. Lower the learning rates of its space "
                f"(tuning.spaces, {task.task}) and run again."
            )
        elif arm.failed_searches:
            said.append(
                f"{arm.label}: {len(arm.failed_searches)} of {arm.searches} searches failed: "
                f"{arm.failed_searches[0]}. Raise tuning.tasks.{task.task}.budget, or widen its "
                "space."
            )
    return said


def protocol(verdict: Verdict) -> list[str]:
    """How it was compared, with the numbers of this study."""
    settings = verdict.settings
    searches = max((t.searches for t in verdict.tasks), default=1)
    return [
        f"Each arm has {searches} independent search{'es' if searches > 1 else ''} of equal cost. "
        "The run of seed s takes the configuration of search s modulo that number. The same seed "
        "gives every arm the same initial weights and the same batches.",
        "Each arm is trained at several lengths, each time with its whole learning rate schedule. "
        "The reference is the first-order arm (SGDM or Adam) that tuning found best. The speed-up "
        "of a run is the full length divided by the length at which it has the reference's final "
        "loss. For a slower run it is the length at which the reference has that run's final loss, "
        "divided by the full length. Outside the lengths only a bound is known.",
        "Losses are measured at the end, over a fixed training sample and over the validation "
        "split, in evaluation mode.",
        f"Intervals ({settings['confidence']:.0%}) and tests compare means over searches. Their "
        "variance holds both the luck of the search and the seed, and is moderated by the other "
        "arms of the task. P-values are Holm-corrected over the arms. Equivalent means: faster or "
        f"slower by less than {settings['margin']:.0%}.",
        "Seconds are iterations times the price of a step. Prices are measured with all arms "
        "taking turns in one process.",
        "Placebo arms use the same step rule with less and less of the curvature. Where a rung is "
        "faster than the next, the part that was taken away had an effect.",
    ]


def threats(verdict: Verdict) -> list[str]:
    """What could make the answer wrong, as far as it is known."""
    said = [
        "A search of another budget may find other configurations. The spread between searches is "
        "part of every interval; the budget is not.",
        "The Rahimi–Recht functions are linear networks that fit their data exactly. With the root "
        "of the mean squared error, curvature grows without bound near the minimum, which favours "
        "methods that divide by it.",
        "Seconds hold for one run on the device named below. Other devices have other ratios; "
        "gradient-equivalents do not depend on the device.",
        "Curves are interpolated between the trained lengths.",
    ]
    if verdict.scale not in ("paper", "replication"):
        said.append(
            f"At scale {verdict.scale} networks and data are small. They do not speak for "
            "ResNet-18 on CIFAR-10 or a Transformer on Penn Treebank."
        )
    return said


def sections(tasks: Sequence[TaskVerdict]) -> str:
    """The tables of some tasks in Markdown, a section each."""

    def table(rows: Callable[[TaskVerdict], Rows], task: TaskVerdict) -> Sequence[str]:
        head, body = rows(task)
        return [markdown(head, body)] if body else []

    parts: list[str] = []
    for task in tasks:
        parts += [f"## {task.label}", task_answer(task)]
        parts += [f"- {line}" for line in failures(task)]
        parts += table(arm_rows, task)
        if "valid_loss" in task.levels:
            parts += ["By validation loss:", *table(lambda t: arm_rows(t, "valid_loss"), task)]
        parts += [*table(final_rows, task), *table(search_rows, task)]
        parts += [*task.made_of.values(), *table(ladder_rows, task)]
        parts += [*table(price_rows, task), *table(break_even_rows, task)]
    return "\n\n".join(parts)


def summary(verdict: Verdict) -> str:
    """The answer and the tables in Markdown."""
    parts = [f"# {verdict.question}", verdict.answer, f"Scale `{verdict.scale}`."]
    for clock in ("iteration", "device_seconds"):
        head, body = matrix_rows(verdict, clock)
        parts += [f"Speed-up in {CLOCK_WORDS[clock]}:", markdown(head, body)]
    parts += [sections(verdict.tasks)]
    parts += ["## Threats to validity", *(f"- {t}" for t in threats(verdict))]
    return "\n\n".join(parts) + "\n"
