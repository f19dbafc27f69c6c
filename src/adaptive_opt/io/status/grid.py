"""The state of each search and training, from files; read only.

torch is imported only to read a checkpoint and to name a GPU.
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

RUN_FILES = ("history", "weights", "snapshots", "lengths")
"""Datasets of a finished run beside its summary."""

CHECKPOINT_DELAY = 30.0
"""Seconds that a checkpoint may be late before its run counts as broken off."""


@dataclass(frozen=True)
class Part:
    """The search or the training of a cell.

    Attributes:
        state: ``done``, ``given`` (nothing to search), ``running``, ``partly``, ``broken off`` (a
            run continues from its checkpoint), ``stale`` (inputs have changed) or ``missing``.
        share: how much of the work is done, from 0 to 1.
        why: what has changed, or how far it is.
        numbers: ``trials``, ``iteration``, ``iterations``, ``diverged``.
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
        try:
            found = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def arrays(self, name: str, only: Sequence[str] = ()) -> dict[str, Any]:
        """Read tensors as arrays, all or those of some names."""
        from safetensors import SafetensorError, safe_open

        try:
            with on_disk(self.path(name)) as path, safe_open(path, framework="numpy") as file:
                names = [n for n in file.keys() if not only or n in only]  # noqa: SIM118
                return {n: file.get_tensor(n) for n in names}
        except (OSError, SafetensorError):
            return {}


def survey(
    asked: Mapping[tuple[str, str], set[str]],
    parameters: dict[str, Any],
    files: Files,
    storage: Storage,
) -> tuple[list[Cell], str]:
    """Return the state of each cell, and why searches in progress cannot be seen.

    Args:
        asked: for each (task, arm), ``search`` and ``training`` or one of them.
        parameters: all parameters, already checked.
        files: results.
        storage: Optuna's studies.
    """
    look = _Survey(asked, parameters, files, storage)
    cells = []
    for cell, parts in asked.items():
        search = look.search(*cell)
        training = look.training(*cell, search) if "training" in parts else None
        asked_search = search if "search" in parts else None
        cells.append(Cell(*cell, asked_search, training, look.best[cell], look.summaries[cell]))
    return cells, look.hidden


class _Survey:
    def __init__(
        self,
        asked: Mapping[tuple[str, str], set[str]],
        parameters: dict[str, Any],
        files: Files,
        storage: Storage,
    ) -> None:
        self.parameters, self.files, self.storage = parameters, files, storage
        self.tuning = TuningParameters(**parameters["tuning"])
        self.best = {(t, a): files.record(f"tuning.{t}.{a}.best") for t, a in asked}
        self.summaries = {(t, a): files.record(f"training.{t}.{a}.summary") for t, a in asked}
        self.data = {task: self._data(task) for task in {task for task, _ in asked}}
        self.hidden = ""
        self._opened: Any = None

    def _data(self, task: str) -> tuple[str, str]:
        """Return the digest of a task's data, and why other data will replace them."""
        from adaptive_opt.tasks.digest import data_digest
        from adaptive_opt.tasks.fingerprint import as_hex

        row = get_task(task)
        learns = row.learns or task
        if row.family == "rahimi_recht":
            section = "rr_synthesis"
            tensors = self.files.arrays(row.dataset)
            made_with = self.files.record(f"rr_synthesis.{learns}.report").get("made_with")
            wanted: Any = RRFunctionParameters(**self.parameters[section][learns]).model_dump()
        else:
            section = "data"
            tensors = self.files.arrays(row.dataset, ["digest", "parameters"])
            made_with = as_hex(tensors["parameters"]) if "parameters" in tensors else None
            model = ImageDataParameters if row.family == "images" else TextDataParameters
            wanted = model(**self.parameters[section][learns]).digest()
        try:
            digest = data_digest(task, tensors)
        except (KeyError, StudyError):
            return "", "data: not made yet"
        return digest, f"{section}.{learns}" if made_with not in (None, wanted) else ""

    def search(self, task: str, arm: str) -> Part:
        """Return the state of a search."""
        best, (data, stale_data) = self.best[task, arm], self.data[task]
        source = best.get("source")
        given = search_space(task, arm, self.tuning, self.parameters["arms"][task])
        if self.tuning.source == "published" or not given:
            if source in (None, "published"):
                return Part("given" if best else "missing", 1.0)
            return Part("stale", 1.0, "tuning.source")
        if not data or stale_data:
            return Part("stale", why=stale_data) if best else Part("missing")
        plan, space = self.tuning.tasks[task], Space.from_parameters(given)
        identity = trial_identity(task, arm, data, self.parameters, plan, space)

        def name(number: int, space: Space) -> str:
            seed, scale = study_seed(self.tuning.seed, number), self.parameters["scale"]
            return study_name(scale, task, arm, identity, space, plan, seed)

        if source == "search" and self._made_by(best, space, name):
            trials = best.get("trials", {})
            numbers = {"trials": sum(trials.values()), **trials}
            share = best["budget_units"] / plan.budget if "budget_units" in best else 1.0
            if share >= 1:
                return Part("done", 1.0, numbers=numbers)
            return Part("partly", share, f"{numbers['trials']} trials", numbers)
        if unfinished := self._unfinished(
            [name(i, space) for i in range(self.tuning.studies)], plan
        ):
            return unfinished
        if not best:
            return Part("missing")
        changed = changes(best.get("made_of", {}), identity) or "tuning"
        return Part("stale", why="tuning.source" if source == "published" else changed)

    def _made_by(
        self, best: Mapping[str, Any], space: Space, name: Callable[[int, Space], str]
    ) -> bool:
        """Whether a record is of these searches, whose spaces may have been widened since."""
        studies = best.get("studies", [])
        for number, study in enumerate(studies):
            searched = space
            if study.get("widened"):
                searched = Space({n: Dimension(*d) for n, d in study["space"].items()})
            if study.get("study") != name(number, searched) or study["widened"] > self.tuning.widen:
                return False
        return len(studies) == self.tuning.studies

    def _unfinished(self, names: Sequence[str], plan: TaskTuningParameters) -> Part | None:
        """Return the state of searches that have trials and no record yet."""
        trials = [trial for name in names for trial in self._trials(name)]
        if not trials:
            return None
        ended = sum(t.state.is_finished() for t in trials)
        state = "running" if any(t.state.name == "RUNNING" for t in trials) else "partly"
        budget = plan.budget * len(names)
        numbers = {"trials": ended, "budget_units": budget}
        return Part(state, min(1.0, ended / budget), f"{ended} trials of about {budget}", numbers)

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

    def training(self, task: str, arm: str, search: Part) -> Part:
        """Return the state of a run."""
        best, summary = self.best[task, arm], self.summaries[task, arm]
        data, stale_data = self.data[task]
        identity = None
        if data and best:
            try:
                identity = identify_run(task, arm, data, self.parameters, studies_of(dict(best)))
            except StudyError:
                identity = None
        if identity and (unfinished := self._checkpoint(task, arm, identity)):
            return unfinished
        names = [f"training.{task}.{arm}.{part}" for part in RUN_FILES]
        if not summary or not all(self.files.path(name).exists() for name in names):
            return Part("missing", why=stale_data)
        ends = zip(summary.get("seeds", []), summary.get("diverged_at", []), strict=False)
        numbers = {"diverged": [seed for seed, end in ends if end is not None]}
        if stale_data or identity is None or not search.finished:
            return Part("stale", why=stale_data or "its search", numbers=numbers)
        if summary.get("digest") != identity.digest:
            return Part("stale", why=_what_changed(summary, identity.record()), numbers=numbers)
        return Part("done", 1.0, numbers=numbers)

    def _checkpoint(self, task: str, arm: str, identity: Identity) -> Part | None:
        """Return the state of a run that has a checkpoint of this configuration."""
        path = self.files.path(f"training.{task}.{arm}.folder") / "checkpoint.pt"
        saved = _load(path) if path.is_file() else {}
        if saved.get("digest") != identity.digest:
            return None
        settings = training_parameters(arm, self.parameters["training"])
        done, state = saved["state"].get("done", []), saved["state"]["state"] or {}
        iteration, total = int(state.get("iteration", 0)), self._iterations(task)
        why = f"at iteration {iteration:,}"
        if done:  # each part is some seeds at one length
            why += f" after {len(done)} finished parts"
            lengths = [1.0, *lengths_of(task, arm, settings)]
            ended = sum(part["share"] * len(part["seeds"]) for part in done)
            share = min(1.0, ended / (int(identity.configuration["seeds"]) * sum(lengths)))
        else:
            why += f" of {total:,}" if total else ""
            share = iteration / total if total else 0.0
        age = time.time() - path.stat().st_mtime
        late = age > 2 * settings.checkpoint_seconds + CHECKPOINT_DELAY
        numbers = {"iteration": iteration, "iterations": total, "parts_done": len(done)}
        return Part("broken off" if late else "running", share, why, numbers)

    def _iterations(self, task: str) -> int:
        """Return the iterations of a run, from the data or from another run; 0: unknown."""
        given = self.parameters["tasks"][task]
        if get_task(task).family == "rahimi_recht":
            samples = len(self.files.arrays(get_task(task).dataset, ["X"]).get("X", ()))
            batches = -(-samples // min(given["batch_size"], samples)) if samples else 0
            return int(given["epochs"] * batches)
        sizes = [name for name in ("batch_size", "streams", "window") if name in given]
        for (other, _), summary in self.summaries.items():
            then = summary.get("configuration", {})
            alike = all(then.get(name) == given[name] for name in sizes)
            if other == task and then.get("data") == self.data[task][0] and alike:
                return int(summary["iterations"] * given["epochs"] / then["epochs"])
        return 0


def _what_changed(summary: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    sections = [s for s in ("configuration", "logging", "made_by") if s in summary]
    found = [changes(summary[section], now[section]) for section in sections]
    return ", ".join(filter(None, found)) or "code, device or what is logged"


def _load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without loading its tensors; empty if it is damaged."""
    import torch

    try:
        with on_disk(path) as file:
            return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except Exception:  # zipfile, pickle and torch raise any error
        return {}
