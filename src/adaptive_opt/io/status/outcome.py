"""Where results are: the last lines of ``kedro run``, and finished runs for a notebook."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from kedro.framework.hooks import hook_impl

from adaptive_opt.errors import StudyError
from adaptive_opt.files import PROJECT, at, changed_at
from adaptive_opt.study import Task, arms_on

__all__ = ["EXIT_FAILED_ARMS", "FAILED_ARMS", "OutcomeHooks", "command_line", "how_to_continue"]
__all__ += ["load_runs", "path_of", "where_results_are"]

logger = logging.getLogger(__name__)

CLOCK_TOLERANCE = 1.0
"""Seconds that a file may seem too old: some disks store whole seconds."""

FAILED_ARMS = "adaptive_opt.failed_arms"
"""Key in the click context's ``meta``: the arms that failed in this run, and why."""

EXIT_FAILED_ARMS = 3
"""Exit code of a run that is complete except for arms that failed."""

KINDS = ("figures", "tables", "texts", "runs", "searches", "data")
"""Kinds of results in the order in which they are printed, after the reports."""

SUFFIXES = {".png": "figures", ".csv": "tables", ".md": "texts"}
DATASETS = {
    ("training", "summary"): "runs",
    ("tuning", "best"): "searches",
    ("data", "tensors"): "data",
    ("rr_synthesis", "function"): "data",
}
"""Kinds by the first and the last part of a dataset's name; others come with these."""


class OutcomeHooks:
    """Print at the end of a run what it made and where.

    Args:
        tracked: returns the address of the last run in MLflow; empty if it has none.
    """

    def __init__(self, tracked: Callable[[], str] = lambda: "") -> None:
        self._begun, self._started, self._failed = 0.0, False, ""
        self._tracked = tracked

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Store the time."""
        self._begun, self._started, self._failed = time.time() - CLOCK_TOLERANCE, False, ""

    @hook_impl
    def before_node_run(self) -> None:
        """Store that a node has started."""
        self._started = True

    @hook_impl
    def on_node_error(self, node: Any) -> None:
        """Store which node failed."""
        self._failed = node.name

    @hook_impl(trylast=True)
    def after_pipeline_run(self, pipeline: Any, catalog: Any) -> None:
        """Print where the results are, and which arms failed."""
        paths = {name: path_of(catalog.get(name)) for name in sorted(pipeline.all_outputs())}
        made = {n: path for n, path in paths.items() if path and changed_at(path) >= self._begun}
        click.echo(where_results_are(made, PROJECT, self._tracked()))
        if failed := _failed_arms(paths, catalog):
            click.echo(f"\nFailed, and left out: {len(failed)} of the arms.", err=True)
            for name, reason in failed.items():
                click.echo(f"  {name}: {reason}", err=True)
            click.echo(
                "The rest is complete. Change their search space (tuning.spaces) and run "
                "the same command again.",
                err=True,
            )
        if (context := click.get_current_context(silent=True)) is not None:
            context.meta[FAILED_ARMS] = failed

    @hook_impl(trylast=True)
    def on_pipeline_error(self) -> None:
        """Print which node failed and how to continue, if any node has started."""
        if self._started or self._failed:
            failed = f" in {self._failed}" if self._failed else ""
            click.echo(f"\nFailed{failed}. {how_to_continue()}", err=True)


def how_to_continue() -> str:
    """Return how to continue after an error, with the command."""
    command = command_line() or "the same command"
    return f"Finished results are kept. To continue, run\n    {command}"


def command_line() -> str:
    """Return the command that was typed; empty outside of the command line."""
    if click.get_current_context(silent=True) is None:
        return ""
    program = Path(sys.argv[0])
    name = program.name if program.suffix != ".py" else f"python -m {program.parent.name}"
    return shlex.join([*name.split(), *sys.argv[1:]])


def where_results_are(made: Mapping[str, Path], project: Path, tracked: str = "") -> str:
    """Return a line for each kind of result.

    Args:
        made: files by the names of their datasets.
        project: folder that paths are relative to.
        tracked: where MLflow has the record of this run.
    """
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for name, path in made.items():
        inside = path.is_relative_to(project)
        by_kind[_kind(name, path)].append(path.relative_to(project) if inside else path)
    lines = [f"  {'report':<9} {path}" for path in by_kind["report"]]
    lines += [f"  {kind:<9} {_summary(by_kind[kind])}" for kind in KINDS if by_kind[kind]]
    if tracked:
        lines.append(f"  {'MLflow':<9} {tracked}")
    if not lines:
        return "\nThis run left no files."
    return "\n".join(["\nMade by this run, in the project's folder:", *lines])


def _kind(name: str, path: Path) -> str:
    parts = name.split(".")
    first, last = parts[0], parts[-1]
    if last == "page":
        return "report"
    if name.startswith("analysis.ledger.") and last == "summary":
        return "runs"
    return SUFFIXES.get(path.suffix) or DATASETS.get((first, last), "")


def _summary(paths: Sequence[Path]) -> str:
    """Return where some files are, and how many."""
    first = paths[0]
    if len(paths) == 1:
        return str(first if first.suffix in SUFFIXES else first.parent)
    above = next((p for p in first.parents if all(p in path.parents for path in paths)), None)
    if above is None:  # on several file systems
        return f"{len(paths)} in {', '.join(sorted({str(path.parent) for path in paths}))}"
    below = sorted({p.relative_to(above).parts[0] for p in paths if p.parent != above})
    return f"{len(paths)} in {above}" + (f": {', '.join(below)}" if below else "")


def _failed_arms(names: Iterable[str], catalog: Any) -> dict[str, str]:
    """Return why arms failed, by ``task.arm``."""
    found = {}
    for name in names:
        is_summary = name.startswith("training.") and name.endswith(".summary")
        if is_summary and catalog.exists(name) and (reason := catalog.load(name).get("failed")):
            found[name.removeprefix("training.").removesuffix(".summary")] = str(reason)
    return found


def path_of(dataset: Any) -> Path | None:
    """Return the file or folder of a dataset; None if it has none."""
    name = getattr(dataset, "_name", None) or getattr(dataset, "_filepath", None)
    return None if name is None else at(str(name))


def load_runs(
    catalog: Any, tasks: Sequence[Task], arms: Iterable[str], part: str = "history"
) -> list[Any]:
    """Load one dataset of each run of some arms on some tasks, in the order of the grid.

    Runs that do not exist are left out, and a warning names them.

    Args:
        catalog: Kedro's catalog, as ``%reload_kedro`` creates it.
        tasks: the tasks, for example from :func:`adaptive_opt.study.tasks_of`.
        arms: names of the arms.
        part: ``history``, ``lengths``, ``summary`` or ``weights``.

    Raises:
        StudyError: no run exists.
    """
    chosen = list(arms)
    names = [f"training.{t.name}.{a}.{part}" for t in tasks for a in arms_on(t, chosen)]
    found = [name for name in names if catalog.exists(name)]
    missing = ", ".join(sorted({*names} - {*found}))
    if not found:
        raise StudyError(f"nothing has been trained at this scale; run kedro run: {missing}")
    if missing:
        logger.warning("not trained yet, and left out: %s", missing)
    return [catalog.load(name) for name in found]
