"""A study that several workers share, and the budget that none of them exceeds.

Optuna numbers the trials of a study without gaps, whoever asks for them. That number decides
who may spend what is left: a trial goes ahead if what all trials before it have cost, or may
cost yet, leaves room for it, and is withdrawn otherwise. No lock is needed, and any two
workers come to the same view.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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


class SharedStudy:
    """One worker's view of a study.

    Args:
        study: of Optuna, on a storage with heartbeats.
        space: what is searched.
        budget: of the whole study, in gradient-equivalents.
        cost: of one trial of full length.
        startup: trials that are drawn at random.
    """

    def __init__(
        self, study: optuna.Study, space: Space, budget: float, cost: float, startup: int = 0
    ) -> None:
        self.study, self.space, self.startup = study, space, startup
        self.budget, self.cost = budget, cost
        storage: Any = study._storage
        self._storage = storage
        self._database: RDBStorage = storage._backend  # beneath Optuna's cache
        self._seen: set[int] = set()

    def claim(self, number: int) -> list[FrozenTrial]:
        """At most so many trials that the budget has room for, to be trained by this worker.

        Trials of workers that died come first. Empty: there is no room now; see
        :meth:`others_run`.
        """
        self._fail_stale()
        trials = self._all()
        committed = sum(_cost(t, self.cost) for t in trials)
        room = int((self.budget * (1 + SLACK) - committed) / self.cost)
        waiting = sum(t.state.name == "WAITING" for t in trials)
        wanted = min(number, room + waiting)
        if wanted <= 0:
            return []
        # In the random start no trial depends on another.
        if not waiting and len(trials) + wanted <= self.startup:
            asked = self._draw(wanted)
        else:
            drawn_from = self.space.distributions()
            asked = [self.study.ask(drawn_from).number for _ in range(wanted)]
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
        finishes = []
        for trial, value, known in ends:
            state = {"pruned": "PRUNED", "failed": "FAIL"}.get(known["outcome"], "COMPLETE")
            kept = value if state == "COMPLETE" else None
            finishes.append(Finish(trial._trial_id, state, kept, {"result": known}))
        self._finish([trial for trial, *_ in ends], finishes)

    def report(self, trial: FrozenTrial, epoch: int, value: float) -> bool:
        """Note a value on the way; whether the trial is to be stopped."""
        from optuna.trial import Trial

        told = Trial(self.study, trial._trial_id)
        told.report(value, epoch)
        return bool(told.should_prune())

    def give_back(self, trials: Sequence[FrozenTrial]) -> None:
        """Trials that this worker will not finish: to be tried again, by whoever comes."""
        callback = self._storage.get_heartbeat_stale_trial_callback()
        ended = self._finish(trials, [Finish(t._trial_id, "FAIL") for t in trials])
        for trial in ended:
            callback(self.study, self._storage.get_trial(trial._trial_id))

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

    def _draw(self, count: int) -> list[int]:
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

        return create_trials(self._database, self.study._study_id, count, distributions, draw)

    def _all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _trials(self, *states: str) -> list[FrozenTrial]:
        return [t for t in self._all() if t.state.name in states]

    def _finish(
        self, trials: Sequence[FrozenTrial], finishes: Sequence[Finish]
    ) -> list[FrozenTrial]:
        """End trials; those that were still this worker's to end."""
        still = finish_trials(self._database, finishes)
        for trial, running in zip(trials, still, strict=True):
            if not running:
                logger.warning("trial %d was given to another worker meanwhile", trial.number)
        return [t for t, running in zip(trials, still, strict=True) if running]

    def _fail_stale(self) -> None:
        import optuna

        before = {t.number for t in self._trials("RUNNING")}
        if not before:
            return
        optuna.storages.fail_stale_trials(self.study)
        dead = before - {t.number for t in self._trials("RUNNING", "COMPLETE", "PRUNED")}
        for number in sorted(dead):
            logger.warning("the worker of trial %d is gone; the trial is tried again", number)


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
