"""A study that several workers share, and the budget that none of them exceeds.

Optuna numbers the trials of a study without gaps, whoever asks for them. That number decides
who may spend what is left: a trial goes ahead if what all trials before it have cost, or may
cost yet, leaves room for it, and is withdrawn otherwise. No lock is needed, and any two
workers come to the same view.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adaptive_opt.errors import StudyError
from adaptive_opt.processes import is_gone, this_worker

from .batches import Finish, create_trials, finish_trials
from .spaces import Space

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

__all__ = ["SharedStudy", "make_sampler"]

logger = logging.getLogger(__name__)

SLACK = 1e-9
"""Of a budget: sums of costs are rounded."""

FORGET = (
    "DELETE FROM trial_intermediate_values WHERE trial_id = :trial",
    "DELETE FROM trial_system_attributes WHERE trial_id = :trial",
)
"""What a trial told sampler and pruner, which would count twice when it is tried again."""

FORGET_DRAWS = "DELETE FROM trial_params WHERE trial_id = :trial"


class SharedStudy:
    """One worker's view of a study.

    Args:
        study: of Optuna, on a storage with heartbeats.
        space: what is searched.
        budget: of the whole study, in gradient-equivalents.
        cost: of one trial of full length.
        startup: trials that are drawn at random.
        retries: how often a trial whose worker died is tried again.
        name: of the database, without secrets.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        budget: float,
        cost: float,
        startup: int = 0,
        retries: int = 2,
        name: str = "the database",
    ) -> None:
        self.study, self.space, self.startup, self.retries = study, space, startup, retries
        self.budget, self.cost = budget, cost
        storage: Any = study._storage
        self._storage = storage
        self._database: RDBStorage = storage._backend  # beneath Optuna's cache
        self._seen: set[int] = set()
        self._sound: set[int] = set()
        self.name = name

    def claim(self, number: int) -> list[FrozenTrial]:
        """At most so many trials that the budget has room for, to be trained by this worker.

        Trials of workers that died come first, and by themselves, so that all later ones are drawn
        after the same trials as if nobody had died. Empty: there is no room now; see
        :meth:`others_run`.
        """
        self._requeue_stale()
        trials = self._all()
        committed = sum(_cost(t, self.cost) for t in trials)
        room = int((self.budget * (1 + SLACK) - committed) / self.cost)
        waiting = sum(t.state.name == "WAITING" for t in trials)
        until = self._end_of_batch(trials, number, room)
        wanted = min(number, waiting + min(room, until - len(trials)))
        if wanted <= 0:
            return []
        waits = [t._trial_id for t in trials if t.state.name == "WAITING"]
        # In the random start no trial depends on another.
        if not waits and len(trials) + wanted <= self.startup:
            asked = self._draw(wanted, until)
        else:
            asked = [self._ask(waits, until) for _ in range(wanted)]
        trials = self._all()
        mine, withdrawn = [], []
        for trial in (t for t in trials if t.number in set(asked)):
            before = sum(_cost(t, self.cost) for t in trials if t.number < trial.number)
            if before + self.cost <= self.budget * (1 + SLACK):
                mine.append(trial)
            else:
                withdrawn.append(Finish(trial._trial_id, "FAIL", None, {"outcome": "withdrawn"}))
        if withdrawn:
            finish_trials(self._database, withdrawn)
        return mine

    def others_run(self) -> bool:
        """Whether another worker still has, or left, a trial that may make room."""
        others = self._trials("RUNNING", "WAITING")
        for trial in others:
            # One whose worker died before its first sign of life would never go stale: it is
            # given one.
            if trial.state.name == "RUNNING" and trial.number not in self._seen:
                self._seen.add(trial.number)
                self._storage.record_heartbeat(trial._trial_id)
        return bool(others)

    def tell(self, ends: Sequence[tuple[FrozenTrial, float | None, dict[str, Any]]]) -> None:
        """Put results on record, all or none; not of trials that another worker was given.

        Args:
            ends: trials that were claimed, each with the value of the objective (None for one
                that failed) and the ``outcome`` (``complete``, ``pruned``, ``diverged`` or
                ``failed``), ``cost``, ``seconds``, ``epochs`` and ``reason``, where known.
        """
        now = {t.number: t for t in self._trials("RUNNING")}
        finishes = []
        for trial, value, known in ends:
            state = {"pruned": "PRUNED", "failed": "FAIL"}.get(known["outcome"], "COMPLETE")
            kept = value if state == "COMPLETE" else None
            checksum = _checksum(now.get(trial.number, trial), kept, known)
            result = {**known, "checksum": checksum}
            finishes.append(Finish(trial._trial_id, state, kept, {"result": result}))
        still = finish_trials(self._database, finishes)
        for (trial, *_), running in zip(ends, still, strict=True):
            if not running:
                logger.warning("trial %d was given to another worker meanwhile", trial.number)

    def report(self, trial: FrozenTrial, epoch: int, value: float) -> bool:
        """Note a value on the way; whether the trial is to be stopped."""
        from optuna.trial import Trial

        told = Trial(self.study, trial._trial_id)
        told.report(value, epoch)
        return bool(told.should_prune())

    def give_back(self, trials: Sequence[FrozenTrial]) -> None:
        """Trials that this worker will not finish: to be tried again, by whoever comes."""
        for trial in trials:
            self._requeue(trial._trial_id)

    @contextmanager
    def heartbeat(self, trials: Sequence[FrozenTrial]) -> Iterator[None]:
        """Signs of life while trials are trained; none for those that take less than one's time.

        A worker that dies before the first is found out by :meth:`others_run`.
        """
        done = threading.Event()
        interval = self._storage.get_heartbeat_interval()

        def beat() -> None:
            while not done.wait(interval):
                for trial in trials:
                    try:
                        self._storage.record_heartbeat(trial._trial_id)
                    except Exception as error:  # the next one may come through
                        logger.warning("no sign of life could be given: %s", error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def trials(self) -> list[FrozenTrial]:
        """All that were trained or are to be, by number; not those that were withdrawn."""
        kept = [t for t in self._all() if t.user_attrs.get("outcome") != "withdrawn"]
        return sorted(kept, key=lambda t: t.number)

    def spent(self) -> float:
        """Gradient-equivalents of all finished trials."""
        return sum(_cost(t, 0.0) for t in self._all())

    def _end_of_batch(self, trials: Sequence[FrozenTrial], number: int, room: int) -> int:
        """Number of the first trial after those that are to be drawn together.

        Of a batch whose worker died while it was drawn the rest is drawn as it would have been.
        """
        waiting = [t for t in trials if t.state.name == "WAITING"]
        if waiting and max(t.number for t in waiting) < len(trials) - 1:  # others came after it
            return len(trials)
        ends = [t.user_attrs["worker"]["until"] for t in waiting if "worker" in t.user_attrs]
        return max([len(trials), *ends]) if ends else len(trials) + min(number - len(waiting), room)

    def _ask(self, waits: list[int], until: int) -> int:
        """Number of a trial that waits, or of a new one, its configuration drawn.

        As ``study.ask``, but that it says from its beginning whose it is.
        """
        import optuna

        worker = {**this_worker(), "until": until}
        trial = optuna.trial.Trial(self.study, self._next(waits, worker))
        for name, d in self.space.items():
            coordinate, (low, high) = self.space.coordinate(name, d), d.bounds
            trial.suggest_float(coordinate, low, high, log=d.scale != "linear")
        return int(trial.number)

    def _draw(self, count: int, until: int) -> list[int]:
        """Numbers of new trials that depend on no other, without a look at those."""
        from optuna.trial import TrialState, create_trial

        distributions = self.space.distributions()

        def draw(number: int) -> dict[str, float]:
            trial = create_trial(state=TrialState.RUNNING)
            trial.number = number
            self.study.sampler.before_trial(self.study, trial)
            return {
                name: self.study.sampler.sample_independent(self.study, trial, name, d)
                for name, d in distributions.items()
            }

        return create_trials(
            self._database,
            self.study._study_id,
            count,
            distributions,
            draw,
            {"worker": {**this_worker(), "until": until}},
        )

    def _next(self, waits: list[int], worker: dict[str, Any]) -> int:
        import optuna

        running = optuna.trial.TrialState.RUNNING
        while waits:
            trial_id = waits.pop(0)
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial_id, "worker", worker)
                if self._storage.set_trial_state_values(trial_id, running):  # nobody was faster
                    return trial_id
        begun = optuna.trial.create_trial(state=running, user_attrs={"worker": worker})
        return int(self._storage.create_new_trial(self.study._study_id, begun))

    def _all(self) -> list[FrozenTrial]:
        import optuna
        import sqlalchemy

        try:
            trials = self.study.get_trials(deepcopy=False)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError):
            raise  # explained by the storage
        except Exception as error:  # what is there cannot be made sense of
            raise self._damage(f"{type(error).__name__}: {error}") from error
        if sorted(t.number for t in trials) != list(range(len(trials))):
            raise self._damage("a trial is missing")
        for trial in trials:
            if trial.number not in self._sound and trial.state.is_finished():
                if not _is_sound(trial):
                    raise self._damage(f"trial {trial.number} is not what its checksum says")
                self._sound.add(trial.number)
        return trials

    def _damage(self, what: str) -> StudyError:
        return StudyError(
            f"{self.name}: the study {self.study.study_name} is damaged ({what}); move the "
            "database away or restore a copy, and run again"
        )

    def _trials(self, *states: str) -> list[FrozenTrial]:
        return [t for t in self._all() if t.state.name in states]

    def _requeue_stale(self) -> None:
        running = self._trials("RUNNING")
        lost = {t._trial_id for t in running if is_gone(t.user_attrs.get("worker", {}))}
        lost |= {*self._storage._get_stale_trial_ids(self.study._study_id)}
        for trial_id in sorted(lost):
            number = self._storage.get_trial(trial_id).number
            if self._requeue(trial_id):
                logger.warning("the worker of trial %d is gone; the trial is tried again", number)
            else:
                logger.warning("the worker of trial %d is gone; the trial is given up", number)

    def _requeue(self, trial_id: int) -> bool:
        """Let a trial be tried again, as if nobody had begun with it; whether that may be done.

        It keeps its number and its configuration, and with them those of all later trials; one
        whose configuration was only half drawn is drawn anew, which gives the same.
        """
        import optuna
        import sqlalchemy

        trial = self._storage.get_trial(trial_id)
        tries = trial.user_attrs.get("lost", 0) + 1
        half_drawn = len(trial.params) < len(self.space)
        try:
            # First of all, for others would take it for lost as well.
            self._storage.record_heartbeat(trial_id)
            self._storage.set_trial_user_attr(trial_id, "lost", tries)
            if tries > self.retries:
                self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.FAIL)
                return False
            with self._database.engine.begin() as connection:
                for statement in (*FORGET, *([FORGET_DRAWS] if half_drawn else [])):
                    connection.execute(sqlalchemy.text(statement), {"trial": trial_id})
            self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.WAITING)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # its worker was alive after all
        return True


def _checksum(trial: FrozenTrial, value: float | None, result: Mapping[str, Any]) -> str:
    """Of all that a finished trial has to tell."""
    told = [trial.number, trial.params, value, trial.intermediate_values, result]
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()


def _is_sound(trial: FrozenTrial) -> bool:
    """Whether a finished trial is as it was told; one whose worker died tells nothing."""
    result = dict(trial.user_attrs.get("result", {}))
    if trial.state.name == "FAIL" and result.get("outcome", "") != "failed":
        return True
    known = result.pop("checksum", None)
    value = trial.value if trial.state.name == "COMPLETE" else None
    return bool(known == _checksum(trial, value, result))


def _cost(trial: FrozenTrial, full: float) -> float:
    """What a trial has cost, or may cost yet."""
    if trial.state.name in ("RUNNING", "WAITING"):
        return full
    result = trial.user_attrs.get("result", {})
    if trial.state.name == "FAIL" and result.get("outcome") != "failed":
        return 0.0  # withdrawn, or its worker died, perhaps while it wrote
    return float(result["cost"])


def make_sampler(kind: str, startup: int, seed_of: Callable[[int], int]) -> BaseSampler:
    """A sampler whose draws for a trial depend on its number and on the trials before.

    So a search that was broken off goes on as it would have, and two workers never draw alike.

    Args:
        kind: ``random``, ``tpe`` or ``gp``.
        startup: trials that are drawn at random first.
        seed_of: from a trial's number.
    """
    from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

    def make(number: int) -> BaseSampler:
        seed = seed_of(number) % 2**32
        if kind == "random" or number < startup:
            return RandomSampler(seed=seed)
        if kind == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup)
        return TPESampler(
            seed=seed, multivariate=True, n_startup_trials=min(startup, 10), constant_liar=True
        )

    class ByNumber(BaseSampler):
        inner: BaseSampler

        def before_trial(self, study: Any, trial: Any) -> None:
            self.inner = make(trial.number)
            self.inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self.inner.sample_independent(study, trial, name, distribution)

    return ByNumber()
