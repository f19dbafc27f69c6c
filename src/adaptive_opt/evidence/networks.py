"""Tables of the network tasks, and the report that states them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .passage import losses_by_seed
from .tables import (
    ARM_LABELS,
    TASK_LABELS,
    Histories,
    identify,
    markdown,
    passage_markdown,
    passage_sentences,
    records,
)

__all__ = ["cost_table", "outcome_table", "report"]

QUANTITIES = {
    "start": ("train_loss", "first"),
    "train_loss": ("train_loss", "last epoch"),
    "valid_loss": ("valid_loss", "min"),
    "test_loss": ("test_loss", "last"),
    "test_accuracy": ("test_accuracy", "last"),
    "test_perplexity": ("test_perplexity", "last"),
}
"""Columns of the outcome table: of which column of the history, and which value in time."""


def outcome_table(histories: Histories) -> pd.DataFrame:
    """What the runs came to, as mean and standard deviation over seeds.

    Returns:
        A row for each (task, arm): the length of a run, the training loss at the ``start``
        and over the last epoch, the lowest validation loss, loss and accuracy or
        perplexity on the test data; ``_std`` beside each (of the sample, missing with one
        seed); ``diverged``: how many runs did, which are left out.
    """
    rows = []
    for history in histories:
        task, arm = identify(history)
        last = history[history["iteration"] == history["iteration"].max()]
        row: dict[str, Any] = {"task": task, "arm": arm, "seeds": len(last)}
        row["iterations"] = int(last["iteration"].iloc[0])
        row["diverged"] = int(last["train_loss"].isna().sum())
        before = history.loc[history["epoch"] < history["epoch"].max() - 1, "iteration"].max()
        finished = last.loc[last["train_loss"].notna(), "seed"]
        for name, (column, which) in QUANTITIES.items():
            if column in history:
                wide = losses_by_seed(history, column)
                if which == "last epoch":
                    wide = wide[~(wide.index <= before)]  # all, where there is but one epoch
                values = _in_time(wide if which == "first" else wide[finished], which)
                row[name], row[f"{name}_std"] = values.mean(), values.std()
        rows.append(row)
    return pd.DataFrame(rows)


def _in_time(wide: pd.DataFrame, which: str) -> pd.Series:
    """One value for each seed, of iterations × seeds."""
    if which in ("min", "last epoch"):
        return wide.min() if which == "min" else wide.mean()
    return wide.iloc[0] if which == "first" else wide.iloc[-1]


def cost_table(histories: Histories) -> pd.DataFrame:
    """What an iteration costs on each of the three clocks.

    Returns:
        A row for each (task, arm): ``iterations``, ``gradient_equivalents`` and
        ``device_seconds`` of a run, the mean over the seeds that did not diverge, and
        ``relative_seconds``, relative to the fastest arm of the task. Seeds trained together
        share the seconds of their program.
    """
    rows = []
    for history in histories:
        task, arm = identify(history)
        last = history[history["iteration"] == history["iteration"].max()]
        iterations = int(last["iteration"].iloc[0])
        last = last[last["train_loss"].notna()]
        rows.append(
            {
                "task": task,
                "arm": arm,
                "iterations": iterations,
                "gradient_equivalents": float(last["gradient_equivalents"].mean()),
                "device_seconds": float(last["device_seconds"].mean()),
            }
        )
    table = pd.DataFrame(rows)
    fastest = table.groupby("task")["device_seconds"].transform("min")
    table["relative_seconds"] = table["device_seconds"] / fastest
    return table


def report(
    time_to_target: pd.DataFrame, outcomes: pd.DataFrame, costs: pd.DataFrame, *, scale: str
) -> str:
    """The tables in Markdown, each led by a sentence that says what it holds."""
    parts = [f"# Networks, scale `{scale}`"]
    for task in outcomes["task"].unique():
        passage = time_to_target[time_to_target["task"] == task]
        parts += [
            f"## {TASK_LABELS[task]}",
            passage_sentences(passage),
            passage_markdown(passage),
            "Mean over seeds ± standard deviation; test data were looked at once, at the end:",
            outcome_markdown(outcomes[outcomes["task"] == task]),
            "What a run costs; seeds trained together share the seconds of their program:",
            cost_markdown(costs[costs["task"] == task]),
        ]
    return "\n\n".join(parts) + "\n"


def outcome_markdown(rows: pd.DataFrame) -> str:
    """One task's rows of :func:`outcome_table`."""
    heads = {
        "start": "training loss at the start",
        "train_loss": "over the last epoch",
        "valid_loss": "lowest validation loss",
        "test_accuracy": "test accuracy",
        "test_perplexity": "test perplexity",
    }
    shown = [name for name in heads if name in rows and rows[name].notna().any()]
    body = [
        [ARM_LABELS[r["arm"]], *(_spread(r, name) for name in shown), str(r["diverged"])]
        for r in records(rows)
    ]
    return markdown(["arm", *(heads[name] for name in shown), "diverged"], body)


def cost_markdown(rows: pd.DataFrame) -> str:
    """One task's rows of :func:`cost_table`."""
    body = [
        [
            ARM_LABELS[r["arm"]],
            f"{r['iterations']:,}",
            f"{r['gradient_equivalents']:,.0f}",
            f"{r['device_seconds']:.1f}",
            f"{r['relative_seconds']:.2f}",
        ]
        for r in records(rows)
    ]
    head = ["arm", "iterations", "gradient-equivalents", "device seconds", "relative"]
    return markdown(head, body)


def _spread(row: dict[str, Any], name: str) -> str:
    value, spread = row[name], row[f"{name}_std"]
    if not np.isfinite(value):
        return "–"
    factor, unit = (100, " %") if name == "test_accuracy" else (1, "")
    digits = 1 if factor == 100 or value >= 100 else 3
    text = f"{factor * value:.{digits}f}"
    return f"{text} ± {factor * spread:.{digits}f}{unit}" if np.isfinite(spread) else text + unit
