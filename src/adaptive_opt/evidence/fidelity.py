"""Fidelity of curvature estimates along a run: table and report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from adaptive_opt.study import get_arm

from .tables import TASK_LABELS, markdown

__all__ = ["PROBE_LABELS", "STAGES", "fidelity_table", "label", "report"]

STAGES = {
    "raw": "One draw of the estimate, compared with the exact diagonal d",
    "smoothed": "Smoothed estimate in the denominator, compared with d (Sophia) or |d|",
    "clipped": "Clipped update, compared with the update of the same rule with d",
}

REMARKS = {
    "smoothed": [
        "The running mean starts at zero and lags behind. The rows of the exact diagonal contain "
        "this error alone."
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
    """Label of an estimate: method and probe.

    Example:
        >>> label("rademacher", "ssdh"), label("gaussian", "")
        ('SSDH, Rademacher', 'Gaussian')
    """
    words = PROBE_LABELS[probe]
    return f"{get_arm(method).label}, {words}" if method else words


def fidelity_table(measures: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Median of every measure over seeds and iterations.

    Args:
        measures: one table for each task, with a row for each (seed, iteration, stage, probe,
            method); NaN after a seed has diverged.

    Returns:
        One row for each (task, stage, probe, method): the medians; ``points``, the number of
        (seed, iteration) pairs behind them; ``last_relative_error``, the median relative error at
        the last iteration.
    """
    rows = pd.concat([m.fillna({"method": ""}) for m in measures])
    groups = rows.groupby(KEYS, sort=False)
    table = groups[[*METRICS, "bias_noise"]].median()
    table["points"] = groups["bias"].count()
    last = rows[rows["iteration"] == rows.groupby("task")["iteration"].transform("max")]
    table["last_relative_error"] = last.groupby(KEYS, sort=False)["relative_error"].median()
    return table.reset_index()


def report(measures: Sequence[pd.DataFrame], scale: str, arm: str) -> str:
    """Report of the fidelity tables in Markdown.

    Args:
        measures: see :func:`fidelity_table`.
        scale: name of the scale, such as ``base``.
        arm: the arm whose runs the estimates were computed on.
    """
    table = fidelity_table(measures)
    parts = [f"# Fidelity of curvature estimates, scale `{scale}`"]
    for rows in measures:
        task = str(rows["task"].iloc[0])
        at = ", ".join(f"{t:,}" for t in sorted(rows["iteration"].unique()))
        parts += [
            f"## {TASK_LABELS[task]}",
            f"Runs of {get_arm(arm).label} with {rows['seed'].nunique()} seeds, at iterations "
            f"{at}. A probe is the random vector v of a Hessian-vector product; each row is a "
            "probe, with the optimizer that uses it. Hessians are those of the loss over all "
            "samples, in float64. The tables show medians over seeds and iterations; in brackets "
            "the apparent bias of an unbiased estimate, due to the finite number of draws.",
        ]
        diverged = rows[rows["bias"].isna()]["seed"].unique()
        if len(diverged):
            listed = ", ".join(str(s) for s in sorted(diverged))
            parts.append(f"Left out after divergence: seeds {listed}.")
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
    errors = ["bias", "relative error", "relative error at the end"]
    head = ["estimate", *errors, "cosine", "rank correlation", "same sign"]
    return markdown(head, body)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2g}"


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
