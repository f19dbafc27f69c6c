"""How faithful curvature estimates are: the table along a trajectory, and the report of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from adaptive_opt.study import get_arm

from .tables import TASK_LABELS, markdown

__all__ = ["PROBE_LABELS", "STAGES", "fidelity_table", "label", "report"]

STAGES = {
    "raw": "One draw, against the exact diagonal d",
    "smoothed": "Smoothed, as it stands in the denominator, against d (Sophia) or |d|",
    "clipped": "The clipped update, against that of the same rule fed with d",
}

REMARKS = {
    "smoothed": [
        "The running mean starts at zero and lags behind: how much that alone costs is in the row "
        "of the exact diagonal."
    ]
}

PROBE_LABELS = {
    "gaussian": "Gaussian",
    "rademacher": "Rademacher",
    "constant": "constant",
    "momentum_sign": "momentum sign",
    "exact": "exact diagonal",
}

METRICS = ("bias", "relative_error", "cosine", "rank_correlation", "sign_agreement")
KEYS = ["task", "stage", "probe", "method"]


def label(probe: str, method: str) -> str:
    """What made an estimate, in words.

    Example:
        >>> label("rademacher", "ssdh"), label("gaussian", "")
        ('SSDH, Rademacher', 'Gaussian')
    """
    words = PROBE_LABELS[probe]
    return f"{get_arm(method).label}, {words}" if method else words


def fidelity_table(measures: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Median of every measure over seeds and iterations.

    Args:
        measures: one for each task, a row for each (seed, iteration, stage, probe, method);
            NaN where a seed had diverged.

    Returns:
        A row for each (task, stage, probe, method): the medians, how many (seed, iteration)
        they are of, and the median relative error at the last iteration.
    """
    rows = pd.concat([m.fillna({"method": ""}) for m in measures])
    groups = rows.groupby(KEYS, sort=False)
    table = groups[[*METRICS, "bias_noise"]].median()
    table["points"] = groups["bias"].count()
    last = rows[rows["iteration"] == rows.groupby("task")["iteration"].transform("max")]
    table["last_relative_error"] = last.groupby(KEYS, sort=False)["relative_error"].median()
    return table.reset_index()


def report(measures: Sequence[pd.DataFrame], scale: str, arm: str) -> str:
    """The table in words and Markdown.

    Args:
        measures: see :func:`fidelity_table`.
        scale: of the study.
        arm: whose runs were followed.
    """
    table = fidelity_table(measures)
    parts = [f"# Fidelity of curvature estimates, scale `{scale}`"]
    for rows in measures:
        task = str(rows["task"].iloc[0])
        at = ", ".join(f"{t:,}" for t in sorted(rows["iteration"].unique()))
        parts += [
            f"## {TASK_LABELS[task]}",
            f"Along {get_arm(arm).label}'s runs of {rows['seed'].nunique()} seeds, at iterations "
            f"{at}. Hessians of the loss over all samples, float64. Medians over seeds and "
            "iterations; in brackets the bias that an unbiased estimate would seem to have, as "
            "draws are finite.",
        ]
        gone = rows[rows["bias"].isna()]["seed"].unique()
        if len(gone):
            said = ", ".join(str(s) for s in sorted(gone))
            parts.append(f"Left out from where they diverged: seeds {said}.")
        of_task = table[table["task"] == task]
        for stage, words in STAGES.items():
            parts += [f"### {words}", *REMARKS.get(stage, [])]
            parts.append(_markdown(of_task[of_task["stage"] == stage]))
    return "\n\n".join(parts) + "\n"


def _markdown(rows: pd.DataFrame) -> str:
    body = [
        [
            label(row["probe"], row["method"]),
            f"{_number(row['bias'])} ({_number(row['bias_noise'])})",
            _number(row["relative_error"]),
            _number(row["last_relative_error"]),
            *(_share(row[name]) for name in METRICS[2:]),
        ]
        for row in rows.to_dict("records")
    ]
    errors = ["bias", "relative error", "at the end"]
    head = ["estimate", *errors, "cosine", "rank correlation", "same sign"]
    return markdown(head, body)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2g}"


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
