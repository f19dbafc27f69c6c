"""Nodes of the verdict; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptive_opt.parameters import (
    AnalysisParameters,
    resolve_arm,
    studies_of,
    task_parameters,
    training_parameters,
    with_values,
)

Runs = Sequence[tuple[str, str]]


def calibrate(
    task: str,
    names: Sequence[str],
    tensors: dict[str, Any],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    analysis: dict[str, Any],
    *bests: dict[str, Any],
) -> Any:
    """Measure the seconds a step of each of the arms ``names`` takes, with interleaved turns."""
    from adaptive_opt.engine.calibration import calibrate
    from adaptive_opt.tasks.load import task_data

    resolved = {}
    for arm, best in zip(names, bests, strict=True):
        values = next((v for v in studies_of(best) if v is not None), None)
        if values is not None:  # None: every search failed, so there is nothing to measure
            own = with_values(arms, task, arm, values)[task]
            settings = training_parameters(arm, training)
            share = {"curvature_share": settings.curvature_share}
            resolved[arm] = {**resolve_arm(arm, own, settings), **share}
    return calibrate(
        task_data(task, tensors),
        task=task,
        arms=resolved,
        task_parameters=task_parameters(task, tasks),
        training=training_parameters(names[0], training),
        settings=AnalysisParameters(**analysis).calibration,
    )


def judge(
    command: str,
    runs: Runs,
    tasks: dict[str, Any],
    analysis: dict[str, Any],
    scale: str,
    *found: Any,
) -> tuple[dict[str, Any], Any]:
    """Compute the verdict; return its record and the table of comparisons.

    ``found`` has the final losses by length of all runs, then their search records, then their
    summaries, and last the step costs of each task.
    """
    from importlib.metadata import version

    from adaptive_opt.evidence.verdict import build_verdict, comparison_table

    data = _task_data(runs, tasks, found)
    summaries = found[2 * len(runs) : 3 * len(runs)]
    packages = ("adaptive_opt", "kedro", "optuna", "numpy", "scipy", "torch")
    provenance = {
        "versions": {name: version(name) for name in packages},
        "commands": [f"{command} --env={scale}" if scale != "base" else command],
        "seeds": {f"{s['task']}.{s['arm']}": s["seeds"] for s in summaries},
    }
    settings = AnalysisParameters(**analysis).verdict.model_dump()
    verdict = build_verdict(data, settings, scale, provenance)
    return verdict.model_dump(mode="json"), comparison_table(verdict)


def _task_data(runs: Runs, tasks: dict[str, Any], found: Sequence[Any]) -> list[Any]:
    """Collect the results of each task; ``found`` as in :func:`judge`."""
    from adaptive_opt.evidence.verdict import TaskData

    number, names = len(runs), list(dict.fromkeys(task for task, _ in runs))
    lengths, bests, summaries = (found[i * number : (i + 1) * number] for i in range(3))
    prices = dict(zip(names, found[3 * number :], strict=True))

    def of_task(task: str, parts: Sequence[Any]) -> dict[str, Any]:
        return {arm: part for (t, arm), part in zip(runs, parts, strict=True) if t == task}

    return [
        TaskData(
            task=task,
            lengths=of_task(task, lengths),
            bests=of_task(task, bests),
            summaries=of_task(task, summaries),
            prices=prices[task] if len(prices[task]) else None,
            seeds=task_parameters(task, tasks).seeds,
        )
        for task in names
    ]


def measure_shares(runs: Runs, tasks: dict[str, Any], analysis: dict[str, Any], *found: Any) -> Any:
    """Measure the share of the whole matrix's speed-up; ``found`` as in :func:`judge`."""
    from adaptive_opt.evidence.judge import Judge
    from adaptive_opt.evidence.upward import share_table, shares

    settings = AnalysisParameters(**analysis).verdict.model_dump()
    data = _task_data(runs, tasks, found)
    return share_table([s for task in data for s in shares(Judge(task, settings))])


def draw_frontier(document: dict[str, Any], found: Any) -> tuple[Any, Any, str]:
    """Plot speed-up against price, with Plotly and Matplotlib; say the same in Markdown."""
    from adaptive_opt.evidence.schema import read_verdict
    from adaptive_opt.evidence.upward import paragraph, read_shares
    from adaptive_opt.plots import figure
    from adaptive_opt.plots.frontier import frontier_figure

    verdict, measured = read_verdict(document), read_shares(found)
    paragraphs = [paragraph(task, measured) for task in verdict.tasks]
    drawn = frontier_figure(verdict, paragraphs)
    text = "\n\n".join(["# The ladder upwards", *paragraphs]) + "\n"
    return figure.to_plotly(drawn), figure.to_matplotlib(drawn), text


def draw(document: dict[str, Any], *lengths: Any) -> tuple[Any, ...]:
    """Plot the figures of the verdict, each with Plotly and Matplotlib."""
    from adaptive_opt.evidence.schema import read_verdict
    from adaptive_opt.plots import figure, intervals
    from adaptive_opt.plots import verdict as plots

    verdict = read_verdict(document)
    drawn: list[Any] = []
    for metric in ("train_loss", "valid_loss"):
        curves = plots.length_figure(verdict, lengths, metric)
        drawn += [figure.to_plotly(curves), figure.to_matplotlib(curves)]
    charts = [
        plots.speedup_figure(verdict, "iteration"),
        plots.speedup_figure(verdict, "device_seconds"),
        plots.speedup_figure(verdict, "iteration", "valid_loss"),
        plots.ladder_figure(verdict),
    ]
    for chart in charts:
        drawn += [intervals.to_plotly(chart), intervals.to_matplotlib(chart)]
    return tuple(drawn)


def report(
    names: Sequence[str], tables: int, document: dict[str, Any], *found: Any
) -> tuple[str, str]:
    """Write the report as HTML and as Markdown.

    ``found`` has ``tables`` tables of final losses by length, then the figures ``names``.
    """
    from adaptive_opt.evidence.schema import read_verdict
    from adaptive_opt.evidence.summary import summary
    from adaptive_opt.plots.page import report_page

    verdict, figures = read_verdict(document), dict(zip(names, found[tables:], strict=True))
    return report_page(verdict, figures, found[:tables]), summary(verdict)
