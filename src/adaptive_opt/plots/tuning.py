"""Figures of a search: those of Optuna, and the expected best of n trials."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from adaptive_opt.evidence.tuning import best_of_n
from adaptive_opt.search.spaces import Dimension, Space
from adaptive_opt.study import get_arm, get_task

from .colours import arm_style
from .figure import Figure, Line, Panel
from .template import white_background

__all__ = ["SEARCH_FIGURES", "best_of_n_figure", "search_figures"]

TREES = 64
"""Largest number of trees in the forest of fANOVA."""

SEARCH_FIGURES = ("history", "parallel_coordinates", "importances", "slice")


@white_background()
def search_figures(trials: pd.DataFrame, best: dict[str, Any]) -> list[go.Figure]:
    """Draw the :data:`SEARCH_FIGURES` of one study, in this order.

    Args:
        trials: table of trials.
        best: contents of ``best.json``.
    """
    label = f"{get_arm(best['arm']).label} on {get_task(best['task']).label}"
    seen = trials[trials["outcome"] == "complete"] if len(trials) else trials
    seen = seen[np.isfinite(seen["value"])] if len(seen) else seen
    if best["source"] != "search" or len(seen) < 2:
        reason = "given configuration: nothing was searched"
        if best["source"] == "search":
            reason = f"{len(seen)} complete trial: too few to draw"
        return [_empty(f"{label}: {name}", reason) for name in SEARCH_FIGURES]
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = Space({n: Dimension(*d) for n, d in best["space"].items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study()
        for row in seen.to_dict("records"):
            study.add_trial(
                optuna.create_trial(
                    params=space.encode({n: row[n] for n in space}),
                    distributions=space.distributions(),
                    value=row["value"],
                )
            )
        draw = optuna.visualization
        name = best["objective"].replace("_", " ")
        figures = [
            draw.plot_optimization_history(study, target_name=name),
            draw.plot_parallel_coordinate(study, target_name=name),
            _importances(study, name),
            draw.plot_slice(study, target_name=name),
        ]
    for figure, kind in zip(figures, SEARCH_FIGURES, strict=True):
        words = {"importances": "importances (fANOVA)"}.get(kind, kind.replace("_", " "))
        figure.update_layout(title=f"{label}: {words}")
    return figures


def _importances(study: Any, name: str) -> go.Figure:
    import optuna

    # PED-ANOVA is faster but uses the best tenth only: one or two of so few trials.
    trees = min(TREES, 4 * len(study.trials))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=0)
    try:
        return optuna.visualization.plot_param_importances(
            study, evaluator=evaluator, target_name=name
        )
    except (ValueError, RuntimeError) as error:  # all trials have the same value
        return _empty("importances", str(error))


def _empty(title: str, reason: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(title=title)
    return figure.add_annotation(text=reason, showarrow=False, font={"size": 14})


def best_of_n_figure(tables: Sequence[pd.DataFrame]) -> Figure:
    """Expected best of n random trials for every arm, one panel for each task.

    Args:
        tables: tables of trials, one for each (task, arm).
    """
    by_task: dict[str, list[Line]] = {}
    for table in tables:
        if not len(table):
            continue
        task, arm = str(table["task"].iloc[0]), str(table["arm"].iloc[0])
        random = table[(table["drawn"] == "at random") & (table["outcome"] != "failed")]
        curve = best_of_n(random["value"].fillna(np.inf).to_numpy())
        curve = np.where(np.isfinite(curve), curve, np.nan)
        line = Line(
            np.arange(1, len(curve) + 1),
            curve,
            get_arm(arm).label,
            *arm_style(arm),
        )
        by_task.setdefault(task, []).append(line)
    panels = [
        Panel(get_task(t).label, lines, "expected best", x_label="random trials", y_log=True)
        for t, lines in by_task.items()
    ]
    caption = (
        "Expected best value of the search objective among n random trials; lower is better. The "
        "earlier a curve flattens, the less tuning the arm needs. A curve starts where not all n "
        "trials can have diverged."
    )
    return Figure("How good is the best of n random trials?", panels, caption=caption)
