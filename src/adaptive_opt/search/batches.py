"""Create or finish a batch of trials in one database transaction.

With Optuna's own interface, a trial with two hyperparameters takes six transactions: four to
create it and two to finish it. A batch of 64 trials then waits as long for the database as for
its training. These functions write the same rows through Optuna's table models. Optuna checks
the schema when it opens a database.

Source: Optuna, ``optuna.storages.RDBStorage``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage

__all__ = ["FinishedTrial", "create_trials", "finish_trials"]


@dataclass(frozen=True)
class FinishedTrial:
    """Final state of a trial.

    Attributes:
        trial_id: Optuna's id of the trial in the database.
        state: name of an ``optuna.trial.TrialState``.
        value: objective, if the state is ``COMPLETE``; else None.
        attributes: user attributes to store with the trial.
    """

    trial_id: int
    state: str
    value: float | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


def create_trials(
    storage: RDBStorage,
    study_id: int,
    count: int,
    distributions: Mapping[str, BaseDistribution],
    draw: Callable[[int], Mapping[str, float]],
    attributes: Mapping[str, Any] | None = None,
) -> list[int]:
    """Create running trials with hyperparameters and consecutive numbers.

    Args:
        storage: database of the study.
        study_id: Optuna's id of the study in the database.
        count: number of trials.
        distributions: distribution of each hyperparameter.
        draw: maps a trial's number to its hyperparameters.
        attributes: user attributes to store with every trial.

    Returns:
        The numbers of the new trials.
    """
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import func, insert, select
    from sqlalchemy.orm import Session

    described = {name: distribution_to_json(d) for name, d in distributions.items()}
    with Session(storage.engine) as session, session.begin():
        # Only one worker at a time may number trials. A server locks this row; SQLite locks the
        # file at the first insertion.
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        now = datetime.now()
        trials = [
            models.TrialModel(study_id=study_id, state=TrialState.RUNNING, datetime_start=now)
            for _ in range(count)
        ]
        session.add_all(trials)
        session.flush()
        table = models.TrialModel
        earlier = table.study_id == study_id, table.trial_id < min(t.trial_id for t in trials)
        first = session.scalar(select(func.count()).select_from(table).where(*earlier)) or 0
        encoded = {key: json.dumps(value) for key, value in (attributes or {}).items()}
        params, user_attrs = [], []
        for number, trial in enumerate(sorted(trials, key=lambda t: t.trial_id), start=first):
            trial.number = number
            params += [
                {
                    "trial_id": trial.trial_id,
                    "param_name": name,
                    "param_value": distributions[name].to_internal_repr(value),
                    "distribution_json": described[name],
                }
                for name, value in draw(number).items()
            ]
            user_attrs += [
                {"trial_id": trial.trial_id, "key": key, "value_json": value}
                for key, value in encoded.items()
            ]
        if params:
            session.execute(insert(models.TrialParamModel), params)
        if user_attrs:
            session.execute(insert(models.TrialUserAttributeModel), user_attrs)
    return list(range(first, first + count))


def finish_trials(storage: RDBStorage, ends: Sequence[FinishedTrial]) -> list[bool]:
    """Store the final states of running trials.

    Args:
        storage: database of the study.
        ends: final states, at most one for each trial.

    Returns:
        For each trial, whether it was still running. One that was not stays unchanged.
    """
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import insert, select, update
    from sqlalchemy.orm import Session

    own, values = models.TrialModel, models.TrialValueModel
    attributes: list[dict[str, Any]] = []
    with Session(storage.engine) as session, session.begin():
        running = own.trial_id.in_([e.trial_id for e in ends]), own.state == TrialState.RUNNING
        # An update without effect: it locks the rows until the commit, also in SQLite.
        lock = update(own).where(*running).values(number=own.number)
        session.execute(lock, execution_options={"synchronize_session": False})
        found: dict[int, Any] = {
            int(t.trial_id): t for t in session.scalars(select(own).where(*running))
        }
        scores = []
        for end in (e for e in ends if e.trial_id in found):
            trial = found[end.trial_id]
            trial.state, trial.datetime_complete = TrialState[end.state], datetime.now()
            common = {"trial_id": end.trial_id}
            attributes += [
                {**common, "key": key, "value_json": json.dumps(value)}
                for key, value in end.attributes.items()
            ]
            if end.value is not None:
                stored, kind = values.value_to_stored_repr(end.value)
                scores.append({**common, "objective": 0, "value": stored, "value_type": kind})
        if attributes:
            session.execute(insert(models.TrialUserAttributeModel), attributes)
        if scores:
            session.execute(insert(values), scores)
    return [e.trial_id in found for e in ends]
