"""Curvature of networks along training: tables and report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.study import get_arm

from .fidelity import PROBE_LABELS
from .tables import TASK_LABELS, markdown, records

__all__ = ["curvature_table", "estimate_label", "estimate_table", "report"]

KEYS = ["task", "arm", "seed", "epoch"]
COLUMNS = {
    "loss": ("hessian", "loss", 0),
    "eigenvalue_1": ("hessian", "eigenvalue", 1),
    "eigenvalue_2": ("hessian", "eigenvalue", 2),
    "trace": ("hessian", "trace", 0),
    "frobenius_norm": ("hessian", "frobenius_norm", 0),
    "gauss_newton_eigenvalue_1": ("gauss_newton", "eigenvalue", 1),
    "gauss_newton_trace": ("gauss_newton", "trace", 0),
    "preconditioned_eigenvalue": ("preconditioned", "eigenvalue", 1),
    "threshold": ("preconditioned", "threshold", 0),
    "stability": ("preconditioned", "stability", 0),
    "fixed_share": ("preconditioned", "fixed_share", 0),
}
"""Columns of the table: matrix, quantity and index of the measures."""

UNSTABLE = 1.0


def curvature_table(measures: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Collect the measures in one row for each (task, arm, seed, epoch).

    Args:
        measures: one table for each (task, arm), with a row for each (epoch, matrix, quantity,
            index).

    Returns:
        The columns of :data:`COLUMNS`, NaN if an arm lacks a quantity; standard errors of traces
        and norms (``…_error``); ``marked``, the names of the eigenvalues whose residual is above
        the tolerance, separated by spaces.
    """
    rows = []
    full = [m for m in measures if len(m)]
    for frame in full:
        for key, one in frame.groupby(KEYS, sort=False):
            found = {(r["matrix"], r["quantity"], r["index"]): r for r in records(one)}
            row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
            marked = []
            for name, place in COLUMNS.items():
                measured = found.get(place, {"value": np.nan, "error": np.nan, "good": True})
                row[name] = measured["value"]
                if name.endswith(("trace", "norm")):
                    row[f"{name}_error"] = measured["error"]
                if not measured["good"]:
                    marked.append(name)
            rows.append({**row, "marked": " ".join(marked)})
    return pd.DataFrame(rows)


def estimate_label(stage: str, probe: str) -> str:
    """Label of an estimate that is compared with the diagonal.

    Example:
        >>> estimate_label("raw", "gaussian"), estimate_label("denominator", "")
        ('one draw, Gaussian', 'in the denominator')
    """
    return "in the denominator" if stage == "denominator" else f"one draw, {PROBE_LABELS[probe]}"


def estimate_table(estimates: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate the comparisons of estimates with the diagonal; empty ones are left out."""
    full = [e for e in estimates if len(e)]
    return pd.concat(full, ignore_index=True) if full else pd.DataFrame(columns=KEYS)


def report(table: pd.DataFrame, estimates: pd.DataFrame, scale: str) -> str:
    """Report of the curvature tables in Markdown.

    Args:
        table: from :func:`curvature_table`.
        estimates: from :func:`estimate_table`.
        scale: name of the scale, such as ``base``.
    """
    parts = [
        f"# Curvature of networks, scale `{scale}`",
        "Curvature of the loss over a fixed set of training batches, with the running statistics "
        "of batch normalisation and without dropout. λ1 and λ2: largest eigenvalues of the Hessian "
        "H; * marks a residual above the tolerance. G: generalised Gauss–Newton matrix. ±: "
        "standard error. *Stability*: learning rate η times the largest eigenvalue of the Hessian "
        "as scaled by the arm's rule, divided by the stability threshold of that rule; 1 is the "
        "edge of stability. *Clipped*: share of coordinates that are left out because their steps "
        "are clipped.",
    ]
    for task in table["task"].unique():
        rows = table[table["task"] == task]
        parts += [f"## {TASK_LABELS[task]}", _sentence(rows), _markdown(rows)]
        of_task = estimates[estimates["task"] == task]
        if len(of_task):
            parts += [
                "### The optimizers' estimates compared with the diagonal",
                "At the last of these epochs. The diagonal is the mean over many Rademacher probes "
                "(random vectors of signs); the numbers are corrected for its noise.",
                _estimates_markdown(of_task),
            ]
    return "\n\n".join(parts) + "\n"


def _sentence(rows: pd.DataFrame) -> str:
    """Say which arms end above the stability threshold, and which solution is the flattest."""
    last = rows[rows["epoch"] == rows.groupby("arm")["epoch"].transform("max")]
    known = last[last["stability"].notna()]
    over = [get_arm(a).label for a in known[known["stability"] > UNSTABLE]["arm"]]
    flat = min(records(last), key=lambda r: float(r["eigenvalue_1"]))
    listed = ", ".join(over) if over else "none"
    label = get_arm(str(flat["arm"])).label
    return (
        f"Arms that end above the stability threshold: {listed} (of {len(known)}). {label} finds "
        f"the flattest solution: its λ1 is {_number(flat['eigenvalue_1'])}."
    )


def _markdown(rows: pd.DataFrame) -> str:
    head = [
        "arm",
        "epoch",
        "loss",
        "λ1",
        "λ2",
        "trace",
        "Frobenius",
        "λ1 of G",
        "stability",
        "clipped",
    ]
    body = []
    for r in records(rows):
        marked = str(r["marked"]).split()
        body.append(
            [
                get_arm(str(r["arm"])).label,
                str(r["epoch"]),
                _number(r["loss"]),
                *(
                    _number(r[name]) + "*" * (name in marked)
                    for name in ("eigenvalue_1", "eigenvalue_2")
                ),
                *(
                    f"{_number(r[name])} ± {_number(r[f'{name}_error'], 1)}"
                    for name in ("trace", "frobenius_norm")
                ),
                _number(r["gauss_newton_eigenvalue_1"]),
                _number(r["stability"]) + "*" * ("stability" in marked),
                "–" if np.isnan(r["fixed_share"]) else f"{100 * r['fixed_share']:.0f} %",
            ]
        )
    return markdown(head, body)


def _estimates_markdown(rows: pd.DataFrame) -> str:
    rows = rows[rows["epoch"] == rows.groupby("arm")["epoch"].transform("max")]
    body = []
    for key, one in rows.groupby(["arm", "stage", "probe"], sort=False):
        arm, stage, probe = map(str, key)
        values = {r["metric"]: r for r in records(one)}
        body.append(
            [
                f"{get_arm(arm).label}, {estimate_label(stage, probe)}",
                *(
                    f"{_number(values[m]['value'])} ± {_number(values[m]['error'], 1)}"
                    for m in ("cosine", "relative_error")
                ),
                _number(values["cosine"]["reference_noise"]),
            ]
        )
    return markdown(["estimate", "cosine", "relative error", "noise of the diagonal"], body)


def _number(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}g}"
