"""From the parameters to the search for one (task, arm)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from adaptive_opt.engine.optimizers import cost_of_run
from adaptive_opt.engine.trials import Trial, TrialPlan, train_network_trial, train_trials
from adaptive_opt.parameters import (
    TaskTuningParameters,
    TuningParameters,
    resolve_arm,
    search_space,
    task_parameters,
    training_parameters,
    with_values,
)
from adaptive_opt.study import get_task
from adaptive_opt.tasks.digest import data_digest
from adaptive_opt.tasks.load import task_data

from .identity import middle_of, trial_identity
from .objective import score
from .spaces import Space
from .storage import Storage
from .tune import Configuration, Outcome, Report, Search, search

__all__ = ["as_published", "search_arm"]

logger = logging.getLogger(__name__)


def search_arm(
    task: str,
    arm: str,
    tensors: dict[str, Tensor],
    parameters: dict[str, Any],
    scale: str,
    storage: Storage,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The trials of an arm on a task, and the best configuration.

    Args:
        task, arm, scale: names.
        tensors: what is learnt.
        parameters: the sections ``tasks``, ``arms``, ``training`` and ``tuning``.
        storage: where the study is kept.

    Raises:
        StudyError: see :func:`.tune.search`.
    """
    tuning = TuningParameters(**parameters["tuning"])
    space = Space.from_parameters(search_space(task, arm, tuning, parameters["arms"][task]))
    if tuning.source == "published" or not space:
        if tuning.source == "search":
            logger.warning("%s, %s: no space to search; taken as it is given", task, arm)
        return as_published(task, arm)
    problem = _Problem(task, arm, task_data(task, tensors), parameters, tuning.tasks[task], space)
    wanted = Search(
        task=task,
        arm=arm,
        scale=scale,
        space=space,
        train=problem.train,
        depends_on=trial_identity(
            task, arm, data_digest(task, tensors), parameters, problem.plan, space
        ),
        budget=problem.budget,
        cost=problem.cost,
        batch=problem.plan.batch,
        sampler=problem.plan.sampler,
        startup=problem.plan.startup,
        pruner=problem.plan.pruner,
        epochs=problem.plan.epochs,
        min_epochs=problem.plan.min_epochs,
        seed=tuning.seed,
        heartbeat_seconds=tuning.heartbeat_seconds,
        retries=tuning.retries,
    )
    trials, best = search(wanted, storage, tuning.widen)
    length = {"trial_epochs": problem.plan.epochs, "trial_seeds": problem.plan.seeds}
    length |= {"budget_units": problem.plan.budget}
    known = {"objective": problem.plan.objective, "made_of": dict(wanted.depends_on)}
    return trials, {**best, **length, **known}


def as_published(task: str, arm: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """No trials, and a record that changes nothing of what ``arms`` says."""
    record = {"task": task, "arm": arm, "source": "published", "values": {}, "edges": {}}
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
        )
        self.resolved = self._resolve(middle_of(space))
        self.batches = self._batches_per_epoch()
        self.iterations = plan.epochs * self.batches
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
        return [self._train_network(h, common, report) for h in hyperparameters]

    def _train_network(
        self, hyperparameters: dict[str, Any], common: dict[str, Any], report: Report
    ) -> Outcome:
        pruned = False

        def on_epoch(number: int, history: pd.DataFrame) -> bool:
            nonlocal pruned
            value = self._score(history)
            if value == float("inf"):
                return True
            # Past its end nothing is left to stop.
            pruned = report(number, value) and number < self.plan.epochs
            return pruned

        trial = train_network_trial(
            self.data,
            hyperparameters=hyperparameters,
            validates=self.plan.objective == "valid_loss",
            report=on_epoch,
            **common,
        )
        return self._outcome(trial, pruned=pruned)

    def _outcome(self, trial: Trial, *, pruned: bool) -> Outcome:
        value = self._score(trial.history)
        epochs = trial.iterations // self.batches
        outcome, reason = "complete", ""
        if trial.diverged_at is not None or value == float("inf"):
            value, outcome = float("inf"), "diverged"
            reason = "" if trial.diverged_at is None else f"at iteration {trial.diverged_at:,}"
        elif pruned:
            outcome, reason = "pruned", f"Hyperband stopped it after epoch {epochs}"
        cost = self._cost(trial.iterations)
        return Outcome(value, outcome, cost, trial.seconds, epochs, reason)

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
