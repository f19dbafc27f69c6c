"""Nodes of ``tuning``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from typing import Any


def search(
    task: str,
    arm: str,
    tensors: dict[str, Any],
    storage: Any,
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    tuning: dict[str, Any],
    analysis: dict[str, Any],
    scale: str,
) -> tuple[Any, dict[str, Any]]:
    """Search the configuration of an arm; return all trials and the record of the best ones.

    A search whose budget is spent is read from the database.
    """
    if tuning["source"] == "published":  # needs no database
        from adaptive_opt.search.arm import as_published

        return as_published(task, arm)
    from adaptive_opt.search.arm import search_arm

    parameters = {"tasks": tasks, "arms": arms, "training": training, "tuning": tuning}
    parameters["analysis"] = analysis
    return search_arm(task, arm, tensors, parameters, scale, storage)


def draw(trials: Any, best: dict[str, Any]) -> tuple[Any, ...]:
    """Plot Optuna's figures of the searches for an arm with Plotly."""
    from adaptive_opt.plots.tuning import search_figures

    return tuple(search_figures(trials, best))


def compare(scale: str, *bests_and_trials: Any) -> tuple[Any, str, Any, Any]:
    """Compare all searches: table, report, and best-of-n figure with Plotly and Matplotlib."""
    from adaptive_opt.evidence.tuning import report, search_table
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly
    from adaptive_opt.plots.tuning import best_of_n_figure

    half = len(bests_and_trials) // 2
    table = search_table(bests_and_trials[:half])
    figure = best_of_n_figure(bests_and_trials[half:])
    return table, report(table, scale), to_plotly(figure), to_matplotlib(figure)
