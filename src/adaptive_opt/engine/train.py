"""The training loop: every task, every arm, all seeds of an arm as one ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from adaptive_opt.optim import EnsembleOptimizer, Memberwise

from .device import DeviceClock
from .history import Recorder
from .schedule import make_schedule

__all__ = ["EnsembleResult", "Plan", "Task", "train_ensemble"]

FLUSH_EVERY = 50
"""Logged rows between two transfers to the host; the check for divergence comes with it."""

AnyOptimizer = EnsembleOptimizer | Memberwise


class Task(Protocol):
    """What the loop needs of a task; parameters and losses have a leading member dimension."""

    members: int
    device: torch.device
    batches_per_epoch: int

    def initial_parameters(self) -> list[Tensor]:
        """Leaves that require grad."""

    def epoch(self) -> Iterator[Any]:
        """The next epoch's batches."""

    def loss(self, weights: Sequence[Tensor], batch: Any) -> Tensor:
        """``[members]``, differentiable twice."""

    def loss_and_gradient(
        self, weights: Sequence[Tensor], batch: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """The same loss and its gradient, by the fastest way the task knows."""

    def train_loss(self, weights: Sequence[Tensor]) -> Tensor:
        """Loss over the training data, ``[members]``."""


@dataclass(frozen=True)
class Plan:
    """Length of a run, and what is noted on the way.

    Attributes:
        epochs: passes over the data.
        schedule, floor: see :func:`adaptive_opt.engine.schedule.make_schedule`.
        log_every: iterations between two rows of the history.
        statistics_every: iterations between two looks into the optimizer.
        snapshot_every: iterations between two points of the trajectory; 0: none.
        diverged_above: a member whose loss is not finite, or above this multiple of its
            first loss, is frozen where it last was well.
    """

    epochs: int
    schedule: str = "cosine"
    floor: float = 0.1
    log_every: int = 10
    statistics_every: int = 100
    snapshot_every: int = 0
    diverged_above: float = 1e6


@dataclass(frozen=True)
class EnsembleResult:
    """What a run leaves.

    Attributes:
        history: one row for each (member, logged iteration).
        weights: final parameters, ``[members, ...]`` each, on the CPU.
        snapshots: the iterations whose points were handed to ``on_snapshot``.
        diverged_at: for each member the iteration it was frozen at, or None.
        seconds: training time of the whole ensemble, evaluation and logging apart.
        gradient_equivalents: cost of one member.
    """

    history: pd.DataFrame
    weights: list[Tensor]
    snapshots: list[int]
    diverged_at: list[int | None]
    seconds: float
    gradient_equivalents: float


def train_ensemble(
    task: Task,
    params: list[Tensor],
    optimizer: AnyOptimizer,
    plan: Plan,
    on_batch: Callable[[Any], None] = lambda _: None,
    on_snapshot: Callable[[Tensor], None] = lambda _: None,
    progress: Callable[[int], Any] = lambda _: None,
) -> EnsembleResult:
    """Train all members to the end of the plan.

    A row of the history at iteration t holds the losses *before* the t-th update, so row 0
    is the start and the last row, at t = number of iterations, the end.

    Args:
        task: what is trained.
        params: its parameters, which ``optimizer`` updates.
        optimizer: of this package, or a wrapped foreign one.
        plan: length and logging.
        on_batch: told each batch before it is used.
        on_snapshot: told each point of the trajectory, ``[members, parameters]``.
        progress: told the number of iterations done since the last call.
    """
    loop = _Loop(task, params, optimizer, plan, on_snapshot)
    t = 0
    for _ in range(plan.epochs):
        loop.clock.start()
        for batch in task.epoch():
            on_batch(batch)
            loop.iterate(t, batch)
            t += 1
        loop.clock.stop()
        progress(task.batches_per_epoch)
        if None not in loop.diverged_at:
            break
    loop.finish(t)
    return loop.result()


class _Loop:
    """State of one call of :func:`train_ensemble`."""

    def __init__(
        self,
        task: Task,
        params: list[Tensor],
        optimizer: AnyOptimizer,
        plan: Plan,
        on_snapshot: Callable[[Tensor], None],
    ) -> None:
        self.on_snapshot = on_snapshot
        self.task, self.params, self.optimizer, self.plan = task, params, optimizer, plan
        self.clock = DeviceClock(task.device)
        self.recorder = Recorder(task.members)
        self.factor = make_schedule(
            plan.schedule,
            epochs=plan.epochs,
            batches_per_epoch=task.batches_per_epoch,
            floor=plan.floor,
        )
        self.base_lr = [group["lr"] for group in optimizer.param_groups]
        self.diverged_at: list[int | None] = [None] * task.members
        self.snapshots: list[int] = []
        self._frozen: list[int] = []
        self._first_loss: Any = None
        self.seconds = 0.0
        self._last_good = [p.detach().clone() for p in params]
        self._unflushed = 0

    def iterate(self, t: int, batch: Any) -> None:
        """One update, with whatever is due to be noted around it."""
        factor = self.factor(t)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * factor
        plan = self.plan
        inside = t % plan.statistics_every == 0
        snapshot = plan.snapshot_every > 0 and t % plan.snapshot_every == 0
        logged = inside or snapshot or t % plan.log_every == 0
        if logged:
            self._note(t, snapshot=snapshot)
        if self.optimizer.curvature_due:
            self.optimizer.zero_grad()
            loss = self.task.loss(self.params, batch)
            self.optimizer.backward(loss)
        else:
            loss, grads = self.task.loss_and_gradient(self.params, batch)
            for p, g in zip(self.params, grads, strict=True):
                p.grad = g
        self.optimizer.step()
        if self._frozen:
            self._restore(self._frozen)
        if logged:
            self._note_step(t, loss, inside=inside)

    def _note(self, t: int, *, snapshot: bool) -> None:
        """Before the update: losses and the trajectory; the clock stands meanwhile."""
        seconds = self.clock.stop()
        with torch.no_grad():
            train_loss = self.task.train_loss(self.params)
        self.recorder.add(
            t,
            train_loss=train_loss,
            lr=self.optimizer.param_groups[0]["lr"],
            gradient_equivalents=self.optimizer.gradient_equivalents,
            device_seconds=seconds,
        )
        if snapshot:
            flat = torch.cat([p.detach().reshape(self.task.members, -1) for p in self.params], 1)
            self.on_snapshot(flat)
            self.snapshots.append(t)
        self._unflushed += 1
        if self._unflushed >= FLUSH_EVERY:
            self._flush()
        self.clock.start()

    def _note_step(self, t: int, loss: Tensor, *, inside: bool) -> None:
        """After the update: what it was made from."""
        self.clock.stop()
        self.recorder.add(t, batch_loss=loss.detach())
        if inside:
            grads = [
                p.grad.reshape(self.task.members, -1) for p in self.params if p.grad is not None
            ]
            norm = torch.linalg.vector_norm(torch.cat(grads, dim=1), dim=1)
            self.recorder.add(t, gradient_norm=norm, **self.optimizer.statistics())
        self.clock.start()

    def _flush(self) -> None:
        """Move the rows to the host, look for divergence, remember where all was well."""
        rows = self.recorder.flush()
        self._unflushed = 0
        losses = {t: row["train_loss"] for t, row in rows.items() if "train_loss" in row}
        self._freeze_diverged(losses)
        for kept, p in zip(self._last_good, self.params, strict=True):
            kept.copy_(p.detach())

    def _freeze_diverged(self, losses: dict[int, Any]) -> None:
        if self._first_loss is None:
            first = next(iter(losses.values()))
            self._first_loss = np.maximum(np.abs(first), np.finfo(np.float32).tiny)
        limit = self.plan.diverged_above * self._first_loss
        for t, row in losses.items():
            for member in np.flatnonzero(~np.isfinite(row) | (row > limit)):
                if self.diverged_at[member] is None:
                    self.diverged_at[member] = t
                    self._frozen.append(int(member))
                    self._restore([int(member)])

    @torch.no_grad()
    def _restore(self, members: list[int]) -> None:
        """Put members back to where they last were well, whatever their momentum says."""
        for p, kept in zip(self.params, self._last_good, strict=True):
            for member in members:
                p[member] = kept[member]

    def finish(self, t: int) -> None:
        """The last row, at the end of training."""
        every = self.plan.snapshot_every
        self._note(t, snapshot=every > 0 and t % every == 0)
        self.seconds = self.clock.stop()
        self._flush()
        for member, start in enumerate(self.diverged_at):
            if start is not None:
                self.recorder.blank(member, start)

    def result(self) -> EnsembleResult:
        """Everything the run leaves."""
        return EnsembleResult(
            history=self.recorder.to_frame(),
            weights=[p.detach().cpu() for p in self.params],
            snapshots=self.snapshots,
            diverged_at=self.diverged_at,
            seconds=self.seconds,
            gradient_equivalents=self.optimizer.gradient_equivalents,
        )
