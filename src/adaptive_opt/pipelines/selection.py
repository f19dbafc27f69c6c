"""Pipelines of whole studies, whose tags select smaller studies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kedro.pipeline import Pipeline

from adaptive_opt.study import Run, run_tags

__all__ = ["StudyPipeline"]

MAX_NAME_LENGTH = 60
"""Maximum length of a study's name, which is also the name of a folder."""

Build = Callable[[str, Sequence[Run], str], Pipeline]


class StudyPipeline(Pipeline):
    """A study whose tags select a smaller study with its own verdict and report.

    Kedro's filter would keep only tagged nodes, and so drop the analysis, which needs all runs.

    Args:
        prefix: prefix of the names of outputs.
        runs: the (task, arm) pairs.
        command: the command that runs the study, for its report.
        build: creates the pipeline of a study from ``prefix``, ``runs`` and ``command``.
    """

    def __init__(self, prefix: str, runs: Sequence[Run], command: str, build: Build) -> None:
        super().__init__(build(prefix, runs, command))
        self.prefix, self.runs, self.command, self._build = prefix, list(runs), command, build

    def filter(  # type: ignore[override]
        self, tags: Iterable[str] | None = None, **others: Any
    ) -> Pipeline:
        """Filter as Kedro does; with tags alone, build the study of the runs with any of them."""
        tags = list(tags or ())
        if not tags or any(others.values()):
            return super().filter(tags=tags, **others)
        runs = [run for run in self.runs if {*tags} & {*run_tags(*run)}]
        if not runs:
            return super().filter(tags=tags)
        part = f"only_{'_'.join(sorted(tags)).replace('.', '_').replace('-', '_')}"
        if len(part) > MAX_NAME_LENGTH:
            part = f"only_{hashlib.blake2b(part.encode(), digest_size=6).hexdigest()}"
        command = f"{self.command} --tags={','.join(tags)}"
        return self._build(f"{self.prefix}{part}_", runs, command)

    def __radd__(self, other: Any) -> Pipeline:
        """Stay a study when Kedro sums pipelines, which starts from an empty one."""
        if isinstance(other, Pipeline) and not other.nodes:
            return self
        return super().__radd__(other)
