"""What ``kedro run`` says last: where its results are, or what failed and how to go on."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from kedro.framework.hooks import hook_impl

from adaptive_opt.files import CHECKOUT, PROJECT, changed_at, is_remote

from ..tracking.run import UNSENT
from ..tracking.store import without_password
from ..tracking.training import ENVIRONMENT
from .results import path_of

__all__ = ["EXIT_FAILED_ARMS", "FAILED_ARMS", "OutcomeHooks", "command_line", "how_to_go_on"]
__all__ += ["where_results_are"]

CLOCKS_DIFFER = 1.0
"""Seconds by which a file may seem older than it is: not every disk tells parts of one."""

FAILED_ARMS = "adaptive_opt.failed_arms"
"""Key in the click context's ``meta``: arms that failed in this run, and why."""

EXIT_FAILED_ARMS = 3
"""Exit code of a run that is complete but for arms that failed."""

SEEN = (".png", ".csv", ".md")
"""Endings of files that are opened by themselves, not as a part of their folder."""

KINDS = ("report", "figures", "tables", "texts", "runs", "searches", "data")
"""Of results, in the order in which they are told."""


class OutcomeHooks:
    """Says at the end of a run what it made, and where; nothing of what was there before."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._done = 0
        self._failed: str | None = None
        self._tracked = ""

    @hook_impl(trylast=True)  # after TrackingHooks
    def before_pipeline_run(self) -> None:
        """Note the time."""
        self._begun, self._done, self._failed = time.time() - CLOCKS_DIFFER, 0, None
        self._tracked = _tracked_run()

    @hook_impl
    def after_node_run(self) -> None:
        """Count it."""
        self._done += 1

    @hook_impl
    def on_node_error(self, node: Any) -> None:
        """Remember which."""
        self._failed = node.name

    @hook_impl(trylast=True)
    def after_pipeline_run(self, pipeline: Any, catalog: Any) -> None:
        """Say where the results are."""
        made = _files_made(pipeline.all_outputs(), catalog, self._begun)
        sent = not (PROJECT / UNSENT).exists()  # TrackingHooks say what MLflow has not taken
        click.echo(where_results_are(made, PROJECT, self._tracked if sent else ""))
        failed = _failed_arms(pipeline.all_outputs(), catalog)
        if failed:
            click.echo(f"\nFailed, and left out: {len(failed)} of the arms.", err=True)
            for name, reason in failed.items():
                click.echo(f"  {name}: {reason}", err=True)
            click.echo(
                "Everything else is complete. Change their search space (tuning.spaces) and run "
                "the same command again.",
                err=True,
            )
        if (context := click.get_current_context(silent=True)) is not None:
            context.meta[FAILED_ARMS] = failed

    @hook_impl(trylast=True)
    def on_pipeline_error(self, pipeline: Any) -> None:
        """Say what failed, and how to go on; a fault that was there before any node says itself."""
        if not self._done and not self._failed:
            return
        at = f" in {self._failed}" if self._failed else ""
        click.echo(
            f"\nFailed{at}, after {self._done} of {len(pipeline.nodes)} nodes. {how_to_go_on()}",
            err=True,
        )


def how_to_go_on() -> str:
    """Why nothing is lost, and the command that goes on."""
    return (
        "What is finished is kept;\n"
        f"the same command goes on from there:\n    {command_line() or 'the same run'}"
    )


def command_line() -> str:
    """What was typed; empty in a notebook."""
    if click.get_current_context(silent=True) is None:
        return ""
    program = Path(sys.argv[0])
    named = program.name if program.suffix != ".py" else f"python -m {program.parent.name}"
    return shlex.join([*named.split(), *sys.argv[1:]])


def where_results_are(made: Mapping[str, Path], project: Path, tracked: str = "") -> str:
    """A line for each kind of result.

    Args:
        made: files, by the names of their datasets.
        project: what the paths are relative to.
        tracked: where its record in MLflow is.
    """
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for name, path in made.items():
        if kind := _kind(name, path):
            inside = path.is_relative_to(project)
            by_kind[kind].append(path.relative_to(project) if inside else path)
    lines = [
        f"  {kind:<9} {path}"
        for kind in KINDS
        for path in (by_kind[kind] if kind == "report" else _folders(by_kind[kind]))
    ]
    if tracked:
        lines.append(f"  {'MLflow':<9} {tracked}")
    if not lines:
        return "\nThis run left no files."
    return "\n".join(["\nMade by this run, in the project's folder:", *lines])


def _kind(name: str, path: Path) -> str | None:
    """Of a result; None: it comes with another."""
    namespace, _, last = name.rpartition(".")
    if last == "page":
        return "report"
    kinds = {".png": "figures", ".csv": "tables", ".md": "texts"}
    if path.suffix in kinds:
        return kinds[path.suffix]
    ends = {("training", "summary"): "runs", ("tuning", "best"): "searches"}
    ends |= {("data", "tensors"): "data", ("rr_synthesis", "function"): "data"}
    if namespace.startswith("analysis.ledger.") and last == "summary":
        return "runs"
    return ends.get((namespace.partition(".")[0], last))


def _folders(paths: Iterable[Path]) -> list[str]:
    """How many there are, and where, as one line; none where there are none."""
    paths = sorted(paths, key=str)
    if len(paths) < 2:
        return [str(path if path.suffix in SEEN else path.parent) for path in paths]
    shared = (p for p in paths[0].parents if all(p in path.parents for path in paths))
    if (above := next(shared, None)) is None:  # on several file systems
        return [line for kept in _by_file_system(paths) for line in _folders(kept)]
    below = sorted({path.relative_to(above).parts[0] for path in paths if path.parent != above})
    named = f": {', '.join(below)}" if below else ""
    return [f"{len(paths)} in {above}{named}"]


def _by_file_system(paths: Iterable[Path]) -> list[list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(str(path).partition("://")[0] if is_remote(path) else "", []).append(path)
    return list(found.values())


def _failed_arms(names: Iterable[str], catalog: Any) -> dict[str, str]:
    """Arms without a run, by ``task.arm``, and why."""
    found = {}
    for name in sorted(names):
        namespace, _, last = name.rpartition(".")
        if not (namespace.startswith("training.") and last == "summary" and catalog.exists(name)):
            continue
        if reason := catalog.load(name).get("failed"):
            found[namespace.removeprefix("training.")] = str(reason)
    return found


def _files_made(names: Iterable[str], catalog: Any, since: float) -> dict[str, Path]:
    """The files of datasets that were written since, by name."""
    found = {}
    for name in sorted(names):
        path = path_of(catalog.get(name))
        if path is not None and changed_at(path) >= since:
            found[name] = path
    return found


def _tracked_run() -> str:
    """Where the record of this run can be looked at; empty if there is none."""
    mlflow: Any = sys.modules.get("mlflow")
    if mlflow is None or ENVIRONMENT not in os.environ:
        return ""
    server = str(mlflow.get_tracking_uri())
    if server.startswith("http"):
        return without_password(server)
    by_hand = f"mlflow ui --backend-store-uri {without_password(server)}"
    return "make mlflow" if PROJECT == CHECKOUT else by_hand
