"""From the parameters to the search for one (task, arm)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from adaptive_opt.engine.optimizers import cost_of_run
from adaptive_opt.engine.trials import (
    Trial,
    TrialPlan,
    constant_loss,
    train_network_trials,
    train_trials,
)
from adaptive_opt.parameters import (
    TaskTuningParameters,
    TuningParameters,
    VerdictParameters,
    resolve_arm,
    search_space,
    task_parameters,
    training_parameters,
    with_values,
)
from adaptive_opt.study import get_task
from adaptive_opt.tasks.digest import data_digest
from adaptive_opt.tasks.load import task_data

from .identity import middle_of, study_seed, trial_identity
from .objective import score
from .spaces import Space
from .storage import Storage
from .tune import Configuration, Outcome, Report, Search, search

__all__ = ["as_published", "combine", "search_arm"]

logger = logging.getLogger(__name__)


def search_arm(
    task: str,
    arm: str,
    tensors: dict[str, Tensor],
    parameters: dict[str, Any],
    scale: str,
    storage: Storage,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The trials of all searches for an arm on a task, and what each found.

    The searches are independent: each has the whole budget, and random streams of its own for
    its draws and for the runs of its trials.

    Args:
        task, arm, scale: names.
        tensors: what is learnt.
        parameters: the sections ``tasks``, ``arms``, ``training``, ``tuning`` and ``analysis``.
        storage: where the studies are kept.

    Returns:
        The trials, with a column ``study``; the record: ``studies``, one record each, ``values``
        and ``value`` of the best of them, and sums over them.

    Raises:
        StudyError: see :func:`.tune.search`; but not where a search finds nothing, which is on
            record as ``failed``.
    """
    tuning = TuningParameters(**parameters["tuning"])
    space = Space.from_parameters(search_space(task, arm, tuning, parameters["arms"][task]))
    if tuning.source == "published" or not space:
        if tuning.source == "search":
            logger.warning("%s, %s: no space to search; taken as it is given", task, arm)
        return as_published(task, arm)
    data, plan = task_data(task, tensors), tuning.tasks[task]
    identity = trial_identity(task, arm, data_digest(task, tensors), parameters, plan, space)
    tables, records = [], []
    for study in range(tuning.studies):
        problem = _Problem(task, arm, data, parameters, plan, space, study)
        wanted = Search(
            task=task,
            arm=arm,
            scale=scale,
            space=space,
            train=problem.train,
            depends_on=identity,
            budget=problem.budget,
            cost=problem.cost,
            batch=plan.batch,
            sampler=plan.sampler,
            startup=plan.startup,
            pruner=plan.pruner,
            epochs=plan.epochs,
            min_epochs=plan.min_epochs,
            seed=study_seed(tuning.seed, study),
            heartbeat_seconds=tuning.heartbeat_seconds,
            retries=tuning.retries,
        )
        trials, record = search(wanted, storage, tuning.widen)
        tables.append(trials.assign(study=study))
        records.append(record)
    length = {"trial_epochs": plan.epochs, "trial_seeds": plan.seeds, "budget_units": plan.budget}
    known = {"objective": plan.objective, "made_of": dict(identity)}
    known["constants"] = constants = problem.constants()
    margin = VerdictParameters(**parameters.get("analysis", {}).get("verdict", {})).constant_margin
    best = combine(records, problem.as_value(constants), margin)
    return pd.concat(tables, ignore_index=True), {**best, **length, **known}


def combine(records: Sequence[dict[str, Any]], constant: float, margin: float) -> dict[str, Any]:
    """One record of several searches for the same arm.

    A search that does not beat the constant prediction by the margin has failed, although it
    has a configuration: ``failed`` says so.

    Args:
        records: of the searches.
        constant: the objective's value for the best constant prediction.
        margin: a share of the loss.
    """
    if records[0]["objective"] == "time_to_target":  # decades, not a loss
        limit = constant + math.log10(1 - margin)
    else:
        limit = constant * (1 - margin)
    studies = []
    for record in records:
        failed = record["failed"]
        if record["found"] and record["value"] > limit:
            failed = (
                f"its best trial ({record['value']:.4g}) is no better than a constant prediction "
                f"({constant:.4g})"
            )
        studies.append({**record, "failed": failed})
    best = min(studies, key=lambda s: s["value"] if s["found"] else math.inf)
    outcomes = {name for record in records for name in record["trials"]}
    return {
        **best,
        "trials": {o: sum(r["trials"].get(o, 0) for r in records) for o in sorted(outcomes)},
        **{name: sum(r[name] for r in records) for name in ("budget", "spent", "seconds")},
        "failed": "" if any(not s["failed"] for s in studies) else best["failed"],
        "studies": studies,
    }


def as_published(task: str, arm: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """No trials, and a record that changes nothing of what ``arms`` says."""
    study = {"source": "published", "values": {}, "found": True, "failed": "", "edges": {}}
    record = {"task": task, "arm": arm, **study, "studies": [study]}
    return pd.DataFrame({"task": [], "arm": [], "number": [], "value": []}), record


class _Problem:
    """What a trial of an arm on a task is."""

    def __init__(
        self,
        task: str,
        arm: str,
        data: Any,
        parameters: dict[str, Any],
        plan: TaskTuningParameters,
        space: Space,
        study: int,
    ) -> None:
        self.task, self.arm, self.data, self.plan = task, arm, data, plan
        self.parameters = parameters
        self.training = training_parameters(arm, parameters["training"])
        self.settings = task_parameters(task, parameters["tasks"])
        self.target = self.settings.target_loss
        self.on_network = get_task(task).family != "rahimi_recht"
        self.trial_plan = TrialPlan(
            epochs=plan.epochs,
            seeds=plan.seeds,
            horizon=plan.epochs if plan.horizon == "trial" else self.settings.epochs,
            study=study,
            report_epochs=plan.min_epochs if plan.pruner == "hyperband" else 1,
        )
        self.resolved = self._resolve(middle_of(space))
        self.batches = self._batches_per_epoch()
        self.iterations = round(plan.epochs * self.batches)
        self.budget = float(plan.budget * plan.seeds * self.iterations)
        self.cost = self._cost(self.iterations)

    def train(self, configurations: Sequence[Configuration], report: Report) -> list[Outcome]:
        """As :attr:`.tune.Search.train`."""
        hyperparameters = [self._resolve(c)["hyperparameters"] for c in configurations]
        common = {
            "task": self.task,
            "arm": self.arm,
            "optimizer": self.resolved["optimizer"],
            "task_parameters": self.settings,
            "training": self.training,
            "plan": self.trial_plan,
        }
        if not self.on_network:
            trials = train_trials(self.data, configurations=hyperparameters, **common)
            return [self._outcome(trial, pruned=False) for trial in trials]
        pruned = False

        def on_report(number: int, history: pd.DataFrame) -> bool:
            nonlocal pruned
            if self.plan.pruner == "none":
                return False
            value = self._score(history)
            if value == float("inf"):
                return True
            # Past its end nothing is left to stop.
            pruned = report(number, value) and number < self.plan.reports
            return pruned

        trials = train_network_trials(
            self.data,
            configurations=hyperparameters,
            validates=self.plan.objective == "valid_loss",
            report=on_report,
            **common,
        )
        return [self._outcome(trial, pruned=pruned) for trial in trials]

    def _outcome(self, trial: Trial, *, pruned: bool) -> Outcome:
        value = self._score(trial.history)
        epochs = trial.iterations / self.batches
        outcome, reason = "complete", ""
        if trial.diverged_at is not None or value == float("inf"):
            value, outcome = float("inf"), "diverged"
            reason = "" if trial.diverged_at is None else f"at iteration {trial.diverged_at:,}"
        elif pruned:
            outcome, reason = "pruned", f"Hyperband stopped it after epoch {epochs:g}"
        cost = self._cost(trial.iterations)
        return Outcome(value, outcome, cost, trial.seconds, epochs, reason)

    def constants(self) -> dict[str, float]:
        """Losses of the best predictions that do not look at the input, by metric."""
        splits = ("train", "valid") if self.on_network else ("train",)
        return {
            f"{split}_loss": constant_loss(
                self.data, self.task, self.settings, self.training, split
            )
            for split in splits
        }

    def as_value(self, constants: dict[str, float]) -> float:
        """The objective's value for such a prediction."""
        if self.plan.objective == "time_to_target":
            return 1 + max(0.0, math.log10(constants["train_loss"] / self.target))
        return constants[self.plan.objective]

    def _score(self, history: pd.DataFrame) -> float:
        return score(history, self.plan.objective, target=self.target, iterations=self.iterations)

    def _cost(self, iterations: int) -> float:
        one = cost_of_run(
            self.resolved["optimizer"],
            self.resolved["hyperparameters"],
            iterations,
            self.training.curvature_share if self.on_network else 1.0,
        )
        return one * self.plan.seeds

    def _resolve(self, values: Configuration) -> dict[str, Any]:
        arms = with_values(self.parameters["arms"], self.task, self.arm, values)
        return resolve_arm(self.arm, arms[self.task], self.training)

    def _batches_per_epoch(self) -> int:
        if not self.on_network:
            samples = len(self.data.inputs)
            return -(-samples // min(int(self.settings.batch_size), samples))
        from adaptive_opt.engine.network import build_network_task

        problem = build_network_task(self.data, self.task, [0], self.settings, self.training)
        return int(problem.batches_per_epoch)
