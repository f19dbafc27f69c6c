"""Nodes of the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptive_opt.parameters import AnalysisParameters, target_losses


def _settings(analysis: dict[str, Any]) -> dict[str, Any]:
    return AnalysisParameters(**analysis).verdict.model_dump()


def fix_targets(tasks: dict[str, Any], analysis: dict[str, Any], *baselines: Any) -> dict[str, Any]:
    """Targets of every task; nothing but the first-order arms' histories comes in."""
    from adaptive_opt.evidence.verdict import fix_targets

    return fix_targets(baselines, target_losses(tasks), _settings(analysis))


def measure_times(targets: dict[str, Any], *histories: Any) -> Any:
    """When every run reaches every target, on three clocks."""
    from adaptive_opt.evidence.targets import times_to_targets

    levels = {
        task: {metric: found["levels"] for metric, found in metrics.items()}
        for task, metrics in targets.items()
    }
    return times_to_targets(histories, levels)


def decide(
    command: str,
    times: Any,
    targets: dict[str, Any],
    analysis: dict[str, Any],
    scale: str,
    *summaries: dict[str, Any],
) -> tuple[dict[str, Any], Any, Any]:
    """The record of the verdict, its comparisons as a table, and the performance profiles."""
    from importlib.metadata import version

    from adaptive_opt.evidence.verdict import build_verdict, comparison_table, profile_table

    packages = ("adaptive_opt", "kedro", "optuna", "numpy", "scipy", "statsmodels", "torch")
    provenance = {
        "versions": {name: version(name) for name in packages},
        "commands": [f"{command} --env={scale}" if scale != "base" else command],
        "seeds": {f"{s['task']}.{s['arm']}": s["seeds"] for s in summaries},
    }
    settings = _settings(analysis)
    verdict = build_verdict(times, targets, summaries, settings, scale, provenance)
    table, profiles = comparison_table(verdict), profile_table(times, targets)
    return verdict.model_dump(mode="json"), table, profiles


def draw(document: dict[str, Any], profiles: Any) -> tuple[Any, ...]:
    """The figures of the verdict, each for the browser and as PNG."""
    from adaptive_opt.evidence.answer import CLOCK_WORDS
    from adaptive_opt.evidence.schema import Verdict
    from adaptive_opt.plots import figure, intervals
    from adaptive_opt.plots import verdict as plots

    verdict = Verdict(**document)
    charts = [plots.ratio_figure(verdict, clock) for clock in CLOCK_WORDS]
    drawn: list[Any] = []
    for chart in (*charts, plots.ladder_figure(verdict)):
        drawn += [intervals.to_plotly(chart), intervals.to_matplotlib(chart)]
    staircase = plots.profile_figure(profiles)
    return (*drawn, figure.to_plotly(staircase), figure.to_matplotlib(staircase))


def report(names: Sequence[str], document: dict[str, Any], *figures: Any) -> tuple[str, str]:
    """The page, and the same in Markdown."""
    from adaptive_opt.evidence.schema import Verdict
    from adaptive_opt.evidence.summary import summary
    from adaptive_opt.plots.page import report_page

    verdict = Verdict(**document)
    return report_page(verdict, dict(zip(names, figures, strict=True))), summary(verdict)
