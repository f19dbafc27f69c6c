"""Effect of each defect of the original study on its Rahimi–Recht tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.switches import BASELINE, CLIP_NORM, VARIANTS, get_variant

from .passage import first_passage, losses_by_seed, settling_iteration

__all__ = ["PUBLISHED_SETTLING", "Histories", "ledger_table", "precision_table", "target_table"]

PUBLISHED_SETTLING = {
    "rr_cond29": {"ssdh": 1.12, "sadh": 4.21, "ssvp": 5.22, "sophia": 25.28},
    "rr_cond15099": {"ssvp": 22.83, "sadh": 31.39, "sophia": 43.92, "ssdh": 75.45},
}
"""Iteration at which the loss of the best of 16 runs settles, in % of 24,000 iterations, from the
original study's table of Rahimi–Recht convergence (also in ``docs/results``)."""

Histories = Mapping[tuple[str, str], pd.DataFrame]
"""By (variant, task): columns arm, seed, iteration, train_loss and gradient_norm."""

Losses = dict[tuple[str, str, str], pd.DataFrame]


def ledger_table(
    histories: Histories, targets: Mapping[str, float], settled_within: float
) -> pd.DataFrame:
    """Compare each variant with the variant that it changes.

    All losses are root mean squared errors, even if the mean squared error was trained on. The time
    to target of a seed that never reaches the target is infinite.

    Args:
        histories: every variant and task, including those that others are compared with.
        targets: target root mean squared error of each task.
        settled_within: see :func:`.passage.settling_iteration`.

    Returns:
        One row for each (variant, task, arm):

        - ``median_iterations``: median time to target over all seeds; ``never``: number of seeds
          that do not reach it; ``median_of_reached``: median of the others;
        - ``ratio``: the median relative to that of the variant ``against``; NaN if either is
          infinite;
        - ``faster``, ``slower``: number of seeds that reach the target earlier or later than the
          same seed of ``against``; ``unchanged``: whether all losses are equal bit for bit;
        - ``rank``: among the arms of the variant; missing if no seed reaches the target;
        - ``final_loss``: median; ``final_spread``: standard deviation of its log10 over seeds;
        - ``best_final_loss``, ``settled_iteration``, ``settled_pct``: the best run and when it
          settles; ``published_pct``: the published value;
        - ``clipped_share``: share of clipped gradients; NaN without clipping.
    """
    losses = _losses(histories)
    rows = []
    for (variant, task, arm), own in losses.items():
        against = get_variant(variant).against
        rows.append(
            {
                "variant": variant,
                "against": against,
                "task": task,
                "arm": arm,
                **_passages(own, losses[against, task, arm], targets[task]),
                **_ends(own, settled_within),
                "published_pct": PUBLISHED_SETTLING.get(task, {}).get(arm, math.nan),
                "clipped_share": _clipped_share(histories[variant, task], variant, arm),
            }
        )
    table = pd.DataFrame(rows)
    table.insert(list(table).index("unchanged"), "rank", _ranks(table))
    return table


def _losses(histories: Histories) -> Losses:
    """Root mean squared errors, iterations × seeds, ordered by variant."""
    order = {v.name: i for i, v in enumerate(VARIANTS)}
    found: Losses = {}
    for variant, task in sorted(histories, key=lambda key: order[key[0]]):
        history = histories[variant, task]
        squared = get_variant(variant).task.get("loss") == "mse"
        for arm in dict.fromkeys(history["arm"]):
            losses = losses_by_seed(history[history["arm"] == arm])
            found[variant, task, arm] = losses**0.5 if squared else losses
    return found


def _passages(own: pd.DataFrame, other: pd.DataFrame, target: float) -> dict[str, Any]:
    passed, before = first_passage(own, target), first_passage(other, target)
    reached = passed[np.isfinite(passed)]
    median, reference = float(passed.median()), float(before.median())
    return {
        "target": target,
        "seeds": len(passed),
        "median_iterations": median,
        "never": len(passed) - len(reached),
        "median_of_reached": float(reached.median()) if len(reached) else math.inf,
        "ratio": _ratio(median, reference),
        "faster": int((passed < before).sum()),
        "slower": int((passed > before).sum()),
        "unchanged": bool(np.array_equal(own.to_numpy(), other.to_numpy(), equal_nan=True)),
    }


def _ratio(value: float, reference: float) -> float:
    """Quotient; NaN if either is infinite or the reference is 0."""
    finite = math.isfinite(value) and math.isfinite(reference)
    return value / reference if finite and reference > 0 else math.nan


def _ends(losses: pd.DataFrame, settled_within: float) -> dict[str, Any]:
    final = losses.iloc[-1]
    best = int(str(final.fillna(np.inf).idxmin()))
    settled = settling_iteration(losses[best], settled_within)
    logarithms = np.log10(final.dropna().clip(lower=float(np.finfo(np.float32).tiny)))
    return {
        "final_loss": float(final.median()),
        "final_spread": float(logarithms.std(ddof=0)),
        "best_final_loss": float(final[best]),
        "settled_iteration": settled,
        "settled_pct": 100 * settled / float(losses.index[-1]),
    }


def _clipped_share(history: pd.DataFrame, variant: str, arm: str) -> float:
    """Share of the recorded gradients whose norm is at the clipping limit."""
    if get_variant(variant).task.get("max_grad_norm") is None:
        return math.nan
    norms = history.loc[history["arm"] == arm, "gradient_norm"].dropna()
    return float((norms > (1 - 1e-3) * CLIP_NORM).mean()) if len(norms) else math.nan


def _ranks(table: pd.DataFrame) -> pd.Series:
    """Rank by median over all seeds, then by number of seeds that arrive, then by their median."""
    order = ["median_iterations", "never", "median_of_reached"]
    keys = pd.Series([tuple(row) for row in table[order].to_numpy().tolist()], index=table.index)
    ranks = pd.Series(pd.NA, index=table.index, dtype="Int64")
    for _, rows in table.groupby(["variant", "task"], sort=False):
        reaching = rows.index[rows["never"] < rows["seeds"]]
        for i in reaching:
            ranks[i] = 1 + sum(keys[j] < keys[i] for j in reaching)
    return ranks


def target_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare two targets: each arm's own final loss (best run), and one target for all arms.

    Args:
        ledger: from :func:`ledger_table`.

    Returns:
        One row for each (task, arm) of the baseline: ``own_target``, the final loss of the best
        run; ``own_iteration``, when that run settles, and ``own_rank``; the task's ``target``;
        ``median_iterations`` to it over all seeds; ``never``, the number of seeds that do not reach
        it; ``rank``.
    """
    base = ledger[ledger["variant"] == BASELINE]
    own_rank = base.groupby("task", sort=False)["settled_iteration"].rank(method="min")
    return pd.DataFrame(
        {
            "task": base["task"],
            "arm": base["arm"],
            "own_target": base["best_final_loss"],
            "own_iteration": base["settled_iteration"],
            "own_rank": own_rank.astype("Int64"),
            "target": base["target"],
            "seeds": base["seeds"],
            "median_iterations": base["median_iterations"],
            "never": base["never"],
            "rank": base["rank"],
        }
    ).reset_index(drop=True)


def precision_table(found: Mapping[tuple[str, str], pd.DataFrame]) -> pd.DataFrame:
    """Compare Hessian eigenvalues in float32 and float64.

    Args:
        found: by (task, arm), a table with one row for each point from
            :func:`adaptive_opt.engine.rahimi_recht.hessian_precision`. The arm ``minimum`` stands
            for a global minimum.

    Returns:
        One row for each (task, arm): the number of ``points``, and medians over them.
    """
    rows = [
        {"task": task, "arm": arm, "points": len(frame), **frame.median().to_dict()}
        for (task, arm), frame in found.items()
    ]
    return pd.DataFrame(rows)
