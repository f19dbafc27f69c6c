"""The published tables of the networks: final quality, and when a run first reaches it.

As in the original study, milestones are read from the mean curve over the seeds that did not
diverge. The original evaluated test data during training. Here validation data are used instead;
test data are read once, at the end of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.study import get_task

from .passage import batches_per_epoch, epoch_means, last_rows, runs
from .tables import ARM_LABELS, Histories, count, identify, markdown, percent, records

__all__ = [
    "image_markdown",
    "image_table",
    "milestone",
    "text_markdown",
    "text_table",
]

IMAGE_COLUMNS = (
    *("task", "arm", "seeds", "diverged", "test_accuracy", "test_accuracy_std"),
    *("valid_accuracy", "valid_accuracy_std"),
    *("settled_iteration", "settled_pct", "settled_seconds"),
    *("train_level", "level_iteration", "level_pct", "level_seconds"),
)
TEXT_COLUMNS = (
    *("task", "arm", "seeds", "diverged", "target"),
    *("target_iteration", "target_pct", "target_seconds"),
    *("train_loss", "train_loss_std", "valid_loss", "valid_loss_std"),
    *("valid_perplexity", "valid_perplexity_std", "test_perplexity", "test_perplexity_std"),
)


def image_table(histories: Histories, train_level: float) -> pd.DataFrame:
    """Final accuracy, and when it is first reached.

    Args:
        histories: one for each (task, arm); other tasks than images are left out.
        train_level: training accuracy to reach, between 0 and 1.

    Returns:
        One row for each (task, arm):

        - ``test_accuracy``, ``valid_accuracy``: final values between 0 and 1, with standard
          deviations over seeds (``…_std``);
        - ``settled_…``: the first evaluation with a mean validation accuracy of at least the final
          value minus one standard deviation; NaN with fewer than two finished runs;
        - ``level_…``: the first row with a mean training accuracy over one epoch of at least
          ``train_level``.

        Both milestones are given as iteration, in % of the run and in device seconds; infinite if
        never reached.
    """
    rows = []
    for history in _of_family(histories, "images"):
        row, finished = _split_off_diverged(history)
        for split in ("test", "valid"):
            finals = _finals(finished, f"{split}_accuracy")
            row |= {f"{split}_accuracy": finals.mean(), f"{split}_accuracy_std": finals.std()}
        curve = _mean_curve(finished, "valid_accuracy")
        within = curve >= row["valid_accuracy"] - row["valid_accuracy_std"] - 1e-12
        known = np.isfinite(row["valid_accuracy_std"])
        row |= milestone("settled", within if known else None, finished)
        row["train_level"] = train_level
        column = "train_accuracy" if "train_accuracy" in history else "batch_accuracy"
        reached = None
        if len(finished) and column in history:
            smooth = epoch_means(finished, column).mean(axis=1)
            whole = smooth[smooth.index + 1 >= batches_per_epoch(history)]
            reached = whole >= train_level - 1e-7  # tolerance for float32 means equal to the level
        rows.append(row | milestone("level", reached, finished))
    return pd.DataFrame(rows, columns=list(IMAGE_COLUMNS))


def text_table(histories: Histories, targets: Mapping[str, float]) -> pd.DataFrame:
    """Final losses and perplexities, and the time to a target training loss.

    Args:
        histories: one for each (task, arm); other tasks than texts are left out.
        targets: target training loss of each task; 3.2 in the original study.

    Returns:
        One row for each (task, arm):

        - ``target_…``: the first row with a mean training loss at or below the target, as
          iteration, in % of the run and in device seconds; infinite if never reached;
        - ``train_loss`` (last), ``valid_loss`` and ``valid_perplexity`` (lowest of each seed),
          ``test_perplexity``: means over seeds, with standard deviations (``…_std``), which are NaN
          with one seed.
    """
    rows = []
    for history in _of_family(histories, "text"):
        row, finished = _split_off_diverged(history)
        row["target"] = targets[row["task"]]
        reached = _mean_curve(finished, "train_loss") <= row["target"]
        row |= milestone("target", reached if len(finished) else None, finished)
        lowest = _lowest(finished, "valid_loss")
        values = {
            "train_loss": _finals(finished, "train_loss"),
            "valid_loss": lowest,
            "valid_perplexity": np.exp(lowest),
            "test_perplexity": _finals(finished, "test_perplexity"),
        }
        for name, of_seeds in values.items():
            row |= {name: of_seeds.mean(), f"{name}_std": of_seeds.std()}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(TEXT_COLUMNS))


def milestone(name: str, reached: pd.Series | None, history: pd.DataFrame) -> dict[str, float]:
    """First iteration at which a condition holds, also in % of the run and in device seconds.

    Args:
        name: prefix of the three keys of the result.
        reached: whether the condition holds, by iteration. None: unknown; all values are NaN.
        history: rows of the seeds behind ``reached``.
    """
    found = (float("nan"),) * 3
    if reached is not None:
        found = (float("inf"),) * 3
        if reached.any():
            at = float(reached.index[int(reached.to_numpy().argmax())])
            seconds = history.loc[history["iteration"] == at, "device_seconds"].mean()
            found = (at, 100 * at / max(1, history["iteration"].max()), seconds)
    return dict(zip((f"{name}_iteration", f"{name}_pct", f"{name}_seconds"), found, strict=True))


def _of_family(histories: Histories, family: str) -> list[pd.DataFrame]:
    return [h for h in histories if get_task(identify(h)[0]).family == family]


def _split_off_diverged(history: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame]:
    """First columns of the table row, and the history without diverged seeds."""
    task, arm = identify(history)
    finals = last_rows(history)["train_loss"]
    diverged = finals.index[finals.isna()]
    row = {"task": task, "arm": arm, "seeds": len(finals), "diverged": len(diverged)}
    return row, history[~history["seed"].isin(diverged)]


def _finals(history: pd.DataFrame, column: str) -> pd.Series:
    """Last known value of each seed."""
    if column not in history:
        return pd.Series(dtype=float)
    return history.sort_values("iteration").groupby("seed")[column].last()


def _lowest(history: pd.DataFrame, column: str) -> pd.Series:
    return history.groupby("seed")[column].min() if column in history else pd.Series(dtype=float)


def _mean_curve(history: pd.DataFrame, column: str) -> pd.Series:
    """Mean over seeds, at the iterations with a value."""
    if column not in history or history.empty:
        return pd.Series(dtype=float)
    return pd.DataFrame(runs(history, column)).sort_index().mean(axis=1).dropna()


def image_markdown(rows: pd.DataFrame) -> str:
    """Format one task's rows of :func:`image_table` as Markdown."""
    level = percent(100 * rows["train_level"].iloc[0]).replace(".00", "").replace("0 %", " %")
    head = ["arm", "test accuracy", "validation accuracy"]
    head += ["within one std at", "seconds", f"training accuracy {level} at", "seconds"]
    body = [
        [
            ARM_LABELS[r["arm"]],
            *(_percent_spread(r, f"{split}_accuracy") for split in ("test", "valid")),
            *_milestone_words(r, "settled"),
            *_milestone_words(r, "level"),
        ]
        for r in records(rows)
    ]
    return markdown(head, body)


def text_markdown(rows: pd.DataFrame) -> str:
    """Format one task's rows of :func:`text_table` as Markdown."""
    head = ["arm", f"training loss ≤ {rows['target'].iloc[0]:g} at", "seconds"]
    head += ["final training loss", "lowest validation loss"]
    head += ["its perplexity", "test perplexity"]
    body = [
        [
            ARM_LABELS[r["arm"]],
            *_milestone_words(r, "target"),
            *(_spread(r, n, 3) for n in ("train_loss", "valid_loss")),
            *(_spread(r, n, 1) for n in ("valid_perplexity", "test_perplexity")),
        ]
        for r in records(rows)
    ]
    return markdown(head, body)


def _milestone_words(row: dict[str, Any], name: str) -> list[str]:
    share, seconds = row[f"{name}_pct"], row[f"{name}_seconds"]
    if np.isfinite(share):
        return [percent(share), f"{seconds:,.1f}"]
    return [count(share) if np.isinf(share) else "–", "–"]


def _spread(row: dict[str, Any], name: str, digits: int) -> str:
    value, spread = row[name], row[f"{name}_std"]
    if not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if np.isfinite(spread) else "")


def _percent_spread(row: dict[str, Any], name: str) -> str:
    shares = {k: 100 * row[k] for k in (name, f"{name}_std")}
    text = _spread(shares, name, 2)
    return text if text == "–" else f"{text} %"
