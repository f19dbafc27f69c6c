"""The verdict as Markdown, and its tables with their captions."""

from __future__ import annotations

from collections.abc import Sequence

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
    "tables",
    "terms",
    "threats",
]

Rows = tuple[list[str], list[list[str]]]
"""Head and body of a table."""


def matrix_rows(verdict: Verdict, clock: str = "iteration", metric: str = "train_loss") -> Rows:
    """Tasks × arms: speed-up and verdict by one clock and one loss."""
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
    """Arms in the columns of the matrix: all but placebos, in the order of the grid."""
    return list(dict.fromkeys(a.arm for t in verdict.tasks for a in t.arms if a.kind != "ladder"))


def arm_rows(task: TaskVerdict, metric: str = "train_loss") -> Rows:
    """Every arm compared with the reference by one loss, on each clock."""
    head = ["arm", *(f"speed-up in {w}" for w in CLOCK_WORDS.values()), "verdict in iterations"]
    head += ["verdict in seconds", "censored runs"]
    body = []
    for arm in task.arms:
        found = {clock: arm.speedup(clock, metric) for clock in CLOCK_WORDS}
        if found["iteration"] is None:
            continue
        speedups = [speedup_words(s) if s else "–" for s in found.values()]
        seconds = found["device_seconds"]
        verdicts = [found["iteration"].verdict, seconds.verdict if seconds else "–"]
        body.append([arm.label, *speedups, *verdicts, f"{arm.bounded} of {arm.runs}"])
    return head, body


def search_rows(task: TaskVerdict) -> Rows:
    """Spread between searches and seeds, failures, and values at a bound of the search space."""
    head = ["arm", "spread between searches", "between seeds", "failed searches", "stuck runs"]
    head += ["values at a bound of the search space"]
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
    """Final losses and accuracy at full length, with intervals."""
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
    """Cost per step, measured with all arms taking turns."""
    head = ["arm", "ms per step", "ms without curvature", "ms per refresh"]
    head += ["relative to the reference"]
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
    """Update period from which each arm is faster in seconds."""
    head = ["arm", "k in this study", "break-even k", "interval"]
    body = [
        [b.label, str(b.update_period), _period(b.period), f"{_period(b.low)} – {_period(b.high)}"]
        for b in task.break_even
    ]
    return head, body


def _period(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f}"


def ladder_rows(task: TaskVerdict) -> Rows:
    """Each rung of the ladder compared with the next."""
    head = ["rung", "next rung", "information removed", "speed-up in iterations", "verdict"]
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
    """One line with the remedy for each arm that failed or has failed searches."""
    lines = []
    for arm in task.arms:
        if arm.failed:
            lines.append(
                f"{arm.label} has no run: {arm.failed}. Lower the learning rates of its search "
                f"space (tuning.spaces, {task.task}) and run again."
            )
        elif arm.failed_searches:
            lines.append(
                f"{arm.label}: {len(arm.failed_searches)} of {arm.searches} searches failed: "
                f"{arm.failed_searches[0]}. Raise tuning.tasks.{task.task}.budget or widen its "
                "search space."
            )
    return lines


def terms(verdict: Verdict) -> dict[str, str]:
    """Explain the terms of the tables, for readers who have not read the protocol."""
    return {
        "arm": "an optimizer together with the source of its curvature",
        "reference": "the first-order arm (SGDM or Adam) with the best tuning result on a task; "
        "every other arm is compared with it",
        "speed-up": "how many times longer the reference must train for the same loss",
        "censored run": "a run that is faster or slower than the trained lengths can show. Only a "
        "bound on its speed-up is known: > or < if this holds for most runs of an arm, ≥ or ≤ if "
        "for some",
        "verdict": "faster, slower, equivalent (the difference is below "
        f"{100 * verdict.settings['margin']:.0f} %), or undecided (none of these is proven)",
        "gradient-equivalent": "the cost of one gradient; a Hessian-vector product costs two",
        "search": "one hyperparameter search; every arm has several independent ones",
        "stuck run": "a run that is missing or not better than a constant prediction",
        "refresh": "the computation of new curvature, at every k-th step (k: update period)",
        "placebo": "an arm with the step rule of a second-order optimizer, from which part of the "
        "curvature information is removed",
        "rung": "one arm of an information ladder: an arm and its placebos, ordered from most to "
        "least information",
    }


def tables(task: TaskVerdict) -> list[tuple[str, Rows]]:
    """Caption, head and body of every table about a task; empty tables are left out."""
    found = [
        (
            "Speed-up over the reference at equal training loss, with intervals. "
            "An arm with a speed-up above 1× is faster than the reference.",
            arm_rows(task),
        ),
        (
            "Final quality at full training length, with intervals, independent of speed.",
            final_rows(task),
        ),
        (
            "Spread of the speeds between searches and between seeds, as a factor. "
            "A large spread between searches means that the speed-up depends on tuning.",
            search_rows(task),
        ),
        (
            "Information ladder: each rung compared with the next, which lacks one part of the "
            "curvature information. If the rung is faster, that part has an effect.",
            ladder_rows(task),
        ),
        ("Cost per step, measured with all arms taking turns.", price_rows(task)),
        (
            "Break-even: from this update period k on, the arm is faster than the reference in "
            "seconds.",
            break_even_rows(task),
        ),
    ]
    if "valid_loss" in task.levels:
        caption = "Speed-up over the reference at equal validation loss, with intervals."
        found.insert(1, (caption, arm_rows(task, "valid_loss")))
    return [(caption, rows) for caption, rows in found if rows[1]]


def protocol(verdict: Verdict) -> list[str]:
    """Describe how arms were compared, one paragraph each, with the settings of this study."""
    settings = verdict.settings
    searches = max((t.searches for t in verdict.tasks), default=1)
    return [
        f"Each arm has {searches} independent hyperparameter "
        f"search{'es' if searches > 1 else ''} of equal cost. The run of seed s uses the "
        "configuration of search s modulo that number. The same seed gives every arm the same "
        "initial weights and the same batches.",
        "Each arm is trained at several lengths, each time with its whole learning rate schedule. "
        "The reference is the first-order arm (SGDM or Adam) with the best tuning result. The "
        "speed-up of a run is the full length divided by the length at which it has the "
        "reference's final loss. For a slower run it is the length at which the reference has that "
        "run's final loss, divided by the full length. Beyond the trained lengths only a bound is "
        "known: the run is censored.",
        "Losses are measured at the end of training, over a fixed training sample and over the "
        "validation split, in evaluation mode.",
        f"Intervals ({100 * settings['confidence']:.0f} %) and tests compare means over searches. "
        "Their variance contains the variation between searches and between seeds. It is "
        "moderated: shrunk towards the mean variance of the task's arms. P-values are "
        "Holm-corrected over the arms. "
        f"Equivalent means faster or slower by less than {100 * settings['margin']:.0f} %.",
        "Seconds are iterations times the cost per step. Costs are measured with all arms taking "
        "turns in one process.",
        "Placebo arms use the step rule of a second-order optimizer with less and less curvature "
        "information. If a rung is faster than the next, the information removed had an effect.",
    ]


def threats(verdict: Verdict) -> list[str]:
    """List known reasons why the answer could be wrong or not general."""
    lines = [
        "A search with another budget may find other configurations. The intervals contain the "
        "spread between searches, but not the effect of the budget.",
        "The Rahimi–Recht functions are linear networks that fit their data exactly. With the root "
        "of the mean squared error, curvature grows without bound near the minimum. This favours "
        "methods that divide by it.",
        "Seconds hold for one run at a time on the device that made this study. On other devices "
        "the ratios differ; gradient-equivalents do not depend on the device.",
        "Curves are interpolated between the trained lengths.",
    ]
    if verdict.scale not in ("paper", "replication"):
        lines.append(
            f"At scale {verdict.scale}, networks and data are small. The results need not hold for "
            "ResNet-18 on CIFAR-10 or a Transformer on Penn Treebank."
        )
    return lines


def sections(tasks: Sequence[TaskVerdict]) -> str:
    """All tables of some tasks as Markdown, one section per task."""
    parts: list[str] = []
    for task in tasks:
        parts += [f"## {task.label}", task_answer(task), *task.made_of.values()]
        parts += [f"- {line}" for line in failures(task)]
        for caption, (head, body) in tables(task):
            parts += [caption, markdown(head, body)]
    return "\n\n".join(parts)


def summary(verdict: Verdict) -> str:
    """The whole verdict as Markdown: answer, speed-ups, terms, all tables, threats."""
    parts = [f"# {verdict.question}", verdict.answer, f"Scale `{verdict.scale}`."]
    for clock in ("iteration", "device_seconds"):
        head, body = matrix_rows(verdict, clock)
        caption = f"Speed-up over the reference in {CLOCK_WORDS[clock]}. Above 1×: faster."
        parts += [caption, markdown(head, body)]
    explained = "\n".join(f"- **{term}**: {text}." for term, text in terms(verdict).items())
    parts += ["## Terms", explained, sections(verdict.tasks)]
    parts += ["## Threats to validity", *(f"- {t}" for t in threats(verdict))]
    return "\n\n".join(parts) + "\n"
