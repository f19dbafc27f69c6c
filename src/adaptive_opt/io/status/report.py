"""What of the grid is done, and how long the rest will take, in words and for machines."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from adaptive_opt.errors import StudyError
from adaptive_opt.study import ARMS, EVERY_TASK, get_arm

from .grid import Cell, Part

__all__ = ["as_record", "as_text", "look", "time_left"]

BASES = (
    ("this arm on this task", lambda cell, other: other.arm == cell.arm),
    ("arms of its kind on this task", lambda cell, other: _kind(other) == _kind(cell)),
    ("other arms on this task", lambda _, __: True),
)
"""What an estimate is based on, the nearest first."""


def _kind(cell: Cell) -> str:
    """Placebos take as long as what they are placebos of."""
    kind = get_arm(cell.arm).kind
    return "second-order" if kind == "ladder" else kind


def time_left(cell: Cell, cells: Iterable[Cell], tasks: Mapping[str, Any]) -> tuple[float, str]:
    """Seconds that the rest of a cell takes, and what they are based on; NaN: nothing is known.

    Finished searches and runs on the same task say how long such a thing takes, in proportion to
    its budget, or to its epochs and seeds.

    Args:
        cell: what is asked about.
        cells: all there are.
        tasks: the parameters.
    """
    same = [other for other in cells if other.task == cell.task]
    left, bases = 0.0, []
    for part, whole in ((cell.search, _of_search), (cell.training, _of_training)):
        if part is None or part.finished:
            continue
        size = tasks[cell.task]
        for words, alike in BASES:
            known = [s for o in same if alike(cell, o) and (s := whole(o, size)) is not None]
            if known:
                left += mean(known) * (1 - part.share)
                bases.append(words)
                break
        else:
            return float("nan"), "nothing like it was finished yet"
    return left, " and ".join(dict.fromkeys(bases))


def _of_search(cell: Cell, size: Mapping[str, Any]) -> float | None:
    """Seconds of a whole search."""
    del size
    seconds, spent = cell.best.get("seconds"), cell.best.get("spent")
    return seconds * cell.best["budget"] / spent if seconds and spent else None


def _of_training(cell: Cell, size: Mapping[str, Any]) -> float | None:
    """Seconds of a run; of one that was taken up again, those of training alone."""
    seconds = cell.summary.get("seconds") or cell.summary.get("device_seconds")
    then = cell.summary.get("configuration", {})
    if not seconds or not then:
        return None
    return float(seconds * size["epochs"] * size["seeds"] / (then["epochs"] * then["seeds"]))


def as_record(
    cells: Sequence[Cell], parameters: Mapping[str, Any], hidden: str = ""
) -> dict[str, Any]:
    """All of it, for machines.

    Args:
        cells: as :func:`.grid.survey` found them.
        parameters: all of them.
        hidden: what kept the searches from being seen.
    """
    rows, known = [], []
    for cell in cells:
        seconds, basis = time_left(cell, cells, parameters["tasks"])
        unknown = seconds != seconds
        known += [] if unknown else [seconds]
        rows.append(
            {
                "task": cell.task,
                "arm": cell.arm,
                "search": None if cell.search is None else asdict(cell.search),
                "training": None if cell.training is None else asdict(cell.training),
                "seconds_left": None if unknown else round(seconds, 1),
                "based_on": basis,
            }
        )
    return {
        "scale": parameters["scale"],
        "cells": rows,
        "seconds_left": round(sum(known), 1),
        "unknown": len(rows) - len(known),
        "searches_hidden": hidden or None,
    }


def as_text(record: Mapping[str, Any], command: str) -> str:
    """The same for people: a table, and what it adds up to.

    Args:
        record: see :func:`as_record`.
        command: that does what is left.
    """
    rows = record["cells"]
    parts = [row[name] for row in rows for name in ("search", "training") if row[name]]
    if all(part["state"] == "missing" for part in parts):
        return f"Nothing was run yet at the scale {record['scale']}; begin with\n    {command}"
    head = ("task", "arm", "search", "training", "left")
    body = [
        (
            row["task"] if i == 0 or rows[i - 1]["task"] != row["task"] else "",
            row["arm"],
            _words(row["search"]),
            _words(row["training"]),
            _left(row),
        )
        for i, row in enumerate(rows)
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(4)]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(line, (*widths, 0), strict=True)).rstrip()
             for line in (head, *body)]  # fmt: skip
    lines += ["", *_totals(record)]
    if any(not _finished(part) for part in parts):
        lines.append(f"What is left is done by\n    {command}")
    return "\n".join(lines)


def _finished(part: Mapping[str, Any]) -> bool:
    return Part(part["state"]).finished


def _words(part: Mapping[str, Any] | None) -> str:
    if part is None:
        return "–"
    said = str(part["state"])
    if part["why"]:
        said += f" ({part['why']})"
    if failed := part["numbers"].get("failed"):
        said += f", {failed} of {part['numbers']['trials']} trials failed"
    if diverged := part["numbers"].get("diverged"):
        many = isinstance(diverged, list)  # of trials it is a number, and nothing to worry about
        said += f", diverged: seed {', '.join(map(str, diverged))}" if many else ""
    return said


def _left(row: Mapping[str, Any]) -> str:
    if all(_finished(row[name]) for name in ("search", "training") if row[name]):
        return ""
    return "–" if row["seconds_left"] is None else _duration(row["seconds_left"])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _totals(record: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, many in (("search", "searches"), ("training", "runs")):
        counts = Counter(row[name]["state"] for row in record["cells"] if row[name])
        if counts:
            said = ", ".join(f"{n} {state}" for state, n in counts.most_common())
            lines.append(f"{counts.total()} {many}: {said}.")
    bases = {row["based_on"] for row in record["cells"] if row["seconds_left"]}
    if record["seconds_left"]:
        basis = "finished searches and runs of the same tasks" if len(bases) > 1 else min(bases)
        lines.append(
            f"About {_duration(record['seconds_left'])} of work left, which the cores of a CPU "
            f"share, from {basis}; without tables and figures."
        )
    if record["unknown"]:
        lines.append(f"How long {record['unknown']} of the cells take is not known yet (–).")
    if record["searches_hidden"]:
        lines.append(f"Searches under way cannot be seen: {record['searches_hidden']}")
    return lines


def look(
    pipeline: Any, env: str | None, params: dict[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """The record of a part of the grid, and the command that does what is left of it.

    Args:
        pipeline: the part.
        env, params: as ``kedro run`` takes them.
        options: ``tags`` and ``pipelines``, likewise.

    Raises:
        StudyError: parameters are at fault.
    """
    from kedro.io import CatalogConfigResolver
    from omegaconf import OmegaConf

    from adaptive_opt.files import CHECKOUT

    from ..configuration import LOADER_ARGUMENTS, ConfigurationLoader
    from ..hooks import check_parameters
    from ..studies import StudyStorageDataset
    from .grid import Files, survey

    env = env or os.environ.get("KEDRO_ENV")
    loader = ConfigurationLoader(CHECKOUT / "conf", env, params, **LOADER_ARGUMENTS)
    parameters = loader["parameters"]
    check_parameters(parameters, pipeline, CHECKOUT / "conf", env, params, classes=False)
    unknown = {"{default}": {"type": "kedro.io.MemoryDataset"}}  # as Kedro has it
    catalog = CatalogConfigResolver(loader["catalog"], loader["credentials"], unknown)
    files = Files(lambda name: catalog.resolve_pattern(name)["filepath"])
    database = {k: v for k, v in catalog.resolve_pattern("tuning_storage").items() if k != "type"}
    storage = StudyStorageDataset(**database).load()
    asked = _asked(pipeline)
    if not asked:
        raise StudyError(
            "what was asked for has no searches and no runs; ask for other pipelines or tags"
        )
    cells, hidden = survey(asked, parameters, files, storage)
    words = ["kedro", "run"]
    words += [f"--env={env}"] if env else []
    for option in ("pipelines", "tags"):
        words += [f"--{option}={','.join(options[option])}"] if options.get(option) else []
    flat = OmegaConf.create(params)
    given = [f"{key}={OmegaConf.select(flat, key)}" for key in _leaves(params)]
    words += [f"--params={','.join(given)}"] if given else []
    return as_record(cells, parameters, hidden), shlex.join(words)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of a tree."""
    found = []
    for key, value in tree.items():
        inner = isinstance(value, Mapping)
        found += _leaves(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return found


def _asked(pipeline: Any) -> dict[tuple[str, str], set[str]]:
    """The cells that a pipeline searches or trains, in the order of the grid."""
    outputs = pipeline.all_outputs()
    asked = {}
    for task in EVERY_TASK:
        for arm in ARMS:
            ends = {
                "search": f"tuning.{task.name}.{arm.name}.best",
                "training": f"training.{task.name}.{arm.name}.summary",
            }
            if parts := {part for part, name in ends.items() if name in outputs}:
                asked[task.name, arm.name] = parts
    return asked
