"""The state of each search and training, from files; read only.

torch is imported only to read a checkpoint and to name a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptive_opt.engine.provenance import Identity, identify_run
from adaptive_opt.errors import StudyError
from adaptive_opt.files import at, on_disk, read_record
from adaptive_opt.parameters import (
    RRFunctionParameters,
    TuningParameters,
    lengths_of,
    search_space,
    studies_of,
    training_parameters,
)
from adaptive_opt.parameters.configuration import changes
from adaptive_opt.parameters.data import data_parameters
from adaptive_opt.search.identity import Searches
from adaptive_opt.search.spaces import Space
from adaptive_opt.search.storage import Storage
from adaptive_opt.study import get_task

__all__ = ["Cell", "Files", "Part", "Survey"]

RUN_FILES = ("history", "weights", "snapshots", "lengths")
"""Datasets of a finished run beside its summary."""

CHECKPOINT_DELAY = 30.0
"""Seconds that a checkpoint may be late before its run counts as interrupted."""


@dataclass(frozen=True)
class Part:
    """The search or the training of a cell.

    Attributes:
        state: ``done``, ``given`` (nothing to search), ``running``, ``partly``, ``interrupted`` (a
            run continues from its checkpoint), ``stale`` (inputs have changed) or ``missing``.
        share: how much of the work is done, from 0 to 1.
        why: what has changed, or how far it is.
        numbers: ``trials``, ``iteration``, ``parts_done``, ``diverged``.
    """

    state: str
    share: float = 0.0
    why: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ("done", "given")


@dataclass(frozen=True)
class Cell:
    """An arm on a task.

    Attributes:
        task, arm: names.
        search, training: their states; None: not asked for.
        best, summary: the newest records of the two.
    """

    task: str
    arm: str
    search: Part | None
    training: Part | None
    best: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


class Files:
    """Reads the files of datasets; what is missing or damaged is empty.

    Args:
        filepath: returns the file of a dataset by name.
    """

    def __init__(self, filepath: Callable[[str], str | Path]) -> None:
        self._filepath = filepath

    def path(self, name: str) -> Path:
        """Return the file or folder, which need not exist."""
        return at(self._filepath(name))

    def record(self, name: str) -> dict[str, Any]:
        """Read a JSON record."""
        return read_record(self.path(name))

    def arrays(self, name: str, only: Sequence[str] = ()) -> dict[str, Any]:
        """Read tensors as arrays, all or those of some names."""
        from safetensors import SafetensorError, safe_open

        try:
            with on_disk(self.path(name)) as path, safe_open(path, framework="numpy") as file:
                names = [n for n in file.keys() if not only or n in only]  # noqa: SIM118
                return {n: file.get_tensor(n) for n in names}
        except (OSError, SafetensorError):
            return {}


class Survey:
    """The state of a part of the grid.

    Args:
        asked: for each (task, arm), ``search`` and ``training`` or one of them.
        parameters: all parameters, already checked.
        files: results.
        storage: Optuna's studies.

    Attributes:
        cells: the state of each (task, arm).
        hidden: why searches in progress cannot be seen; empty if they can.
    """

    def __init__(
        self,
        asked: Mapping[tuple[str, str], set[str]],
        parameters: dict[str, Any],
        files: Files,
        storage: Storage,
    ) -> None:
        self.hidden = ""
        self._parameters, self._files, self._storage = parameters, files, storage
        self._tuning = TuningParameters(**parameters["tuning"])
        self._data = {task: self._data_of(task) for task in {task for task, _ in asked}}
        self.cells = [self._cell(*pair, parts) for pair, parts in asked.items()]

    def _cell(self, task: str, arm: str, parts: set[str]) -> Cell:
        best = self._files.record(f"tuning.{task}.{arm}.best")
        summary = self._files.record(f"training.{task}.{arm}.summary")
        search = self._search(task, arm, best)
        training = None
        if "training" in parts:
            training = self._training(task, arm, best, summary, search.finished)
        return Cell(task, arm, search if "search" in parts else None, training, best, summary)

    def _data_of(self, task: str) -> tuple[str, str]:
        """Return the digest of a task's data, and why other data will replace them."""
        from adaptive_opt.tasks.digest import data_digest
        from adaptive_opt.tasks.fingerprint import as_hex

        row = get_task(task)
        learns = row.learns or task
        if row.family == "rahimi_recht":
            section = "rr_synthesis"
            tensors = self._files.arrays(row.dataset)
            made_with = self._files.record(f"rr_synthesis.{learns}.report").get("made_with")
            wanted: Any = RRFunctionParameters(**self._parameters[section][learns]).model_dump()
        else:
            section = "data"
            tensors = self._files.arrays(row.dataset, ["digest", "parameters"])
            made_with = as_hex(tensors["parameters"]) if "parameters" in tensors else None
            wanted = data_parameters(learns, self._parameters[section]).digest()
        try:
            digest = data_digest(task, tensors)
        except (KeyError, StudyError):
            return "", "data: not made yet"
        return digest, f"{section}.{learns}" if made_with not in (None, wanted) else ""

    def _search(self, task: str, arm: str, best: Mapping[str, Any]) -> Part:
        """Return the state of a search."""
        (data, stale_data), source = self._data[task], best.get("source")
        given = search_space(task, arm, self._tuning, self._parameters["arms"][task])
        if self._tuning.source == "published" or not given:
            if source in (None, "published"):
                return Part("given" if best else "missing", 1.0)
            return Part("stale", 1.0, "tuning.source")
        if not data or stale_data:
            return Part("stale", why=stale_data) if best else Part("missing")
        space = Space.from_parameters(given)
        searches = Searches(task, arm, data, self._parameters, self._tuning, space)
        if source == "search" and searches.made(best):
            trials, budget = best.get("trials", {}), searches.plan.budget
            numbers = {"trials": sum(trials.values()), **trials}
            share = best.get("budget_units", budget) / budget
            if share >= 1:
                return Part("done", 1.0, numbers=numbers)
            return Part("partly", share, f"{numbers['trials']} trials", numbers)
        if unfinished := self._unfinished(searches):
            return unfinished
        if not best:
            return Part("missing")
        changed = changes(best.get("made_of", {}), searches.identity) or "tuning"
        return Part("stale", why="tuning.source" if source == "published" else changed)

    def _unfinished(self, searches: Searches) -> Part | None:
        """Return the state of searches that have trials and no record yet."""
        if self.hidden or self._storage.absent:
            return None
        states: list[Any] = []
        try:
            storage = self._storage.open()
            with self._storage.explained():
                for name in searches.names():
                    with suppress(KeyError):  # there is no study of this name
                        study = storage.get_study_id_from_name(name)
                        states += [t.state for t in storage.get_all_trials(study, deepcopy=False)]
        except StudyError as error:
            self.hidden = str(error)
        if not states:
            return None
        ended = sum(state.is_finished() for state in states)
        running = any(state.name == "RUNNING" for state in states)
        budget = searches.plan.budget * self._tuning.studies
        numbers = {"trials": ended, "budget_units": budget}
        why = f"{ended} trials of about {budget}"
        return Part("running" if running else "partly", min(1.0, ended / budget), why, numbers)

    def _training(
        self, task: str, arm: str, best: dict[str, Any], summary: dict[str, Any], searched: bool
    ) -> Part:
        """Return the state of a run."""
        data, stale_data = self._data[task]
        identity = None
        if data and best:
            try:
                identity = identify_run(task, arm, data, self._parameters, studies_of(best))
            except StudyError:
                identity = None
        if identity and (unfinished := self._checkpoint(task, arm, identity)):
            return unfinished
        names = [f"training.{task}.{arm}.{part}" for part in RUN_FILES]
        if not summary or not all(self._files.path(name).exists() for name in names):
            return Part("missing", why=stale_data)
        ends = zip(summary.get("seeds", []), summary.get("diverged_at", []), strict=False)
        numbers = {"diverged": [seed for seed, end in ends if end is not None]}
        if stale_data or identity is None or not searched:
            return Part("stale", why=stale_data or "its search", numbers=numbers)
        if summary.get("digest") == identity.digest:
            return Part("done", 1.0, numbers=numbers)
        now = identity.record()
        sections = [s for s in ("configuration", "logging", "made_by") if s in summary]
        found = [changes(summary[section], now[section]) for section in sections]
        why = ", ".join(filter(None, found)) or "code, device or what is logged"
        return Part("stale", why=why, numbers=numbers)

    def _checkpoint(self, task: str, arm: str, identity: Identity) -> Part | None:
        """Return the state of a run that has a checkpoint of this configuration."""
        path = self._files.path(f"training.{task}.{arm}.folder") / "checkpoint.pt"
        saved = _load(path) if path.is_file() else {}
        if saved.get("digest") != identity.digest:
            return None
        settings = training_parameters(arm, self._parameters["training"])
        done, state = saved["state"].get("done", []), saved["state"]["state"] or {}
        # Each part is some seeds at one length.
        lengths = sum([1.0, *lengths_of(task, arm, settings)])
        ended = sum(part["share"] * len(part["seeds"]) for part in done)
        share = min(1.0, ended / (int(identity.configuration["seeds"]) * lengths))
        age = time.time() - path.stat().st_mtime
        late = age > 2 * settings.checkpoint_seconds + CHECKPOINT_DELAY
        numbers = {"iteration": int(state.get("iteration", 0)), "parts_done": len(done)}
        why = f"at iteration {numbers['iteration']:,} after {len(done)} finished parts"
        return Part("interrupted" if late else "running", share, why, numbers)


def _load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without loading its tensors; empty if it is damaged."""
    import torch

    try:
        with on_disk(path) as file:
            return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # zipfile, pickle and torch raise any error
        return {}
