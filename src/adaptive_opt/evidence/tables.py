"""Time to target, and helpers for tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.study import ARMS, EVERY_TASK

from .passage import first_passage, losses_by_seed

__all__ = [
    "ARM_LABELS",
    "TASK_LABELS",
    "Histories",
    "count",
    "identify",
    "markdown",
    "passage_markdown",
    "passage_sentences",
    "percent",
    "records",
    "time_to_target_table",
]

Histories = Sequence[pd.DataFrame]

TASK_LABELS = {t.name: t.label for t in EVERY_TASK}
ARM_LABELS = {a.name: a.label for a in ARMS}


def identify(history: pd.DataFrame) -> tuple[str, str]:
    """Return (task, arm) of a history."""
    return str(history["task"].iloc[0]), str(history["arm"].iloc[0])


def time_to_target_table(histories: Histories, targets: Mapping[str, float]) -> pd.DataFrame:
    """Time to target: the first iteration with a training loss at or below the target.

    Args:
        histories: one for each (task, arm).
        targets: the target loss of each task.

    Returns:
        One row for each (task, arm): ``target``; ``seeds``; ``never``, the number of seeds that
        never reach the target (censored); ``median_of_reached``, the median iteration of the other
        seeds; ``median_of_all``, the median with infinity for censored seeds; ``fastest`` and
        ``slowest_reached``.
    """
    rows = []
    for history in histories:
        task, arm = identify(history)
        passed = first_passage(losses_by_seed(history), targets[task])
        reached = passed[np.isfinite(passed)]
        rows.append(
            {
                "task": task,
                "arm": arm,
                "target": targets[task],
                "seeds": len(passed),
                "never": int(len(passed) - len(reached)),
                "median_of_reached": reached.median() if len(reached) else math.inf,
                "median_of_all": passed.median(),
                "fastest": passed.min(),
                "slowest_reached": reached.max() if len(reached) else math.inf,
            }
        )
    return pd.DataFrame(rows)


def passage_sentences(rows: pd.DataFrame) -> str:
    """Summarise one task's rows of :func:`time_to_target_table` in sentences."""
    target = rows["target"].iloc[0]
    reached = rows[np.isfinite(rows["median_of_reached"])].sort_values("median_of_reached")
    never = rows[rows["never"] == rows["seeds"]]
    text = f"Time to target: the first iteration with a training loss of at most {target:g}."
    if len(reached):
        order = "; ".join(
            "{} {:,.0f} ({} of {})".format(
                ARM_LABELS[r["arm"]], r["median_of_reached"], r["seeds"] - r["never"], r["seeds"]
            )
            for r in records(reached)
        )
        text += f" Median over the seeds that reach it: {order}."
    if len(never):
        text += " No seed reaches it: " + "; ".join(ARM_LABELS[a] for a in never["arm"]) + "."
    return text


def passage_markdown(rows: pd.DataFrame) -> str:
    """Format one task's rows of :func:`time_to_target_table` as Markdown."""
    body = [
        [
            ARM_LABELS[r["arm"]],
            count(r["median_of_reached"]),
            count(r["median_of_all"]),
            _range(r),
            "{never} of {seeds}".format(**r),
        ]
        for r in records(rows)
    ]
    head = ["arm", "median, seeds that reach it", "median, all seeds", "range", "never"]
    return markdown(head, body)


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dicts with string keys."""
    return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]


def _range(row: dict[str, Any]) -> str:
    fastest, slowest = count(row["fastest"]), count(row["slowest_reached"])
    return "–" if fastest == "never" else f"{fastest} – {slowest}"


def percent(value: float) -> str:
    """Format a percentage: ``12.34 %``."""
    return f"{value:.2f} %" if np.isfinite(value) else "–"


def count(value: float) -> str:
    """Format a count: ``12,345``; ``never`` if it is not finite."""
    return f"{value:,.0f}" if np.isfinite(value) else "never"


def markdown(head: list[str], body: list[list[str]]) -> str:
    """Format a table; all columns but the first are right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])
