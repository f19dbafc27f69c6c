"""``kedro adaptive status``: the state of the grid and the time left, as a table or as JSON."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from adaptive_opt.errors import StudyError
from adaptive_opt.study import ARMS, EVERY_TASK, get_arm

from .grid import Cell, Files, Part, survey

__all__ = ["as_record", "as_text", "look", "time_left"]

HEAD = ("task", "arm", "search", "training", "left")


def _kind(cell: Cell) -> str:
    kind = get_arm(cell.arm).kind
    return "second-order" if kind == "ladder" else kind  # a placebo costs what its model costs


BASES = (
    ("this arm on this task", lambda cell, other: other.arm == cell.arm),
    ("arms of its kind on this task", lambda cell, other: _kind(other) == _kind(cell)),
    ("other arms on this task", lambda _, __: True),
)
"""What an estimate is based on, the best first."""


def time_left(cell: Cell, cells: Iterable[Cell], tasks: Mapping[str, Any]) -> tuple[float, str]:
    """Estimate the seconds that are left of a cell, and say from what; NaN: nothing is known.

    Finished searches and runs on the same task are scaled by budget, epochs and seeds.

    Args:
        cell: the cell.
        cells: all cells.
        tasks: the parameters ``tasks``.
    """
    same = [other for other in cells if other.task == cell.task]
    left, bases = 0.0, []
    for part, seconds in ((cell.search, _search_seconds), (cell.training, _training_seconds)):
        if part is None or part.finished:
            continue
        for basis, is_like in BASES:
            known = [seconds(other, tasks[cell.task]) for other in same if is_like(cell, other)]
            if known := [s for s in known if s]:
                left += mean(known) * (1 - part.share)
                bases.append(basis)
                break
        else:
            return float("nan"), "nothing like it was finished yet"
    return left, " and ".join(dict.fromkeys(bases))


def _search_seconds(cell: Cell, _: Mapping[str, Any]) -> float:
    """Return the seconds of a whole search; 0: unknown."""
    seconds, spent = cell.best.get("seconds"), cell.best.get("spent")
    return seconds * cell.best["budget"] / spent if seconds and spent else 0.0


def _training_seconds(cell: Cell, task: Mapping[str, Any]) -> float:
    """Return the seconds of a whole run; 0: unknown."""
    seconds = cell.summary.get("seconds") or cell.summary.get("device_seconds") or 0.0
    then = cell.summary.get("configuration")
    if not then:
        return 0.0
    return float(seconds * task["epochs"] * task["seeds"] / (then["epochs"] * then["seeds"]))


def as_record(
    cells: Sequence[Cell], parameters: Mapping[str, Any], hidden: str = ""
) -> dict[str, Any]:
    """Return all of it as JSON.

    Args:
        cells: see :func:`.grid.survey`.
        parameters: all parameters.
        hidden: why searches in progress cannot be seen.
    """
    rows = []
    for cell in cells:
        seconds, basis = time_left(cell, cells, parameters["tasks"])
        row: dict[str, Any] = {"task": cell.task, "arm": cell.arm}
        row |= {"search": cell.search and asdict(cell.search)}
        row |= {"training": cell.training and asdict(cell.training)}
        left = None if seconds != seconds else round(seconds, 1)
        rows.append({**row, "seconds_left": left, "based_on": basis})
    known = [row["seconds_left"] for row in rows if row["seconds_left"] is not None]
    return {
        "scale": parameters["scale"],
        "cells": rows,
        "seconds_left": round(sum(known), 1),
        "unknown": len(rows) - len(known),
        "searches_hidden": hidden or None,
    }


def as_text(record: Mapping[str, Any], command: str) -> str:
    """Return the table and its totals.

    Args:
        record: see :func:`as_record`.
        command: what does the rest.
    """
    rows = record["cells"]
    parts = [row[name] for row in rows for name in ("search", "training") if row[name]]
    if all(part["state"] == "missing" for part in parts):
        return f"Nothing was run yet at the scale {record['scale']}; begin with\n    {command}"
    table, task = [HEAD], ""
    for row in rows:
        first = row["task"] if row["task"] != task else ""
        task = row["task"]
        table.append(
            (first, row["arm"], _words(row["search"]), _words(row["training"]), _left(row))
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    lines += ["", *_totals(record)]
    if not all(_finished(part) for part in parts):
        lines.append(f"What is left is done by\n    {command}")
    return "\n".join(lines)


def _finished(part: Mapping[str, Any]) -> bool:
    return Part(part["state"]).finished


def _words(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "–"
    numbers, said = part["numbers"], str(part["state"])
    if part["why"]:
        said += f" ({part['why']})"
    if failed := numbers.get("failed"):
        said += f", {failed} of {numbers['trials']} trials failed"
    diverged = numbers.get("diverged")
    if diverged and isinstance(diverged, list):  # of a search it is a number
        said += f", diverged: seed {', '.join(map(str, diverged))}"
    return said


def _left(row: Mapping[str, Any]) -> str:
    if all(_finished(row[name]) for name in ("search", "training") if row[name]):
        return ""
    return "–" if row["seconds_left"] is None else _duration(row["seconds_left"])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _totals(record: Mapping[str, Any]) -> Iterator[str]:
    for name, many in (("search", "searches"), ("training", "runs")):
        counts = Counter(row[name]["state"] for row in record["cells"] if row[name])
        if counts:
            said = ", ".join(f"{n} {state}" for state, n in counts.most_common())
            yield f"{counts.total()} {many}: {said}."
    if record["seconds_left"]:
        bases = {row["based_on"] for row in record["cells"] if row["seconds_left"]}
        basis = "finished searches and runs of the same tasks" if len(bases) > 1 else min(bases)
        yield (
            f"About {_duration(record['seconds_left'])} of work left, which the cores of a CPU "
            f"share, from {basis}; without tables and figures."
        )
    if record["unknown"]:
        yield f"How long {record['unknown']} of the cells take is not known yet (–)."
    if record["searches_hidden"]:
        yield f"Searches under way cannot be seen: {record['searches_hidden']}"


def look(
    pipeline: Any, env: str | None, params: dict[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Return the record of a part of the grid, and the command that does the rest of it.

    Args:
        pipeline: the part.
        env, params: as ``kedro run`` takes them.
        options: ``tags`` and ``pipelines``, likewise.

    Raises:
        StudyError: parameters are wrong, or the pipeline neither searches nor trains.
    """
    from kedro.io import CatalogConfigResolver

    from adaptive_opt.files import CHECKOUT

    from ..configuration import LOADER_ARGUMENTS, ConfigurationLoader
    from ..datasets import StudyStorageDataset
    from ..hooks import check_parameters

    env = env or os.environ.get("KEDRO_ENV")
    loader = ConfigurationLoader(CHECKOUT / "conf", env, params, **LOADER_ARGUMENTS)
    parameters = loader["parameters"]
    check_parameters(parameters, pipeline, CHECKOUT / "conf", env, params, classes=False)
    unknown = {"{default}": {"type": "kedro.io.MemoryDataset"}}  # Kedro's own default
    catalog = CatalogConfigResolver(loader["catalog"], loader["credentials"], unknown)
    files = Files(lambda name: catalog.resolve_pattern(name)["filepath"])
    database = {k: v for k, v in catalog.resolve_pattern("tuning_storage").items() if k != "type"}
    if not (asked := _asked(pipeline)):
        raise StudyError(
            "what was asked for has no searches and no runs; ask for other pipelines or tags"
        )
    cells, hidden = survey(asked, parameters, files, StudyStorageDataset(**database).load())
    given = {name: ",".join(options.get(name) or ()) for name in ("pipelines", "tags")}
    words = [("env", env), *given.items(), ("params", ",".join(_assignments(params)))]
    asked_for = [f"--{name}={value}" for name, value in words if value]
    return as_record(cells, parameters, hidden), shlex.join(["kedro", "run", *asked_for])


def _assignments(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield parameters as ``--params`` takes them."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _assignments(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"


def _asked(pipeline: Any) -> dict[tuple[str, str], set[str]]:
    """Return the cells that a pipeline searches or trains, in the order of the grid."""
    outputs, asked = pipeline.all_outputs(), {}
    for task, arm in ((task.name, arm.name) for task in EVERY_TASK for arm in ARMS):
        ends = {f"tuning.{task}.{arm}.best": "search", f"training.{task}.{arm}.summary": "training"}
        if parts := {part for name, part in ends.items() if name in outputs}:
            asked[task, arm] = parts
    return asked
