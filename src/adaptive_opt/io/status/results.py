"""Results of the grid, out of the catalog and into a notebook or a script; and where they are."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adaptive_opt.errors import StudyError
from adaptive_opt.files import at
from adaptive_opt.study import Task, arms_on

__all__ = ["load_runs", "path_of"]

logger = logging.getLogger(__name__)


def load_runs(
    catalog: Any, tasks: Sequence[Task], arms: Iterable[str], part: str = "history"
) -> list[Any]:
    """A part of every run that there is of some arms on some tasks, in the order of the grid.

    Runs that have not been made are named in a warning and left out.

    Args:
        catalog: Kedro's, as ``%reload_kedro`` makes it.
        tasks: such as :func:`adaptive_opt.study.tasks_of` has them.
        arms: names.
        part: ``history``, ``lengths``, ``summary`` or ``weights``.

    Raises:
        StudyError: there is none.
    """
    chosen = list(arms)
    names = [f"training.{t.name}.{a}.{part}" for t in tasks for a in arms_on(t, chosen)]
    there = [name for name in names if catalog.exists(name)]
    missing = ", ".join(sorted({*names} - {*there}))
    if not there:
        raise StudyError(f"nothing has been trained at this scale (kedro run makes it): {missing}")
    if missing:
        logger.warning("not trained yet, and left out: %s", missing)
    return [catalog.load(name) for name in there]


def path_of(dataset: Any) -> Path | None:
    """The file or folder of a dataset, wherever it is; None: it has none."""
    if (given := getattr(dataset, "_name", None)) is not None:
        return at(given)
    name = getattr(dataset, "_filepath", None)
    if name is None:
        return None
    protocol = getattr(dataset, "_protocol", "file")  # Kedro's datasets keep it apart
    return at(str(name) if protocol == "file" else f"{protocol}://{name}")
