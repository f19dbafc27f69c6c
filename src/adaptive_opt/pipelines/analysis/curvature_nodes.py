"""Nodes of ``analysis.curvature``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import (
    AnalysisParameters,
    resolve_arm,
    task_parameters,
    training_parameters,
    values_of_seed,
    with_values,
)


def measure(
    task: str,
    arm: str,
    tensors: dict[str, Any],
    snapshots: dict[str, Any],
    best: dict[str, Any],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
    analysis: dict[str, Any],
) -> tuple[Any, Any, Any]:
    """Measure spectra, spectral densities and errors of estimates at an arm's snapshots."""
    from adaptive_opt.engine.curvature import measure_network
    from adaptive_opt.tasks.load import task_data

    settings = training_parameters(arm, training)
    return measure_network(
        task_data(task, tensors),
        snapshots,
        task=task,
        arm=arm,
        **resolve_arm(arm, with_values(arms, task, arm, values_of_seed(best))[task], settings),
        task_parameters=task_parameters(task, tasks),
        training=settings,
        settings=AnalysisParameters(**analysis).curvature,
    )


def look_around(
    task: str,
    arm: str,
    pair: tuple[str, str],
    tensors: dict[str, Any],
    snapshots: dict[str, Any],
    first: dict[str, Any],
    second: dict[str, Any],
    tasks: dict[str, Any],
    training: dict[str, Any],
    analysis: dict[str, Any],
) -> tuple[Any, Any]:
    """Compute the loss on a plane around an arm's solution, and on a line between two solutions.

    ``snapshots`` belong to ``arm``, ``first`` and ``second`` to the arms in ``pair``.

    Raises:
        StudyError: an arm has no snapshot of its first seed.
    """
    from adaptive_opt.engine.curvature import CurvatureOfNetwork
    from adaptive_opt.engine.snapshots import read_snapshots
    from adaptive_opt.engine.surroundings import network_line, network_surface
    from adaptive_opt.tasks.load import task_data

    settings = AnalysisParameters(**analysis).curvature
    ends = []
    for name, kept in zip((arm, *pair), (snapshots, first, second), strict=True):
        found = [s for s in read_snapshots(kept) if s.seed == 0]
        if not found:
            raise StudyError(
                f"{task}, {name}: there are no weight snapshots; set "
                f"tasks.{task}.snapshot_epochs and train again"
            )
        ends.append(found[-1])
    place = CurvatureOfNetwork(
        task_data(task, tensors),
        task,
        task_parameters(task, tasks),
        training_parameters(arm, training),
        settings,
        seed=0,
    )
    surface = network_surface(place, ends[0], settings, f"{task} surface")
    return surface, network_line(place, ends[1], ends[2], settings, f"{task} line")


def find_spectra(
    task: str, arms: Sequence[str], tensors: dict[str, Any], tasks: dict[str, Any], *kept: Any
) -> Any:
    """Compute all eigenvalues of the exact Hessians at the snapshots of the arms."""
    from adaptive_opt.engine.exact_spectra import rahimi_recht_spectra
    from adaptive_opt.tasks.load import task_data

    return rahimi_recht_spectra(
        task_data(task, tensors),
        dict(zip(arms, kept, strict=True)),
        task=task,
        task_parameters=task_parameters(task, tasks),
    )


def draw_spectra(task: str, spectra: Any) -> tuple[Any, Any]:
    """Plot the spectra with Plotly and Matplotlib."""
    from adaptive_opt.plots.curvature import spectra_figure
    from adaptive_opt.plots.maps import maps_to_matplotlib, maps_to_plotly

    figure = spectra_figure(spectra, task)
    return maps_to_plotly(figure), maps_to_matplotlib(figure)


def tabulate(scale: str, *measures_estimates: Any) -> tuple[Any, Any, str]:
    """Return the tables of curvature and of estimates of all runs, and the report."""
    from adaptive_opt.evidence.curvature import curvature_table, estimate_table, report

    half = len(measures_estimates) // 2
    table = curvature_table(measures_estimates[:half])
    estimates = estimate_table(measures_estimates[half:])
    return table, estimates, report(table, estimates, scale)


def draw(name: str, *tables: Any) -> tuple[Any, Any]:
    """Plot a figure of :mod:`adaptive_opt.plots.curvature` with Plotly and Matplotlib."""
    from adaptive_opt.plots import curvature as plots
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly

    drawing = getattr(plots, f"{name}_figure")
    figure = drawing(tables) if name == "density" else drawing(*tables)
    return to_plotly(figure), to_matplotlib(figure)


def draw_surroundings(
    names: Sequence[str], arm: str, pair: tuple[str, str], *surfaces_lines: Any
) -> tuple[Any, ...]:
    """Plot contours of the loss surfaces, and the losses on the lines."""
    from adaptive_opt.plots.curvature import line_figure, surface_figure
    from adaptive_opt.plots.figure import to_matplotlib, to_plotly
    from adaptive_opt.plots.maps import maps_to_matplotlib, maps_to_plotly

    surfaces, lines = surfaces_lines[: len(names)], surfaces_lines[len(names) :]
    plane = surface_figure(dict(zip(names, surfaces, strict=True)), arm)
    line = line_figure(dict(zip(names, lines, strict=True)), pair)
    return maps_to_plotly(plane), maps_to_matplotlib(plane), to_plotly(line), to_matplotlib(line)
