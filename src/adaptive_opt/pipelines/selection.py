"""Whole studies, and the studies of a part of the grid that tags choose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kedro.pipeline import Pipeline

from adaptive_opt.study import Run, run_tags

__all__ = ["StudyPipeline"]

LONGEST_NAME = 60
"""Of a study: it names a folder."""

Build = Callable[[str, Sequence[Run], str], Pipeline]


class StudyPipeline(Pipeline):
    """A study whose tags choose a smaller study, with a verdict and a report of its own.

    Kedro's own filter would leave the nodes with a tag, and no analysis, as that needs every run.

    Args:
        prefix: of the names of its outputs.
        runs: its (task, arm).
        command: that makes it.
        build: makes the pipeline of a study from its prefix, its runs and its command.
    """

    def __init__(self, prefix: str, runs: Sequence[Run], command: str, build: Build) -> None:
        super().__init__(build(prefix, runs, command))
        self.prefix, self.runs, self.command, self._build = prefix, list(runs), command, build

    def filter(  # type: ignore[override]
        self, tags: Iterable[str] | None = None, **others: Any
    ) -> Pipeline:
        """As Kedro's; with tags and nothing else, the study of the runs that have one of them."""
        tags = list(tags or ())
        if not tags or any(others.values()):
            return super().filter(tags=tags, **others)
        runs = [run for run in self.runs if {*tags} & {*run_tags(*run)}]
        if not runs:
            return super().filter(tags=tags)
        part = f"only_{'_'.join(sorted(tags)).replace('.', '_').replace('-', '_')}"
        if len(part) > LONGEST_NAME:
            part = f"only_{hashlib.blake2b(part.encode(), digest_size=6).hexdigest()}"
        command = f"{self.command} --tags={','.join(tags)}"
        return self._build(f"{self.prefix}{part}_", runs, command)

    def __radd__(self, other: Any) -> Pipeline:
        """Kedro sums pipelines from an empty one, which changes nothing."""
        if isinstance(other, Pipeline) and not other.nodes:
            return self
        return super().__radd__(other)
