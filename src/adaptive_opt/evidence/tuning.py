"""Results and cost of the searches: table, best-of-n curve and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adaptive_opt.study import get_arm, get_task

from .tables import markdown

__all__ = ["best_of_n", "report", "search_table"]

OBJECTIVE_WORDS = {
    "time_to_target": "time to target, as a share of the trial; for a trial that does not reach "
    "the target, 1 plus the decades by which it misses",
    "train_loss": "last training loss",
    "valid_loss": "lowest validation loss",
}


def best_of_n(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected best value among n random trials, drawn without replacement, for n = 1 … N.

    E[min] = Σ_i v₍ᵢ₎ · C(N−i, n−1) / C(N, n), with v₍₁₎ ≤ … ≤ v₍N₎: the i-th lowest is the lowest
    of n trials if the other n−1 are among the N−i above it. The curve shows how much tuning an arm
    needs (Dodge et al., *Show Your Work*, 2019, with replacement). It is infinite as long as all n
    trials can be diverged ones.

    Args:
        values: ``[N]``, values of trials drawn uniformly at random; inf for diverged trials.

    Returns:
        ``[N]``, the expected best of 1 … N trials.

    Example:
        >>> best_of_n([3.0, 1.0, 2.0]).round(6).tolist()
        [2.0, 1.333333, 1.0]
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    total = len(ordered)
    expected = np.empty(total)
    for n in range(1, total + 1):
        # Probability that the i-th lowest is the best, computed from the previous one.
        weights = np.zeros(total)
        weights[0] = n / total
        for i in range(1, total - n + 1):
            weights[i] = weights[i - 1] * (total - n - i + 1) / (total - i)
        used = weights > 0
        expected[n - 1] = float(np.sum(weights[used] * ordered[used]))
    return expected


def search_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Best configuration, its value and the cost of the search, one row for each (task, arm).

    Args:
        records: contents of the ``best.json`` files.
    """
    rows = []
    for record in records:
        trials = record.get("trials", {})
        rows.append(
            {
                "task": record["task"],
                "arm": record["arm"],
                "source": record["source"],
                "objective": record.get("objective", ""),
                "value": record.get("value", np.nan),
                "configuration": ", ".join(f"{n} {v:.4g}" for n, v in record["values"].items()),
                "at_bound": ", ".join(
                    f"{n} ({edge}: {record['space'][n][edge == 'high']:g})"
                    for n, edge in record["edges"].items()
                ),
                **{o: trials.get(o, 0) for o in ("complete", "pruned", "diverged", "failed")},
                "budget": record.get("budget", 0.0),
                "spent": record.get("spent", 0.0),
                "seconds": record.get("seconds", 0.0),
            }
        )
    return pd.DataFrame(rows)


def report(table: pd.DataFrame, scale: str) -> str:
    """Report of the searches in Markdown."""
    parts = [f"# Hyperparameter search, scale `{scale}`"]
    for task, rows in table.groupby("task", sort=False):
        parts.append(f"## {get_task(str(task)).label}")
        searched = rows[rows["source"] == "search"]
        if searched.empty:
            parts.append("Published configurations; nothing was searched.")
            continue
        objective = OBJECTIVE_WORDS[searched["objective"].iloc[0]]
        parts.append(
            f"Objective (lower is better): {objective}. Budget of every arm: "
            f"{searched['budget'].iloc[0]:,.0f} gradient-equivalents, each the cost of a gradient."
        )
        head = ["arm", "best", "configuration", "complete", "pruned", "diverged", "failed"]
        body = [
            [
                get_arm(row["arm"]).label,
                "as given" if row["source"] != "search" else f"{row['value']:.4g}",
                row["configuration"],
                *(str(row[o]) for o in head[3:]),
                f"{100 * row['spent'] / row['budget']:.1f} %" if row["budget"] else "–",
                f"{row['seconds']:.1f}",
            ]
            for row in rows.to_dict("records")
        ]
        parts.append(markdown([*head, "of the budget", "seconds"], body))
        flagged = rows[rows["at_bound"] != ""]
        if len(flagged):
            listed = "; ".join(
                f"{get_arm(r['arm']).label}: {r['at_bound']}" for r in flagged.to_dict("records")
            )
            parts.append(
                f"Within 2 % of a bound of the search space: {listed}. Better values may lie "
                "beyond it; `tuning.widen: 1` searches a wider space."
            )
    return "\n\n".join(parts) + "\n"
