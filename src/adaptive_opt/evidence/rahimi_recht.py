"""The published Rahimi–Recht tables, for any arms, and the report that states them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.study import ARMS, TASKS

from .passage import first_passage, losses_by_seed, settling_iteration

__all__ = ["convergence_table", "decade_table", "report", "time_to_target_table"]

Histories = Sequence[pd.DataFrame]

_TASK_LABELS = {t.name: t.label for t in TASKS}
_ARM_LABELS = {a.name: a.label for a in ARMS}


def identify(history: pd.DataFrame) -> tuple[str, str]:
    """The (task, arm) that a history is of."""
    return str(history["task"].iloc[0]), str(history["arm"].iloc[0])


def best_seed(losses: pd.DataFrame) -> int:
    """The seed with the lowest final loss; a diverged one counts as infinite."""
    return int(losses.columns[int(losses.iloc[-1].fillna(np.inf).to_numpy().argmin())])


def convergence_table(histories: Histories, settled_within: float) -> pd.DataFrame:
    """Where the loss stops moving, of the best run of each arm and in the median.

    Args:
        histories: one for each (task, arm).
        settled_within: see :func:`.passage.settling_iteration`.

    Returns:
        A row for each (task, arm): the best run's seed, its final loss, the iteration and
        its share of the run in %, and the median share over the seeds.
    """
    rows = []
    for history in histories:
        task, arm = identify(history)
        losses = losses_by_seed(history)
        length = losses.index[-1]
        settled = losses.apply(settling_iteration, within=settled_within)
        best = best_seed(losses)
        rows.append(
            {
                "task": task,
                "arm": arm,
                "best_seed": best,
                "final_loss": losses[best].iloc[-1],
                "iteration": settled[best],
                "convergence_pct": 100 * settled[best] / length,
                "median_convergence_pct": 100 * settled.median() / length,
            }
        )
    return pd.DataFrame(rows)


def decade_table(histories: Histories) -> pd.DataFrame:
    """How many runs end in each decade of the loss.

    Returns:
        A row for each (task, arm); a column ``1e-4..1e-3`` for each decade that any run of
        any task ends in, a zero loss counted in the lowest, and ``diverged``.
    """
    finals = {identify(h): losses_by_seed(h).iloc[-1] for h in histories}
    floor = float(np.finfo(np.float32).tiny)
    decades = {
        key: np.floor(np.log10(f.dropna().clip(lower=floor))).astype(int)
        for key, f in finals.items()
    }
    every = [int(d) for column in decades.values() for d in column]
    columns = range(min(every), max(every) + 1) if every else range(0)
    rows = [
        {
            "task": task,
            "arm": arm,
            **{f"1e{d}..1e{d + 1}": int((decades[task, arm] == d).sum()) for d in columns},
            "diverged": int(final.isna().sum()),
        }
        for (task, arm), final in finals.items()
    ]
    return pd.DataFrame(rows)


def time_to_target_table(histories: Histories, targets: Mapping[str, float]) -> pd.DataFrame:
    """When the loss first passes a task's target, and how many seeds never do.

    Returns:
        A row for each (task, arm): the target, the number of seeds and of those that never
        pass, the median iteration of those that do, and the median over all seeds with
        "never" as infinity (infinite where more than half never pass).
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


def report(
    time_to_target: pd.DataFrame,
    convergence: pd.DataFrame,
    decades: pd.DataFrame,
    *,
    scale: str,
    settled_within: float,
) -> str:
    """The three tables in Markdown, each led by a sentence that says what it holds."""
    parts = [f"# Rahimi–Recht study, scale `{scale}`"]
    for task in time_to_target["task"].unique():
        rows = time_to_target[time_to_target["task"] == task]
        parts += [f"## {_TASK_LABELS[task]}", _sentences(rows), _passage_markdown(rows)]
        parts += [
            f"The loss of the best run stops moving (first comes within a factor of "
            f"{settled_within:g} of its final level) at:",
            _convergence_markdown(convergence[convergence["task"] == task]),
            "Runs by the decade their loss ends in:",
            _decades_markdown(decades[decades["task"] == task]),
        ]
    return "\n\n".join(parts) + "\n"


def _sentences(rows: pd.DataFrame) -> str:
    target, seeds = rows["target"].iloc[0], rows["seeds"].iloc[0]
    reached = rows[np.isfinite(rows["median_of_reached"])].sort_values("median_of_reached")
    never = rows[rows["never"] == rows["seeds"]]
    text = f"Training loss first at or below {target:g}, {seeds} seeds."
    if len(reached):
        order = "; ".join(
            "{} {:,.0f} ({} of {})".format(
                _ARM_LABELS[r["arm"]], r["median_of_reached"], r["seeds"] - r["never"], r["seeds"]
            )
            for r in _records(reached)
        )
        text += f" Median iteration of the seeds that get there: {order}."
    if len(never):
        text += " Never: " + "; ".join(_ARM_LABELS[a] for a in never["arm"]) + "."
    return text


def _passage_markdown(rows: pd.DataFrame) -> str:
    body = [
        [
            _ARM_LABELS[r["arm"]],
            _count(r["median_of_reached"]),
            _count(r["median_of_all"]),
            _range(r),
            "{never} of {seeds}".format(**r),
        ]
        for r in _records(rows)
    ]
    head = ["arm", "median, seeds that pass", "median, all seeds", "range", "never"]
    return _markdown(head, body)


def _convergence_markdown(rows: pd.DataFrame) -> str:
    body = [
        [
            _ARM_LABELS[r["arm"]],
            _count(r["iteration"]),
            _percent(r["convergence_pct"]),
            f"{r['final_loss']:.2g}",
            _percent(r["median_convergence_pct"]),
        ]
        for r in _records(rows)
    ]
    head = ["arm", "iteration", "of the run", "final loss", "median over seeds"]
    return _markdown(head, body)


def _decades_markdown(rows: pd.DataFrame) -> str:
    counts = rows.drop(columns=["task", "arm"])
    kept = [c for c in counts if c == "diverged" or counts[c].any()]
    body = [
        [_ARM_LABELS[arm], *(str(n) for n in numbers)]
        for arm, numbers in zip(rows["arm"], counts[kept].to_numpy().tolist(), strict=True)
    ]
    return _markdown(["arm", *map(str, kept)], body)


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]


def _range(row: dict[str, Any]) -> str:
    fastest, slowest = _count(row["fastest"]), _count(row["slowest_reached"])
    return "–" if fastest == "never" else f"{fastest} – {slowest}"


def _percent(value: float) -> str:
    return f"{value:.2f} %" if np.isfinite(value) else "–"


def _count(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "never"


def _markdown(head: list[str], body: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])
