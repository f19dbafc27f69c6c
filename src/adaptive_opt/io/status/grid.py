"""How far the cells of the grid are, from the files there are: read only, and without torch.

Torch is imported where a checkpoint is there to be looked into, or a GPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptive_opt.engine.provenance import Identity, identify_run
from adaptive_opt.errors import StudyError
from adaptive_opt.files import at, on_disk
from adaptive_opt.parameters import (
    RRFunctionParameters,
    TaskTuningParameters,
    TuningParameters,
    lengths_of,
    search_space,
    studies_of,
    training_parameters,
)
from adaptive_opt.parameters.data import ImageDataParameters, TextDataParameters
from adaptive_opt.search.identity import study_name, study_seed, trial_identity
from adaptive_opt.search.spaces import Dimension, Space
from adaptive_opt.search.storage import Storage
from adaptive_opt.study import get_task

from .changes import changes

__all__ = ["Cell", "Files", "Part", "survey"]

DONE = ("done", "given")
"""States of a part that nothing more is to be done for."""

PARTS = ("history", "weights", "snapshots", "lengths")
"""Of a finished run, beside its summary."""

PATIENCE = 30.0
"""Seconds that a checkpoint may be late before its run counts as broken off."""


@dataclass(frozen=True)
class Part:
    """The search or the training of a cell.

    Attributes:
        state: ``done``; ``given``: there is nothing to search; ``running``; ``partly``;
            ``broken off``: a checkpoint waits to be gone on from; ``stale``: made with something
            else; ``missing``.
        share: of the work that is done.
        why: what has changed, for one that is stale; how far it is.
        numbers: for machines: ``trials``, ``iteration``, ``iterations``, ``diverged``.
    """

    state: str
    share: float = 0.0
    why: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be done."""
        return self.state in DONE


@dataclass(frozen=True)
class Cell:
    """An arm on a task.

    Attributes:
        task, arm: names.
        search, training: how far they are; None: not asked for.
        best, summary: the records of the two, of whatever was made last.
    """

    task: str
    arm: str
    search: Part | None
    training: Part | None
    best: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


class Files:
    """Where the catalog says that datasets are.

    Args:
        filepath: from the name of a dataset to its file.
    """

    def __init__(self, filepath: Callable[[str], str | Path]) -> None:
        self._filepath = filepath

    def path(self, name: str) -> Path:
        """The file, or the folder, which need not be there."""
        return at(self._filepath(name))

    def record(self, name: str) -> dict[str, Any]:
        """A JSON record; empty where there is none, or a damaged one."""
        try:
            found = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def arrays(self, name: str, only: Sequence[str] = ()) -> dict[str, Any]:
        """Tensors as arrays, all or some of them that are there."""
        from safetensors import SafetensorError, safe_open

        try:
            with on_disk(self.path(name)) as path, safe_open(path, framework="numpy") as file:
                names = [n for n in file.keys() if not only or n in only]  # noqa: SIM118
                return {n: file.get_tensor(n) for n in names}
        except (OSError, SafetensorError):
            return {}

    def shape(self, name: str, tensor: str) -> list[int]:
        """Of a tensor, which is not read; empty where it is not there."""
        from safetensors import SafetensorError, safe_open

        try:
            with on_disk(self.path(name)) as path, safe_open(path, framework="numpy") as file:
                return list(file.get_slice(tensor).get_shape())
        except (OSError, SafetensorError):
            return []


def survey(
    asked: Mapping[tuple[str, str], set[str]],
    parameters: dict[str, Any],
    files: Files,
    storage: Storage,
) -> tuple[list[Cell], str]:
    """The state of every cell that is asked for, and what kept the searches from being seen.

    Args:
        asked: for each (task, arm), ``search`` and ``training`` or one of them.
        parameters: all of them, free of faults.
        files: what is there.
        storage: of the studies.
    """
    data = {task: _data(task, parameters, files) for task in {task for task, _ in asked}}
    searches = _Searches(parameters, storage)
    summaries = {cell: files.record("training.{}.{}.summary".format(*cell)) for cell in asked}
    cells = []
    for (task, arm), parts in asked.items():
        digest, reason = data[task]
        best = files.record(f"tuning.{task}.{arm}.best")
        searched = searches.part(task, arm, best, digest, reason)
        training, summary = None, summaries[task, arm]
        if "training" in parts:
            run = _Run(task, arm, files, summary, parameters)
            run.length = _length(task, digest, parameters, files, summaries)
            training = run.part(best, searched, digest, reason)
        cells.append(
            Cell(task, arm, searched if "search" in parts else None, training, best, summary)
        )
    return cells, searches.hidden


def _length(
    task: str,
    data: str,
    parameters: dict[str, Any],
    files: Files,
    summaries: Mapping[tuple[str, str], Mapping[str, Any]],
) -> int:
    """Iterations of a run, if they are known: from the data or from a run like it; else 0."""
    given = parameters["tasks"][task]
    if get_task(task).family == "rahimi_recht":
        samples = files.shape(get_task(task).dataset, "X")[:1]
        batch = min(given["batch_size"], *samples) if samples else 1
        return given["epochs"] * -(-samples[0] // batch) if samples else 0
    sizes = [name for name in ("batch_size", "streams", "window") if name in given]
    for (other, _), summary in summaries.items():
        then = summary.get("configuration", {})
        alike = all(then.get(name) == given[name] for name in sizes)
        if other == task and then.get("data") == data and alike:
            return int(summary["iterations"] * given["epochs"] / then["epochs"])
    return 0


def _data(task: str, parameters: dict[str, Any], files: Files) -> tuple[str, str]:
    """Digest of what a task learns; and why what is there will not be what it learns."""
    from adaptive_opt.tasks.digest import data_digest
    from adaptive_opt.tasks.fingerprint import as_hex

    row = get_task(task)
    learns = row.learns or task
    if row.family == "rahimi_recht":
        tensors = files.arrays(row.dataset)
        made_with = files.record(f"rr_synthesis.{learns}.report").get("made_with")
        wanted: Any = RRFunctionParameters(**parameters["rr_synthesis"][learns]).model_dump()
    else:
        tensors = files.arrays(row.dataset, ["digest", "parameters"])
        made_with = as_hex(tensors["parameters"]) if "parameters" in tensors else None
        model = ImageDataParameters if row.family == "images" else TextDataParameters
        wanted = model(**parameters["data"][learns]).digest()
    try:
        digest = data_digest(task, tensors)
    except (KeyError, StudyError):
        return "", "data: not made yet"
    section = "rr_synthesis" if row.family == "rahimi_recht" else "data"
    return digest, f"{section}.{learns}" if made_with not in (None, wanted) else ""


class _Searches:
    """The searches, by their records and by the database of studies."""

    def __init__(self, parameters: dict[str, Any], storage: Storage) -> None:
        self.parameters, self.storage = parameters, storage
        self.tuning = TuningParameters(**parameters["tuning"])
        self.hidden = ""
        self._opened: Any = None

    def part(self, task: str, arm: str, best: Mapping[str, Any], data: str, reason: str) -> Part:
        """How far the search for an arm on a task is."""
        given = search_space(task, arm, self.tuning, self.parameters["arms"][task])
        if self.tuning.source == "published" or not given:
            if best.get("source", "published") == "published":
                return Part("given" if best else "missing", share=1.0)
            return Part("stale", share=1.0, why="tuning.source")
        plan, space = self.tuning.tasks[task], Space.from_parameters(given)
        if not data or reason:
            return Part("stale" if best else "missing", why=reason if best else "")
        identity = trial_identity(task, arm, data, self.parameters, plan, space)
        scale = self.parameters["scale"]
        seeds = [study_seed(self.tuning.seed, i) for i in range(self.tuning.studies)]
        names = [study_name(scale, task, arm, identity, space, plan, seed) for seed in seeds]
        if best.get("source") == "search" and self._is_of(best, names, identity, plan):
            trials = best.get("trials", {})
            numbers = {"trials": sum(trials.values()), **trials}
            share = best["budget_units"] / plan.budget if "budget_units" in best else 1.0
            if share >= 1:
                return Part("done", 1.0, numbers=numbers)
            return Part("partly", share, f"{numbers['trials']} trials", numbers)
        begun = self._begun(names, plan)
        if begun is not None:
            return begun
        if best.get("source") == "published":
            return Part("stale", why="tuning.source")
        return (
            Part("stale", why=changes(best.get("made_of", {}), identity) or "tuning")
            if (best)
            else Part("missing")
        )

    def _is_of(
        self,
        best: Mapping[str, Any],
        names: Sequence[str],
        identity: Mapping[str, Any],
        plan: TaskTuningParameters,
    ) -> bool:
        """Whether a record is of these searches, or of what they became with wider spaces."""
        studies = best.get("studies", [])
        if len(studies) != len(names):
            return False
        for number, (study, name) in enumerate(zip(studies, names, strict=True)):
            wanted = name
            if study.get("widened"):
                wider = Space({n: Dimension(*d) for n, d in study["space"].items()})
                scale, seed = self.parameters["scale"], study_seed(self.tuning.seed, number)
                cell = (best["task"], best["arm"])
                wanted = study_name(scale, *cell, identity, wider, plan, seed)
            if study.get("study") != wanted or study["widened"] > self.tuning.widen:
                return False
        return True

    def _begun(self, names: Sequence[str], plan: TaskTuningParameters) -> Part | None:
        """Searches without a record, as far as the database of studies tells."""
        trials = [trial for name in names for trial in self._trials(name)]
        if not trials:
            return None
        ended = sum(t.state.is_finished() for t in trials)
        state = "running" if any(t.state.name == "RUNNING" for t in trials) else "partly"
        budget = plan.budget * len(names)
        numbers = {"trials": ended, "budget_units": budget}
        share = min(1.0, ended / budget)
        return Part(state, share, f"{ended} trials of about {budget}", numbers)

    def _trials(self, name: str) -> list[Any]:
        if self.hidden or (self._opened is None and self.storage.absent):
            return []
        try:
            self._opened = self._opened or self.storage.open()
            with self.storage.explained():
                study = self._opened.get_study_id_from_name(name)
                return list(self._opened.get_all_trials(study, deepcopy=False))
        except KeyError:
            return []
        except StudyError as error:
            self.hidden = str(error)
            return []


class _Run:
    """The training of an arm on a task."""

    def __init__(
        self,
        task: str,
        arm: str,
        files: Files,
        summary: Mapping[str, Any],
        parameters: dict[str, Any],
    ) -> None:
        self.task, self.arm, self.parameters = task, arm, parameters
        self.files, self.summary = files, summary
        self.settings = training_parameters(arm, parameters["training"])
        self.length = 0

    def part(self, best: Mapping[str, Any], searched: Part, data: str, reason: str) -> Part:
        """How far it is, after a search that is so far."""
        unsettled = reason or ("" if searched.finished else "its search")
        identity = self._identity(best, data) if data and best else None
        running = self._checkpoint(identity)
        if running is not None:
            return running
        if not self._complete():
            return Part("missing", why=reason)
        numbers = {"diverged": _diverged(self.summary)}
        if unsettled or identity is None:
            return Part("stale", why=unsettled or "its search", numbers=numbers)
        if self.summary.get("digest") != identity.digest:
            return Part("stale", why=self._changed(identity), numbers=numbers)
        return Part("done", 1.0, numbers=numbers)

    def _identity(self, best: Mapping[str, Any], data: str) -> Identity | None:
        try:
            return identify_run(self.task, self.arm, data, self.parameters, studies_of(dict(best)))
        except StudyError:
            return None

    def _complete(self) -> bool:
        names = [f"training.{self.task}.{self.arm}.{part}" for part in PARTS]
        return bool(self.summary) and all(self.files.path(name).exists() for name in names)

    def _changed(self, identity: Identity) -> str:
        record = identity.record()
        found = [
            changes(self.summary[part], record[part])
            for part in ("configuration", "logging", "made_by")
            if part in self.summary
        ]
        return ", ".join(filter(None, found)) or "code, device or what is logged"

    def _checkpoint(self, identity: Identity | None) -> Part | None:
        """A run under way or interrupted; a checkpoint of another configuration is ignored."""
        path = self.files.path(f"training.{self.task}.{self.arm}.folder") / "checkpoint.pt"
        if identity is None or not path.is_file():
            return None
        saved = _load(path)
        if saved.get("digest") != identity.digest:
            return None
        state = saved["state"]
        done, inner = state.get("done", []), state["state"] or {}
        iteration, total = int(inner.get("iteration", 0)), self.length
        late = time.time() - path.stat().st_mtime > 2 * self.settings.checkpoint_seconds + PATIENCE
        why = f"at iteration {iteration:,}"
        if not done:
            why += f" of {total:,}" if total else ""
        else:
            why += f" after {len(done)} finished parts"
        # Each part is some seeds at one length; whole lengths of a run are what is counted.
        shares = [1.0, *lengths_of(self.task, self.arm, self.settings)]
        wanted = int(identity.configuration["seeds"]) * sum(shares)
        ended = sum(part["share"] * len(part["seeds"]) for part in done)
        share = min(1.0, ended / wanted) if done else iteration / total if total else 0.0
        numbers = {"iteration": iteration, "iterations": total, "parts_done": len(done)}
        return Part("broken off" if late else "running", share, why, numbers)


def _load(path: Path) -> dict[str, Any]:
    """A checkpoint without its tensors, which stay on the disk; empty if it is damaged."""
    import torch

    try:
        with on_disk(path) as file:
            return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # zipfile, pickle and torch raise what they like
        return {}


def _diverged(summary: Mapping[str, Any]) -> list[int]:
    """Seeds of a run that diverged."""
    ends = zip(summary.get("seeds", []), summary.get("diverged_at", []), strict=False)
    return [seed for seed, at in ends if at is not None]
