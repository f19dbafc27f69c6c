"""Batches of trials: same rows as written by Optuna, correct under concurrency."""

import threading
import time

import optuna
import pytest

from adaptive_opt.search.batches import FinishedTrial, create_trials, finish_trials
from adaptive_opt.search.storage import Storage
from tests.search.workers import SPACE


@pytest.fixture
def study(tmp_path):
    storage = Storage(f"sqlite:///{tmp_path / 'studies.db'}").open()
    return optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))


def create_batch(study, values):
    """Create trials with these configurations; return their ids in the database."""
    database = study._storage._backend
    numbers = create_trials(
        database, study._study_id, len(values), SPACE.distributions(), lambda n: values[n % 3],
        {"worker": {"pid": 1}},
    )  # fmt: skip
    by_number = {t.number: t._trial_id for t in study.trials}
    return [by_number[n] for n in numbers]


CONFIGURATIONS = [{"x": 0.5, "y": -0.25}, {"x": 0.001, "y": 1.0}, {"x": 1.0, "y": 0.0}]
RESULTS = [("COMPLETE", 0.125), ("COMPLETE", float("inf")), ("FAIL", None)]


def test_batch_equals_trials_written_by_optuna(study, tmp_path):
    ids = create_batch(study, CONFIGURATIONS)
    ends = [
        FinishedTrial(i, *end, {"result": {"cost": 2.0}})
        for i, end in zip(ids, RESULTS, strict=True)
    ]
    assert [t.state.name for t in study.trials] == ["RUNNING"] * 3
    assert finish_trials(study._storage._backend, ends) == [True] * 3

    other = optuna.create_study(storage=f"sqlite:///{tmp_path / 'other.db'}")
    for values, (state, value) in zip(CONFIGURATIONS, RESULTS, strict=True):
        other.enqueue_trial(values)
        trial = other.ask(SPACE.distributions())
        trial.set_user_attr("worker", {"pid": 1})
        trial.set_user_attr("result", {"cost": 2.0})
        other.tell(trial, value, state=optuna.trial.TrialState[state])
    own = ("number", "state", "values", "params", "distributions", "user_attrs")
    for ours, theirs in zip(study.trials, other.trials, strict=True):
        assert {k: getattr(ours, k) for k in own} == {k: getattr(theirs, k) for k in own}
        assert abs((ours.datetime_start - theirs.datetime_start).total_seconds()) < 60
        assert ours.duration.total_seconds() >= 0
    assert study.best_trial.number == other.best_trial.number == 0


def test_finished_trial_is_not_finished_again(study):
    ids = create_batch(study, CONFIGURATIONS)
    study._storage.set_trial_state_values(ids[1], optuna.trial.TrialState.FAIL)
    before = study.trials[1]
    ends = [FinishedTrial(i, "COMPLETE", 1.0, {"result": {}}) for i in ids]
    assert finish_trials(study._storage._backend, ends) == [True, False, True]
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1] == before


def test_failed_batch_creates_no_trial(study):
    with pytest.raises(KeyError, match="unknown"):
        create_trials(
            study._storage._backend, study._study_id, 3, SPACE.distributions(),
            lambda number: CONFIGURATIONS[number] if number < 2 else {}["unknown"],
        )  # fmt: skip
    assert study.trials == []


def test_concurrent_batches_are_numbered_consecutively(study):
    def work():
        time.sleep(0.01)
        for _ in range(4):
            create_batch(study, CONFIGURATIONS)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [t.number for t in study.trials] == list(range(48))
    assert all(t.params == CONFIGURATIONS[t.number % 3] for t in study.trials)
