"""Search the hyperparameters of one arm on one task, as the parameters specify."""

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

from .identity import midpoint, study_seed, trial_identity
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
    """Run ``tuning.studies`` independent searches for an arm on a task.

    Each search has the whole budget, and its own random streams for sampling and for training.

    Args:
        task, arm, scale: names.
        tensors: the task's data, or its Rahimi–Recht function.
        parameters: the sections ``tasks``, ``arms``, ``training``, ``tuning`` and ``analysis``.
        storage: database of the Optuna studies.

    Returns:
        All trials, with the number of the search in the column ``study``, and a record:
        ``studies`` (one record a search), ``values`` and ``value`` of the best search, and sums
        over the searches. A search without a usable configuration has its reason in ``failed``.

    Raises:
        StudyError: see :func:`.tune.search`.
    """
    tuning = TuningParameters(**parameters["tuning"])
    space = Space.from_parameters(search_space(task, arm, tuning, parameters["arms"][task]))
    if tuning.source == "published" or not space:
        if tuning.source == "search":
            logger.warning(
                "%s, %s: no search space; using the configuration under `arms`", task, arm
            )
        return as_published(task, arm)
    data, plan = task_data(task, tensors), tuning.tasks[task]
    identity = trial_identity(task, arm, data_digest(task, tensors), parameters, plan, space)
    tables, records = [], []
    for study in range(tuning.studies):
        runner = _TrialRunner(task, arm, data, parameters, plan, space, study)
        settings = Search(
            task=task,
            arm=arm,
            scale=scale,
            space=space,
            train=runner.train,
            depends_on=identity,
            budget=runner.budget,
            cost=runner.cost,
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
        trials, record = search(settings, storage, tuning.widen)
        tables.append(trials.assign(study=study))
        records.append(record)
    length = {"trial_epochs": plan.epochs, "trial_seeds": plan.seeds, "budget_units": plan.budget}
    losses = runner.constant_losses()
    inputs = {"objective": plan.objective, "made_of": dict(identity), "constants": losses}
    margin = VerdictParameters(**parameters.get("analysis", {}).get("verdict", {})).constant_margin
    best = combine(records, runner.constant_score(losses), margin)
    return pd.concat(tables, ignore_index=True), {**best, **length, **inputs}


def combine(records: Sequence[dict[str, Any]], constant: float, margin: float) -> dict[str, Any]:
    """Combine the records of all searches for one arm into one.

    A search whose best trial does not beat a constant prediction by the margin has failed,
    although it has a configuration.

    Args:
        records: one record a search.
        constant: objective of the best constant prediction.
        margin: required improvement, as a share of the loss.

    Returns:
        The best search's record, with ``trials``, ``budget``, ``spent`` and ``seconds`` summed
        over searches, ``studies`` (all records), and ``failed``: the best search's reason if
        every search failed, else empty.
    """
    if records[0]["objective"] == "time_to_target":  # in decades of the loss
        limit = constant + math.log10(1 - margin)
    else:
        limit = constant * (1 - margin)
    studies = []
    for record in records:
        failed = record["failed"]
        if record["found"] and record["value"] > limit:
            failed = (
                f"its best trial ({record['value']:.4g}) does not beat a constant prediction "
                f"({constant:.4g}) by {100 * margin:g} % of its loss"
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
    """Return no trials, and a record that keeps the configuration under ``arms``."""
    study = {"source": "published", "values": {}, "found": True, "failed": "", "edges": {}}
    record = {"task": task, "arm": arm, **study, "studies": [study]}
    return pd.DataFrame({"task": [], "arm": [], "number": [], "value": []}), record


class _TrialRunner:
    """Trains and scores the trials of one search for an arm on a task."""

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
        self.is_network = get_task(task).family != "rahimi_recht"
        self.trial_plan = TrialPlan(
            epochs=plan.epochs,
            seeds=plan.seeds,
            horizon=plan.epochs if plan.horizon == "trial" else self.settings.epochs,
            study=study,
            report_epochs=plan.min_epochs if plan.pruner == "hyperband" else 1,
        )
        self.resolved = self._resolve(midpoint(space))
        self.batches_per_epoch = self._count_batches()
        self.iterations = round(plan.epochs * self.batches_per_epoch)
        self.budget = float(plan.budget * plan.seeds * self.iterations)
        self.cost = self._cost(self.iterations)

    def train(self, configurations: Sequence[Configuration], report: Report) -> list[Outcome]:
        """Train the configurations; see :attr:`.tune.Search.train`."""
        hyperparameters = [self._resolve(c)["hyperparameters"] for c in configurations]
        common = {
            "task": self.task,
            "arm": self.arm,
            "optimizer": self.resolved["optimizer"],
            "task_parameters": self.settings,
            "training": self.training,
            "plan": self.trial_plan,
        }
        if not self.is_network:
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
            # A trial that has reached its last report is complete, not pruned.
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
        epochs = trial.iterations / self.batches_per_epoch
        outcome, reason = "complete", ""
        if trial.diverged_at is not None or value == float("inf"):
            value, outcome = float("inf"), "diverged"
            reason = "" if trial.diverged_at is None else f"at iteration {trial.diverged_at:,}"
        elif pruned:
            outcome, reason = "pruned", f"stopped by Hyperband after epoch {epochs:g}"
        cost = self._cost(trial.iterations)
        return Outcome(value, outcome, cost, trial.seconds, epochs, reason)

    def constant_losses(self) -> dict[str, float]:
        """Return the loss of the best constant prediction, by metric."""
        splits = ("train", "valid") if self.is_network else ("train",)
        return {
            f"{split}_loss": constant_loss(
                self.data, self.task, self.settings, self.training, split
            )
            for split in splits
        }

    def constant_score(self, losses: dict[str, float]) -> float:
        """Return the objective of a constant prediction with these losses."""
        if self.plan.objective == "time_to_target":
            return 1 + max(0.0, math.log10(losses["train_loss"] / self.target))
        return losses[self.plan.objective]

    def _score(self, history: pd.DataFrame) -> float:
        return score(history, self.plan.objective, target=self.target, iterations=self.iterations)

    def _cost(self, iterations: int) -> float:
        cost_of_seed = cost_of_run(
            self.resolved["optimizer"],
            self.resolved["hyperparameters"],
            iterations,
            self.training.curvature_share if self.is_network else 1.0,
        )
        return cost_of_seed * self.plan.seeds

    def _resolve(self, values: Configuration) -> dict[str, Any]:
        arms = with_values(self.parameters["arms"], self.task, self.arm, values)
        return resolve_arm(self.arm, arms[self.task], self.training)

    def _count_batches(self) -> int:
        if not self.is_network:
            samples = len(self.data.inputs)
            return -(-samples // min(int(self.settings.batch_size), samples))
        from adaptive_opt.engine.network import build_network_task

        problem = build_network_task(self.data, self.task, [0], self.settings, self.training)
        return int(problem.batches_per_epoch)
