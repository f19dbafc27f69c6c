"""``kedro adaptive status``: the state of the grid and the time left, as a table or as JSON."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from adaptive_opt.errors import StudyError
from adaptive_opt.search.storage import Storage
from adaptive_opt.study import ARMS, EVERY_TASK, get_arm

from .grid import Cell, Files, Part, Survey
from .outcome import command_line

__all__ = ["as_record", "as_text", "look", "time_left"]

HEAD = ("task", "arm", "search", "training", "left")


def time_left(cell: Cell, cells: Iterable[Cell], task: Mapping[str, Any]) -> float:
    """Estimate the seconds that are left of a cell; NaN: nothing similar has finished.

    Finished searches and runs on the same task are scaled by budget, epochs and seeds. Those of
    the same arm are used if there are any, else those of the same kind of arm, else all.

    Args:
        cell: the cell.
        cells: all cells.
        task: the task's parameters.
    """
    same = [other for other in cells if other.task == cell.task]
    left = 0.0
    for part, seconds in ((cell.search, _search_seconds), (cell.training, _training_seconds)):
        if part is None or part.finished:
            continue
        known: dict[tuple[bool, bool], list[float]] = {}
        for other in same:
            likeness = other.arm == cell.arm, _kind(other) == _kind(cell)
            if known_seconds := seconds(other, task):
                known.setdefault(likeness, []).append(known_seconds)
        left += mean(known[max(known)]) * (1 - part.share) if known else math.nan
    return left


def _kind(cell: Cell) -> str:
    kind = get_arm(cell.arm).kind
    return "second-order" if kind == "ladder" else kind  # a placebo costs what its model costs


def _search_seconds(cell: Cell, _: Mapping[str, Any]) -> float:
    """Return the seconds of a whole search; 0: unknown."""
    seconds, spent = cell.best.get("seconds"), cell.best.get("spent")
    return seconds * cell.best["budget"] / spent if seconds and spent else 0.0


def _training_seconds(cell: Cell, task: Mapping[str, Any]) -> float:
    """Return the seconds of a whole run; 0: unknown."""
    seconds = cell.summary.get("seconds") or cell.summary.get("device_seconds") or 0.0
    if not (then := cell.summary.get("configuration")):
        return 0.0
    return float(seconds * task["epochs"] * task["seeds"] / (then["epochs"] * then["seeds"]))


def as_record(
    cells: Sequence[Cell], parameters: Mapping[str, Any], hidden: str = ""
) -> dict[str, Any]:
    """Return the state and the time left as a JSON record.

    Args:
        cells, hidden: see :class:`.grid.Survey`.
        parameters: all parameters.
    """
    rows = []
    for cell in cells:
        seconds = time_left(cell, cells, parameters["tasks"][cell.task])
        row: dict[str, Any] = {"task": cell.task, "arm": cell.arm}
        row |= {"search": cell.search and asdict(cell.search)}
        row |= {"training": cell.training and asdict(cell.training)}
        rows.append({**row, "seconds_left": None if math.isnan(seconds) else round(seconds, 1)})
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
        command: the command that does the rest.
    """
    rows = record["cells"]
    parts = [row[name] for row in rows for name in ("search", "training") if row[name]]
    if all(part["state"] == "missing" for part in parts):
        return f"Nothing was run yet at the scale {record['scale']}; start with\n    {command}"
    table, task = [HEAD], ""
    for row in rows:
        first = row["task"] if row["task"] != task else ""
        task = row["task"]
        states = (_state(row["search"]), _state(row["training"]))
        table.append((first, row["arm"], *states, _left(row)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    lines += ["", *_totals(record)]
    if not all(_finished(part) for part in parts):
        lines.append(f"To do the rest, run\n    {command}")
    return "\n".join(lines)


def _finished(part: Mapping[str, Any]) -> bool:
    return Part(part["state"]).finished


def _state(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "–"
    numbers, text = part["numbers"], str(part["state"])
    if part["why"]:
        text += f" ({part['why']})"
    if failed := numbers.get("failed"):
        text += f", {failed} of {numbers['trials']} trials failed"
    diverged = numbers.get("diverged")
    if diverged and isinstance(diverged, list):  # of a search it is a number
        text += f", diverged: seed {', '.join(map(str, diverged))}"
    return text


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
            numbers = ", ".join(f"{n} {state}" for state, n in counts.most_common())
            yield f"{counts.total()} {many}: {numbers}."
    if record["seconds_left"]:
        yield (
            f"About {_duration(record['seconds_left'])} of work left, which the cores of a CPU "
            "share, estimated from finished searches and runs; without tables and figures."
        )
    if record["unknown"]:
        yield f"The time of {record['unknown']} cells is not known yet (–)."
    if record["searches_hidden"]:
        yield f"Searches in progress cannot be seen: {record['searches_hidden']}"


def look(pipeline: Any, env: str | None, params: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the record of a part of the grid, and the command that does the rest of it.

    Args:
        pipeline: the part.
        env, params: as ``kedro run`` takes them.

    Raises:
        StudyError: parameters are wrong, or the pipeline neither searches nor trains.
    """
    from kedro.io import CatalogConfigResolver

    from adaptive_opt.files import CHECKOUT

    from ..configuration import LOADER_ARGUMENTS, ConfigurationLoader
    from ..hooks import check_parameters

    env = env or os.environ.get("KEDRO_ENV")
    loader = ConfigurationLoader(CHECKOUT / "conf", env, params, **LOADER_ARGUMENTS)
    parameters = loader["parameters"]
    check_parameters(parameters, pipeline, CHECKOUT / "conf", env, params, classes=False)
    unknown = {"{default}": {"type": "kedro.io.MemoryDataset"}}  # Kedro's own default
    catalog = CatalogConfigResolver(loader["catalog"], loader["credentials"], unknown)
    files = Files(lambda name: catalog.resolve_pattern(name)["filepath"])
    database = catalog.resolve_pattern("tuning_storage")
    storage = Storage.configured(database["url"], database.get("credentials"))
    if not (asked := _asked(pipeline)):
        raise StudyError("the selected part has no searches and no runs; select another")
    survey = Survey(asked, parameters, files, storage)
    command = command_line().replace(" adaptive status", " run", 1).replace(" --json", "")
    return as_record(survey.cells, parameters, survey.hidden), command or "kedro run"


def _asked(pipeline: Any) -> dict[tuple[str, str], set[str]]:
    """Return the cells that a pipeline searches or trains, in the order of the grid."""
    outputs, asked = pipeline.all_outputs(), {}
    for task, arm in ((task.name, arm.name) for task in EVERY_TASK for arm in ARMS):
        ends = {f"tuning.{task}.{arm}.best": "search", f"training.{task}.{arm}.summary": "training"}
        if parts := {part for name, part in ends.items() if name in outputs}:
            asked[task, arm] = parts
    return asked
