"""Whole batches of trials, each in one transaction.

Optuna's interface takes four transactions to make a trial with two hyperparameters and two more
to finish it; a batch of 64 then waits as long for the database as for its training. These write
the same rows into the same tables, by Optuna's own models of them, whose schema it checks when a
database is opened.

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

__all__ = ["Finish", "create_trials", "finish_trials"]


@dataclass(frozen=True)
class Finish:
    """How a trial ends.

    Attributes:
        trial_id: in the database.
        state: of Optuna's, by name.
        value: of the objective, if the state is ``COMPLETE``.
        attributes: what else is kept of it, by key.
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
    """Running trials with their hyperparameters, numbered without a gap.

    Args:
        storage: a database.
        study_id: of the study there.
        count: of trials.
        distributions: of the hyperparameters.
        draw: the hyperparameters of a trial, from its number.
        attributes: what else is kept of each, by key.

    Returns:
        Their numbers.
    """
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import func, insert, select
    from sqlalchemy.orm import Session

    described = {name: distribution_to_json(d) for name, d in distributions.items()}
    with Session(storage.engine) as session, session.begin():
        # One worker at a time numbers trials: on a server this row is locked, in SQLite the
        # file from the first insertion on.
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        now = datetime.now()
        trials = [
            models.TrialModel(study_id=study_id, state=TrialState.RUNNING, datetime_start=now)
            for _ in range(count)
        ]
        session.add_all(trials)
        session.flush()
        own = models.TrialModel
        before = own.study_id == study_id, own.trial_id < min(t.trial_id for t in trials)
        first = session.scalar(select(func.count()).select_from(own).where(*before)) or 0
        noted = {key: json.dumps(value) for key, value in (attributes or {}).items()}
        rows, notes = [], []
        for number, trial in enumerate(sorted(trials, key=lambda t: t.trial_id), start=first):
            trial.number = number
            rows += [
                {
                    "trial_id": trial.trial_id,
                    "param_name": name,
                    "param_value": distributions[name].to_internal_repr(value),
                    "distribution_json": described[name],
                }
                for name, value in draw(number).items()
            ]
            notes += [
                {"trial_id": trial.trial_id, "key": key, "value_json": value}
                for key, value in noted.items()
            ]
        if rows:
            session.execute(insert(models.TrialParamModel), rows)
        if notes:
            session.execute(insert(models.TrialUserAttributeModel), notes)
    return list(range(first, first + count))


def finish_trials(storage: RDBStorage, ends: Sequence[Finish]) -> list[bool]:
    """Put the ends of running trials on record.

    Args:
        storage: a database.
        ends: of different trials.

    Returns:
        For each whether it was still running; of one that was not, nothing is changed.
    """
    from optuna.storages._rdb import models
    from optuna.trial import TrialState
    from sqlalchemy import insert, select, update
    from sqlalchemy.orm import Session

    own, values = models.TrialModel, models.TrialValueModel
    attributes: list[dict[str, Any]] = []
    with Session(storage.engine) as session, session.begin():
        running = own.trial_id.in_([e.trial_id for e in ends]), own.state == TrialState.RUNNING
        # Changes nothing, but locks them until the end, in SQLite too.
        touch = update(own).where(*running).values(number=own.number)
        session.execute(touch, execution_options={"synchronize_session": False})
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
