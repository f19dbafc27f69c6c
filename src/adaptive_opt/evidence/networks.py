"""Tables of the network tasks, and their report in Markdown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from .milestones import image_markdown, text_markdown
from .passage import last_rows, losses_by_seed
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
"""Columns of the outcome table: source column of the history, and which value is taken."""

COST_DIGITS = {"gradient_equivalents": ",.0f", "device_seconds": ".1f", "relative_seconds": ".2f"}


def outcome_table(histories: Histories) -> pd.DataFrame:
    """Losses and test results of the runs, as mean and standard deviation over seeds.

    Returns:
        One row for each (task, arm): ``seeds``; ``iterations``, the length of a run; ``diverged``,
        the number of diverged runs, which are left out of the means; training loss at the ``start``
        and over the last epoch (``train_loss``); lowest ``valid_loss``; ``test_loss`` and
        ``test_accuracy`` or ``test_perplexity``. Each has a sample standard deviation (``…_std``),
        NaN with one seed.
    """
    rows = []
    for history in histories:
        task, arm = identify(history)
        last = last_rows(history)
        row: dict[str, Any] = {"task": task, "arm": arm, "seeds": len(last)}
        row["iterations"] = int(last["iteration"].max())
        row["diverged"] = int(last["train_loss"].isna().sum())
        finished = last.index[last["train_loss"].notna()]
        for name, (column, which) in QUANTITIES.items():
            if column in history:
                chosen = _last_epoch(history) if which == "last epoch" else history
                wide = losses_by_seed(chosen, column)
                values = _in_time(wide if which == "first" else wide[finished], which)
                row[name], row[f"{name}_std"] = values.mean(), values.std()
        rows.append(row)
    return pd.DataFrame(rows)


def _in_time(wide: pd.DataFrame, which: str) -> pd.Series:
    """Reduce iterations × seeds to one value per seed."""
    if which in ("min", "last epoch"):
        return wide.min() if which == "min" else wide.mean()
    if wide.empty:
        return pd.Series(dtype=float)
    return wide.iloc[0] if which == "first" else wide.ffill().iloc[-1]


def _last_epoch(history: pd.DataFrame) -> pd.DataFrame:
    """Rows of the last epoch of each seed."""
    epochs = history.groupby("seed")["epoch"].transform("max")
    earlier = history[history["epoch"] < epochs - 1]
    before = history["seed"].map(earlier.groupby("seed")["iteration"].max()).fillna(-1)
    return history[history["iteration"] > before]


def cost_table(histories: Histories) -> pd.DataFrame:
    """Cost of a run on each of the three clocks.

    Returns:
        One row for each (task, arm): ``iterations``; ``gradient_equivalents`` and
        ``device_seconds``, means over the seeds that did not diverge; ``relative_seconds``,
        relative to the fastest arm of the task. Seeds that are trained together as one ensemble
        all have the seconds of the whole ensemble.
    """
    rows = []
    for history in histories:
        task, arm = identify(history)
        last = last_rows(history)
        iterations = int(last["iteration"].max())
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
    time_to_target: pd.DataFrame,
    outcomes: pd.DataFrame,
    costs: pd.DataFrame,
    images: pd.DataFrame | None = None,
    texts: pd.DataFrame | None = None,
    *,
    scale: str,
) -> str:
    """All tables in Markdown, each with a caption.

    Args:
        time_to_target, outcomes, costs: tables of all tasks.
        images, texts: tables of :mod:`.milestones`; None: left out.
        scale: name of the scale, such as ``base``.
    """
    parts = [f"# Networks, scale `{scale}`"]
    for task in outcomes["task"].unique():
        passage = time_to_target[time_to_target["task"] == task]
        parts += [
            f"## {TASK_LABELS[task]}",
            passage_sentences(passage),
            passage_markdown(passage),
            "Losses and test results, mean over seeds ± standard deviation. Test data are read "
            "once, at the end of a run:",
            outcome_markdown(outcomes[outcomes["task"] == task]),
            *_published(task, images, texts),
            "Cost of a run. A gradient-equivalent is the cost of one gradient. Seeds that are "
            "trained together have the device seconds of the whole group:",
            cost_markdown(costs[costs["task"] == task]),
        ]
    return "\n\n".join(parts) + "\n"


def _published(task: str, images: pd.DataFrame | None, texts: pd.DataFrame | None) -> list[str]:
    """Published table of one task, with its caption."""
    if images is not None and len(rows := images[images["task"] == task]):
        return [
            "Final accuracy; the time at which the mean validation accuracy is first within one "
            "standard deviation (std) of its final value; the time at which the mean training "
            "accuracy over an epoch first reaches a level. Times are in % of the run and in device "
            "seconds:",
            image_markdown(rows),
        ]
    if texts is not None and len(rows := texts[texts["task"] == task]):
        return [
            "Time at which the mean training loss first reaches the target, in % of the run and in "
            "device seconds; final losses and perplexities:",
            text_markdown(rows),
        ]
    return []


def outcome_markdown(rows: pd.DataFrame) -> str:
    """Format one task's rows of :func:`outcome_table` as Markdown."""
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
    """Format one task's rows of :func:`cost_table` as Markdown."""
    body = [
        [
            ARM_LABELS[r["arm"]],
            f"{r['iterations']:,}",
            *(
                format(r[name], digits) if np.isfinite(r[name]) else "–"
                for name, digits in COST_DIGITS.items()
            ),
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
