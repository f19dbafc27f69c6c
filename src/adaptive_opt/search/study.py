"""A study that several workers share without exceeding its budget.

Optuna numbers the trials of a study consecutively, also across workers. These numbers decide
who may spend the rest of the budget: a trial starts if the budget covers it and all earlier
trials, counting unfinished ones at full cost; otherwise it is withdrawn. Every worker reaches
the same decision, so no lock is needed.
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

from .batches import FinishedTrial, create_trials, finish_trials
from .spaces import Space

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

__all__ = ["SharedStudy", "make_sampler"]

logger = logging.getLogger(__name__)

ROUNDING = 1e-9
"""Relative tolerance of the budget: sums of costs have rounding errors."""

DELETE_REPORTS = (
    "DELETE FROM trial_intermediate_values WHERE trial_id = :trial",
    "DELETE FROM trial_system_attributes WHERE trial_id = :trial",
)
"""Delete a trial's reports to sampler and pruner, which a retry would otherwise double."""

DELETE_PARAMS = "DELETE FROM trial_params WHERE trial_id = :trial"


class SharedStudy:
    """One worker's view of a shared study.

    Args:
        study: Optuna study in a storage with heartbeats.
        space: the search space.
        budget: total of all trials, in gradient-equivalents.
        cost: cost of one trial of full length, in gradient-equivalents.
        startup: number of trials sampled at random first.
        retries: how often a trial is repeated after its worker died.
        name: name of the database in errors, without secrets.
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
        self._database: RDBStorage = storage._backend  # the storage behind Optuna's cache
        self._watched: set[int] = set()
        self._verified: set[int] = set()
        self.name = name

    def claim(self, number: int) -> list[FrozenTrial]:
        """Claim trials for this worker to train, as far as the budget allows.

        Trials of dead workers come first, in a batch of their own. So every later trial is
        sampled after the same trials as without the failure.

        Args:
            number: maximum number of trials.

        Returns:
            The claimed trials with their configurations; none if the budget has no room now, see
            :meth:`has_open_trials`.

        Raises:
            StudyError: the study is damaged.
        """
        self._requeue_lost()
        trials = self._load_trials()
        committed = sum(_cost(t, self.cost) for t in trials)
        room = int((self.budget * (1 + ROUNDING) - committed) / self.cost)
        waiting = [t._trial_id for t in trials if t.state.name == "WAITING"]
        until = self._end_of_batch(trials, number, room)
        count = min(number, len(waiting) + min(room, until - len(trials)))
        if count <= 0:
            return []
        # In the random start no trial depends on another.
        if not waiting and len(trials) + count <= self.startup:
            claimed = self._create_batch(count, until)
        else:
            claimed = [self._start_trial(waiting, until) for _ in range(count)]
        trials = self._load_trials()
        affordable, withdrawn = [], []
        for trial in (t for t in trials if t.number in set(claimed)):
            before = sum(_cost(t, self.cost) for t in trials if t.number < trial.number)
            if before + self.cost <= self.budget * (1 + ROUNDING):
                affordable.append(trial)
            else:
                withdrawn.append(
                    FinishedTrial(trial._trial_id, "FAIL", None, {"outcome": "withdrawn"})
                )
        if withdrawn:
            finish_trials(self._database, withdrawn)
        return affordable

    def has_open_trials(self) -> bool:
        """Return whether any trial is running or waiting; its end may leave budget for others."""
        open_trials = self._trials("RUNNING", "WAITING")
        for trial in open_trials:
            # Optuna detects a dead worker only after a first heartbeat, which a worker that died
            # early never recorded. So record one for it.
            if trial.state.name == "RUNNING" and trial.number not in self._watched:
                self._watched.add(trial.number)
                self._storage.record_heartbeat(trial._trial_id)
        return bool(open_trials)

    def tell(self, ends: Sequence[tuple[FrozenTrial, float | None, dict[str, Any]]]) -> None:
        """Store the results of claimed trials in one transaction.

        Ignores trials that have passed to another worker meanwhile.

        Args:
            ends: for each trial the objective (None if it failed) and a dictionary with
                ``outcome`` (``complete``, ``pruned``, ``diverged`` or ``failed``), ``cost`` and,
                if known, ``seconds``, ``epochs`` and ``reason``.
        """
        running = {t.number: t for t in self._trials("RUNNING")}
        finished = []
        for trial, value, details in ends:
            state = {"pruned": "PRUNED", "failed": "FAIL"}.get(details["outcome"], "COMPLETE")
            stored = value if state == "COMPLETE" else None
            checksum = _checksum(running.get(trial.number, trial), stored, details)
            result = {**details, "checksum": checksum}
            finished.append(FinishedTrial(trial._trial_id, state, stored, {"result": result}))
        accepted = finish_trials(self._database, finished)
        for (trial, *_), was_running in zip(ends, accepted, strict=True):
            if not was_running:
                logger.warning("trial %d: result ignored, another worker has it", trial.number)

    def report(self, trial: FrozenTrial, epoch: int, value: float) -> bool:
        """Report an intermediate value to the pruner; return whether to stop the trial."""
        from optuna.trial import Trial

        reported = Trial(self.study, trial._trial_id)
        reported.report(value, epoch)
        return bool(reported.should_prune())

    def release(self, trials: Sequence[FrozenTrial]) -> None:
        """Return trials that this worker will not finish to the queue, for any worker."""
        for trial in trials:
            self._requeue(trial._trial_id)

    @contextmanager
    def heartbeat(self, trials: Sequence[FrozenTrial]) -> Iterator[None]:
        """Record heartbeats while trials are trained.

        The first one follows after one interval. :meth:`has_open_trials` detects workers that
        die before.
        """
        done = threading.Event()
        interval = self._storage.get_heartbeat_interval()

        def beat() -> None:
            while not done.wait(interval):
                for trial in trials:
                    try:
                        self._storage.record_heartbeat(trial._trial_id)
                    except Exception as error:  # the next heartbeat may succeed
                        logger.warning("could not record a heartbeat: %s", error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number, without the withdrawn ones."""
        kept = [t for t in self._load_trials() if t.user_attrs.get("outcome") != "withdrawn"]
        return sorted(kept, key=lambda t: t.number)

    def spent(self) -> float:
        """Return the cost of all finished trials, in gradient-equivalents."""
        return sum(_cost(t, 0.0) for t in self._load_trials())

    def _end_of_batch(self, trials: Sequence[FrozenTrial], number: int, room: int) -> int:
        """Return the number of the first trial after the current batch.

        If a worker died while it sampled a batch, the batch is completed at its original size.
        """
        waiting = [t for t in trials if t.state.name == "WAITING"]
        if waiting and max(t.number for t in waiting) < len(trials) - 1:  # a later batch exists
            return len(trials)
        ends = [t.user_attrs["worker"]["until"] for t in waiting if "worker" in t.user_attrs]
        return max([len(trials), *ends]) if ends else len(trials) + min(number - len(waiting), room)

    def _start_trial(self, waiting: list[int], until: int) -> int:
        """Start a waiting trial or a new one, sample its configuration, return its number.

        Unlike ``study.ask``, this stores the worker together with the trial.
        """
        import optuna

        worker = {**this_worker(), "until": until}
        trial = optuna.trial.Trial(self.study, self._next_trial_id(waiting, worker))
        for name, d in self.space.items():
            coordinate, (low, high) = self.space.coordinate(name, d), d.bounds
            trial.suggest_float(coordinate, low, high, log=d.scale != "linear")
        return int(trial.number)

    def _create_batch(self, count: int, until: int) -> list[int]:
        """Create trials sampled independently of all others; return their numbers."""
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

    def _next_trial_id(self, waiting: list[int], worker: dict[str, Any]) -> int:
        import optuna

        running = optuna.trial.TrialState.RUNNING
        while waiting:
            trial_id = waiting.pop(0)
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial_id, "worker", worker)
                if self._storage.set_trial_state_values(trial_id, running):  # else another has it
                    return trial_id
        template = optuna.trial.create_trial(state=running, user_attrs={"worker": worker})
        return int(self._storage.create_new_trial(self.study._study_id, template))

    def _load_trials(self) -> list[FrozenTrial]:
        import optuna
        import sqlalchemy

        try:
            trials = self.study.get_trials(deepcopy=False)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError):
            raise  # Storage.explained turns it into a StudyError
        except Exception as error:  # unreadable rows
            raise self._damage_error(f"{type(error).__name__}: {error}") from error
        if sorted(t.number for t in trials) != list(range(len(trials))):
            raise self._damage_error("a trial is missing")
        for trial in trials:
            if trial.number not in self._verified and trial.state.is_finished():
                if not _is_intact(trial):
                    raise self._damage_error(f"trial {trial.number} does not match its checksum")
                self._verified.add(trial.number)
        return trials

    def _damage_error(self, reason: str) -> StudyError:
        return StudyError(
            f"{self.name}: the study {self.study.study_name} is damaged ({reason}); move the "
            "database away or restore a copy, and run again"
        )

    def _trials(self, *states: str) -> list[FrozenTrial]:
        return [t for t in self._load_trials() if t.state.name in states]

    def _requeue_lost(self) -> None:
        running = self._trials("RUNNING")
        lost = {t._trial_id for t in running if is_gone(t.user_attrs.get("worker", {}))}
        lost |= {*self._storage._get_stale_trial_ids(self.study._study_id)}
        for trial_id in sorted(lost):
            number = self._storage.get_trial(trial_id).number
            if self._requeue(trial_id):
                logger.warning("trial %d: its worker died; repeating the trial", number)
            else:
                logger.warning("trial %d: its worker died too often; the trial failed", number)

    def _requeue(self, trial_id: int) -> bool:
        """Return a trial to the queue, or fail it; return whether it may be repeated.

        The trial keeps its number and configuration, so that later trials stay the same. An
        incomplete configuration is sampled again, with the same result.
        """
        import optuna
        import sqlalchemy

        trial = self._storage.get_trial(trial_id)
        tries = trial.user_attrs.get("lost", 0) + 1
        half_drawn = len(trial.params) < len(self.space)
        try:
            # First, or other workers would also consider the trial lost.
            self._storage.record_heartbeat(trial_id)
            self._storage.set_trial_user_attr(trial_id, "lost", tries)
            if tries > self.retries:
                self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.FAIL)
                return False
            with self._database.engine.begin() as connection:
                for statement in (*DELETE_REPORTS, *([DELETE_PARAMS] if half_drawn else [])):
                    connection.execute(sqlalchemy.text(statement), {"trial": trial_id})
            self._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.WAITING)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # its worker has finished it meanwhile
        return True


def _checksum(trial: FrozenTrial, value: float | None, result: Mapping[str, Any]) -> str:
    """Return a checksum of a finished trial's configuration, reports and result."""
    content = [trial.number, trial.params, value, trial.intermediate_values, result]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _is_intact(trial: FrozenTrial) -> bool:
    """Return whether a finished trial matches its checksum; a lost trial has none to match."""
    result = dict(trial.user_attrs.get("result", {}))
    if trial.state.name == "FAIL" and result.get("outcome", "") != "failed":
        return True
    stored = result.pop("checksum", None)
    value = trial.value if trial.state.name == "COMPLETE" else None
    return bool(stored == _checksum(trial, value, result))


def _cost(trial: FrozenTrial, full: float) -> float:
    """Return the cost of a trial; ``full`` if it has not finished."""
    if trial.state.name in ("RUNNING", "WAITING"):
        return full
    result = trial.user_attrs.get("result", {})
    if trial.state.name == "FAIL" and result.get("outcome") != "failed":
        return 0.0  # withdrawn, or its worker died
    return float(result["cost"])


def make_sampler(kind: str, startup: int, seed_of: Callable[[int], int]) -> BaseSampler:
    """Make a sampler that is seeded anew for every trial, from the trial's number.

    So an interrupted search continues with the same trials as an uninterrupted one, and two
    workers never sample the same configuration.

    Args:
        kind: ``random``, ``tpe`` (tree-structured Parzen estimator) or ``gp`` (Gaussian process).
        startup: number of trials sampled at random first.
        seed_of: maps a trial's number to a seed.
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

    class SamplerByNumber(BaseSampler):
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

    return SamplerByNumber()
