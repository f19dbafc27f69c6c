"""Search one space within a budget and return the best configuration."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from adaptive_opt.engine.results import Progress
from adaptive_opt.engine.seeds import derive_seed
from adaptive_opt.errors import StudyError

from .identity import study_name
from .spaces import Space
from .storage import Storage
from .study import SharedStudy, make_sampler

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Outcome", "Search", "search"]

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 3
"""The search ends after this many consecutive errors: the configurations are not the cause."""

Configuration = dict[str, float]
Report = Callable[[int, float], bool]


@dataclass(frozen=True)
class Outcome:
    """Result of a trial.

    Attributes:
        value: objective; lower is better.
        outcome: ``complete``, ``pruned`` or ``diverged``.
        cost: in gradient-equivalents.
        seconds: training time; for trials trained together, the trial's share.
        epochs: number of epochs trained.
        reason: why the trial is not complete; else empty.
    """

    value: float
    outcome: str
    cost: float
    seconds: float
    epochs: float
    reason: str = ""


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes:
        task, arm, scale: names.
        space: the search space.
        train: trains configurations and returns their results. Its second argument,
            ``report(number, value)``, reports a trial's value after ``number * min_epochs``
            epochs and returns whether to stop the trial.
        depends_on: everything except its configuration that a trial's value depends on.
        budget: total cost of all trials, in gradient-equivalents.
        cost: cost of one trial of full length, in gradient-equivalents.
        batch: number of configurations trained together.
        sampler, startup: see :func:`.study.make_sampler`.
        pruner: ``none`` or ``hyperband``.
        epochs: length of a trial.
        min_epochs: length of the shortest trial under Hyperband.
        seed: seed of the sampler.
        heartbeat_seconds: see :meth:`.storage.Storage.open`.
        retries: see :class:`.study.SharedStudy`.
    """

    task: str
    arm: str
    scale: str
    space: Space
    train: Callable[[Sequence[Configuration], Report], list[Outcome]]
    depends_on: Mapping[str, Any]
    budget: float
    cost: float
    batch: int = 1
    sampler: str = "tpe"
    startup: int = 10
    pruner: str = "none"
    epochs: float = 1
    min_epochs: float = 1
    seed: int = 0
    heartbeat_seconds: int = 10
    retries: int = 2

    @property
    def name(self) -> str:
        """Name of the Optuna study, see ``identity.study_name``."""
        return study_name(
            self.scale, self.task, self.arm, self.depends_on, self.space, self, self.seed
        )


def search(wanted: Search, storage: Storage, widen: int = 0) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Search until the budget is spent, together with any other workers on the same study.

    Args:
        wanted: the search.
        storage: database of the study.
        widen: how often to widen the space and search again if the best value is at a bound.

    Returns:
        A table with one row a trial, and a record of the best trial. If no trial completed, the
        record has ``found`` false and the reason in ``failed``.

    Raises:
        StudyError: the budget is below the cost of a trial, or the database failed.
    """
    if wanted.budget < wanted.cost:
        raise StudyError(
            f"{wanted.task}, {wanted.arm}: a trial costs {wanted.cost:,.0f} gradient-equivalents, "
            f"the budget is {wanted.budget:,.0f}; raise tuning.tasks.{wanted.task}.budget"
        )
    for left in range(widen, -1, -1):
        with storage.explained():
            trials, best = _search_once(wanted, storage)
        if not best["edges"] or not left:
            break
        logger.info(
            "%s, %s: the best value is at a bound; searching a wider space", wanted.task, wanted.arm
        )
        wanted = replace(wanted, space=wanted.space.widened(best["edges"]))
    return trials, {**best, "widened": widen - left}


def _search_once(wanted: Search, storage: Storage) -> tuple[pd.DataFrame, dict[str, Any]]:
    shared = _open_study(wanted, storage)
    trained = failures = 0
    with Progress(f"{wanted.task} {wanted.arm} search", 100, "% of the budget") as progress:
        shown = _percent_spent(shared)
        progress.skip(shown)
        while True:
            claimed = shared.claim(wanted.batch)
            if not claimed:
                if not shared.has_open_trials():
                    break
                time.sleep(min(1.0, wanted.heartbeat_seconds / 4))
                continue
            succeeded = _train_trials(wanted, shared, claimed)
            trained += len(claimed)
            failures = 0 if succeeded else failures + 1
            if failures >= MAX_CONSECUTIVE_FAILURES:
                break
            spent = _percent_spent(shared)
            progress.update(spent - shown)
            shown = spent
    trials = _trial_table(shared, wanted)
    best = _best_record(trials, wanted, shared)
    if not best["found"]:
        logger.warning("%s, %s: the search failed: %s", wanted.task, wanted.arm, best["failed"])
        return trials, best
    logger.info(
        "%s, %s: best %s %.4g of %d trials (%d now): %s",
        wanted.task, wanted.arm, wanted.depends_on.get("objective", "value"), best["value"],
        len(trials), trained, ", ".join(f"{n} {v:.4g}" for n, v in best["values"].items()),
    )  # fmt: skip
    return trials, best


def _open_study(wanted: Search, storage: Storage) -> SharedStudy:
    import optuna

    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if wanted.pruner == "hyperband":
        pruner = optuna.pruners.HyperbandPruner(
            min_resource=1,
            max_resource=round(wanted.epochs / wanted.min_epochs),
            reduction_factor=2,
        )
    sampler = make_sampler(
        wanted.sampler,
        wanted.startup,
        lambda number: derive_seed("tuning", wanted.task, wanted.arm, wanted.seed, number),
    )
    study = optuna.create_study(
        storage=storage.open(wanted.heartbeat_seconds),
        study_name=wanted.name,
        sampler=sampler,
        pruner=pruner,
        load_if_exists=True,
    )
    return SharedStudy(
        study,
        wanted.space,
        wanted.budget,
        wanted.cost,
        startup=sys.maxsize if wanted.sampler == "random" else wanted.startup,
        retries=wanted.retries,
        name=storage.name,
    )


def _train_trials(wanted: Search, shared: SharedStudy, claimed: Sequence[FrozenTrial]) -> bool:
    """Train the claimed trials and store their results; return whether no error occurred."""
    configurations = [wanted.space.decode(t.params) for t in claimed]

    def report(epoch: int, value: float) -> bool:
        (trial,) = claimed
        return shared.report(trial, epoch, value)

    try:
        with shared.heartbeat(claimed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes = wanted.train(configurations, report)
    except StudyError:
        shared.release(claimed)
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        logger.warning("%s, %s: a trial failed: %s", wanted.task, wanted.arm, reason)
        failed = {"outcome": "failed", "cost": wanted.cost, "reason": reason}
        shared.tell([(trial, None, failed) for trial in claimed])
        return False
    except BaseException:  # Ctrl-C: so that no worker waits for the missing heartbeats
        shared.release(claimed)
        raise
    ends = []
    for trial, outcome in zip(claimed, outcomes, strict=True):
        details = {k: v for k, v in vars(outcome).items() if k != "value"}
        ends.append((trial, outcome.value, details))
    shared.tell(ends)
    return True


def _percent_spent(shared: SharedStudy) -> int:
    return min(100, round(100 * shared.spent() / shared.budget))


def _trial_table(shared: SharedStudy, wanted: Search) -> pd.DataFrame:
    """Return one row a trial: its configuration, result and cost."""
    rows = []
    for trial in shared.trials():
        result = trial.user_attrs.get("result", {})
        outcome = result.get("outcome", "failed")
        lost = trial.state.name == "FAIL" and result.get("outcome") != "failed"
        value = trial.value
        if outcome == "pruned" and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        rows.append(
            {
                "number": trial.number,
                "outcome": "failed" if lost else outcome,
                "reason": "its worker died" if lost else result.get("reason", ""),
                "value": np.nan if value is None or lost else float(value),
                **(wanted.space.decode(trial.params) if trial.params else {}),
                "drawn": "at random"
                if trial.number < wanted.startup or wanted.sampler == "random"
                else wanted.sampler,
                "lost": int(trial.user_attrs.get("lost", 0)),
                "epochs": 0.0 if lost else float(result.get("epochs", 0)),
                "gradient_equivalents": 0.0 if lost else float(result.get("cost", 0.0)),
                "seconds": 0.0 if lost else float(result.get("seconds", 0.0)),
            }
        )
    frame = pd.DataFrame(rows)
    frame.insert(0, "task", wanted.task)
    frame.insert(1, "arm", wanted.arm)
    return frame


def _best_record(trials: pd.DataFrame, wanted: Search, shared: SharedStudy) -> dict[str, Any]:
    complete = trials[(trials["outcome"] == "complete") & np.isfinite(trials["value"])]
    counts = trials["outcome"].value_counts()
    record: dict[str, Any] = {"found": not complete.empty, "failed": "", "values": {}, "edges": {}}
    if complete.empty:
        outcomes = ", ".join(f"{n} {o}" for o, n in counts.items())
        reasons = [r for r in dict.fromkeys(trials["reason"]) if r]
        record["failed"] = f"no trial completed ({outcomes}{'; ' + reasons[0] if reasons else ''})"
    else:
        row = complete.loc[complete["value"].idxmin()]
        values = {name: float(row[name]) for name in wanted.space}
        record |= {"values": values, "value": float(row["value"]), "trial": int(row["number"])}
        record["edges"] = wanted.space.edges(values)
    return {
        "task": wanted.task,
        "arm": wanted.arm,
        "source": "search",
        **record,
        "objective": wanted.depends_on.get("trial_objective", ""),
        "space": wanted.space.describe(),
        "trials": {str(outcome): int(n) for outcome, n in counts.items()},
        "budget": wanted.budget,
        "spent": shared.spent(),
        "seconds": float(trials["seconds"].sum()),
        "study": wanted.name,
    }
