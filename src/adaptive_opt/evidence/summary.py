"""The verdict in Markdown, and its tables for any page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from adaptive_opt.study import get_arm

from .answer import CLOCK_WORDS, ratio_words
from .schema import TaskVerdict, Verdict
from .tables import count, markdown

__all__ = [
    "arm_rows",
    "break_even_rows",
    "ladder_rows",
    "protocol",
    "score_rows",
    "sections",
    "summary",
    "threats",
]

Rows = tuple[list[str], list[list[str]]]
"""A table's head and body."""


def arm_rows(task: TaskVerdict) -> Rows:
    """Every arm against the best first-order one at the headline target, on every clock."""
    head = ["arm", "clock", "against", "ratio (interval)", "arrived", "p", "p equivalent"]
    head += ["p log-rank", "verdict", "seeds to decide"]
    body = [
        [
            r.label,
            CLOCK_WORDS[r.clock],
            get_arm(r.versus).label,
            ratio_words(r),
            f"{r.arrived} / {r.arrived_other} of {r.pairs}",
            _probability(r.p_different),
            _probability(r.p_equivalent),
            _probability(r.p_log_rank),
            r.verdict,
            _seeds(r.verdict, r.seeds_to_decide),
        ]
        for r in task.arms
        if r.headline
    ]
    return head, body


def ladder_rows(task: TaskVerdict) -> Rows:
    """Every rung against the next at the headline target."""
    head = ["rung", "against", "part", "ratio of iterations (interval)", "arrived", "p"]
    head += ["p equivalent", "verdict", "seeds to decide"]
    body = [
        [
            get_arm(r.upper).label,
            get_arm(r.lower).label,
            r.part,
            ratio_words(r),
            f"{r.arrived} / {r.arrived_other} of {r.pairs}",
            _probability(r.p_different),
            _probability(r.p_equivalent),
            r.verdict,
            _seeds(r.verdict, r.seeds_to_decide),
        ]
        for r in task.ladder
        if r.headline
    ]
    return head, body


def break_even_rows(task: TaskVerdict) -> Rows:
    """What an iteration costs, and from which update period an arm wins on seconds."""
    head = ["arm", "k", "ms without curvature", "ms of a refresh", "wins on seconds from k ="]
    body = [
        [
            b.label,
            str(b.update_period),
            f"{1e3 * b.first:.3g}",
            f"{1e3 * b.curvature:.3g}",
            "no k" if b.period is None else f"{b.period:,.1f}",
        ]
        for b in task.break_even
    ]
    return head, body


def score_rows(verdict: Verdict) -> Rows:
    """Integrated performance profiles by clock."""
    clocks = list(verdict.scores)
    frame = pd.DataFrame(verdict.scores).sort_values(clocks[0], ascending=False)
    body = [
        [get_arm(str(arm)).label, *(f"{row[clock]:.2f}" for clock in clocks)]
        for arm, row in frame.iterrows()
    ]
    return ["arm", *(f"score by {CLOCK_WORDS[c]}" for c in clocks)], body


def _probability(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _seeds(verdict: str, needed: int | None) -> str:
    if verdict != "undecided":
        return "–"
    return "> 1,000, or unknown" if needed is None else count(needed)


def protocol(verdict: Verdict) -> list[str]:
    """How it was compared, with the numbers of this study."""
    settings = verdict.settings
    shares = ", ".join(f"{s:.0%}" for s in settings["shares"])
    alpha = 1 - settings["confidence"]
    return [
        "Every arm was tuned by the same search at the same cost, counted in "
        "gradient-equivalents, and then trained on seeds of its own; the same seed gives every "
        "arm of a task the same initial weights and the same order of batches.",
        f"Targets were fixed from the first-order arms before any other was looked at: the loss "
        f"that at least {settings['reached_by']:.0%} of the best one's seeds come down to, and "
        f"{shares} of the way there in decades. The fixed target is the one that the parameters "
        "name. A run reaches a target when the training loss, averaged over an epoch, is first "
        "at or below it; a run that never does counts with the time that all runs were observed "
        "for, and is counted apart.",
        f"Ratios are geometric means over pairs of runs with the same seed. Intervals: "
        f"studentised bootstrap (Student's t below twelve seeds). Faster and slower: exact "
        f"sign-flip test, Holm-corrected over the arms, at {alpha:.0%}, and an interval that "
        f"leaves out 1. Equivalent: both one-sided tests reject a difference of more than "
        f"{settings['margin']:.0%}. Seeds to decide: for a power of 80 % at the observed effect.",
        "Placebo arms follow the same step rule with the curvature replaced by less and less of "
        "it. A rung that is faster than the next one says that what was taken away had worked.",
    ]


def threats(verdict: Verdict) -> list[str]:
    """What could make the answer wrong, as far as it is known."""
    seeds = {t.label: t.seeds for t in verdict.tasks}
    few = [label for label, n in seeds.items() if n < 8]
    said = [
        "Hyperparameters were found by a finite search, and what is found depends on its budget: "
        "the report of the search says how far each arm's best moved in its last trials.",
        "The Rahimi–Recht functions are linear networks that fit their data exactly; what holds "
        "there need not hold where the loss has noise at its minimum. With the root of the mean "
        "squared error curvature grows without bound near the minimum, which favours methods "
        "that divide by it; the tasks with the mean squared error itself show by how much.",
        "Seconds are those of seeds that train together as one program on the device named below; "
        "another device has other ratios. Gradient-equivalents do not depend on it.",
        "The best first-order arm is chosen by the times it is compared on, which favours it.",
        "Restricting times at the end of a run understates every difference beyond it.",
    ]
    if verdict.scale not in ("paper", "replication"):
        said.append(
            f"At scale {verdict.scale} the networks are small and trained on small data that come "
            "with Python packages: about ResNet-18 on CIFAR-10 and a Transformer on Penn Treebank "
            "they say nothing before the scale paper has been run."
        )
    if few:
        said.append(
            f"Fewer than eight seeds ({'; '.join(few)}) cannot decide much after a correction "
            "for the number of arms, however large the difference."
        )
    return said


def sections(tasks: Sequence[TaskVerdict]) -> str:
    """The tables of some tasks in Markdown, a section each."""

    def table(rows: Callable[[TaskVerdict], Rows], task: TaskVerdict) -> Sequence[str]:
        head, body = rows(task)
        return [markdown(head, body)] if body else []

    parts: list[str] = []
    for task in tasks:
        parts += [f"## {task.label}", *table(arm_rows, task), *task.made_of.values()]
        parts += [*table(ladder_rows, task), *table(break_even_rows, task)]
    return "\n\n".join(parts)


def summary(verdict: Verdict) -> str:
    """The answer and the tables in Markdown."""
    parts = [f"# {verdict.question}", *verdict.answer, f"Scale `{verdict.scale}`."]
    parts += [
        sections(verdict.tasks),
        "## Over all tasks",
        markdown(*score_rows(verdict)),
        verdict.scores_caveat,
    ]
    parts += ["## Threats to validity", *(f"- {t}" for t in threats(verdict))]
    return "\n\n".join(parts) + "\n"
