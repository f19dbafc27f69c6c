"""The published Rahimi–Recht tables for any set of arms, and their report in Markdown."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .passage import last_rows, runs, settling_iteration
from .tables import (
    ARM_LABELS,
    TASK_LABELS,
    Histories,
    count,
    identify,
    markdown,
    passage_markdown,
    passage_sentences,
    percent,
    records,
)

__all__ = ["best_seed", "convergence_table", "decade_table", "report"]


def best_seed(history: pd.DataFrame) -> int | None:
    """Seed with the lowest final loss, the lowest seed among ties; None if all diverged."""
    finals = last_rows(history)["train_loss"].dropna()
    return int(finals.index[int(finals.to_numpy().argmin())]) if len(finals) else None


def convergence_table(histories: Histories, settled_within: float) -> pd.DataFrame:
    """Iteration at which the loss settles, for the best run of each arm and as median over seeds.

    Args:
        histories: one for each (task, arm).
        settled_within: see :func:`.passage.settling_iteration`.

    Returns:
        One row for each (task, arm): ``best_seed``, its ``final_loss``, the ``iteration`` at which
        it settles, the same in % of the run (``convergence_pct``), and the median percentage over
        the seeds that did not diverge (``median_convergence_pct``). Missing if all diverged.
    """
    rows = []
    for history in histories:
        task, arm = identify(history)
        losses = runs(history)
        settled = pd.Series({k: settling_iteration(v, settled_within) for k, v in losses.items()})
        share = 100 * settled / pd.Series({k: max(v.index[-1], 1) for k, v in losses.items()})
        best = best_seed(history)
        nothing = float("nan")
        rows.append(
            {
                "task": task,
                "arm": arm,
                "best_seed": best,
                "final_loss": nothing if best is None else losses[best].iloc[-1],
                "iteration": nothing if best is None else settled[best],
                "convergence_pct": nothing if best is None else share[best],
                "median_convergence_pct": share.median(),
            }
        )
    return pd.DataFrame(rows).astype({"best_seed": "Int64"})


def decade_table(histories: Histories) -> pd.DataFrame:
    """Number of runs by the decade of their final loss.

    Returns:
        One row for each (task, arm), with a column such as ``1e-4..1e-3`` for each decade from the
        lowest to the highest final loss of all runs, and ``diverged``. A loss of zero counts as the
        smallest float32 number.
    """
    finals = {identify(h): last_rows(h)["train_loss"] for h in histories}
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


def report(
    time_to_target: pd.DataFrame,
    convergence: pd.DataFrame,
    decades: pd.DataFrame,
    *,
    scale: str,
    settled_within: float,
) -> str:
    """Time to target, settling and final losses in Markdown, each table with a caption."""
    parts = [f"# Rahimi–Recht study, scale `{scale}`"]
    for task in time_to_target["task"].unique():
        rows = time_to_target[time_to_target["task"] == task]
        parts += [f"## {TASK_LABELS[task]}", passage_sentences(rows), passage_markdown(rows)]
        parts += [
            "Iteration at which the loss of the best run settles: it is first within a factor of "
            f"{settled_within:g} of its final level.",
            _convergence_markdown(convergence[convergence["task"] == task]),
            "Number of runs by the decade of their final loss:",
            _decades_markdown(decades[decades["task"] == task]),
        ]
    return "\n\n".join(parts) + "\n"


def _convergence_markdown(rows: pd.DataFrame) -> str:
    body = [
        [
            ARM_LABELS[r["arm"]],
            count(r["iteration"]),
            percent(r["convergence_pct"]),
            f"{r['final_loss']:.2g}" if np.isfinite(r["final_loss"]) else "–",
            percent(r["median_convergence_pct"]),
        ]
        for r in records(rows)
    ]
    head = ["arm", "iteration", "of the run", "final loss", "median over seeds"]
    return markdown(head, body)


def _decades_markdown(rows: pd.DataFrame) -> str:
    counts = rows.drop(columns=["task", "arm"])
    kept = [c for c in counts if c == "diverged" or counts[c].any()]
    body = [
        [ARM_LABELS[arm], *(str(n) for n in numbers)]
        for arm, numbers in zip(rows["arm"], counts[kept].to_numpy().tolist(), strict=True)
    ]
    return markdown(["arm", *map(str, kept)], body)
