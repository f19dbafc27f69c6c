"""The training loop of every task and arm, for an ensemble of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .contract import EnsembleResult, Plan, Rows, Task
from .device import DeviceClock
from .history import Recorder
from .schedule import make_schedule
from .step import AnyOptimizer, training_step

__all__ = ["train_ensemble", "training_step"]

FLUSH_EVERY = 50
"""Logged rows between transfers to the host; each transfer also checks for divergence."""

OnReport = Callable[[int, Recorder, Callable[[str], dict[str, Tensor]]], bool]

OnRows = Callable[[Rows, Sequence[int | None]], None]


def train_ensemble(
    task: Task,
    params: list[Tensor],
    optimizer: AnyOptimizer,
    plan: Plan,
    on_batch: Callable[[Any], None] = lambda _: None,
    on_snapshot: Callable[[Tensor], None] = lambda _: None,
    progress: Callable[[int], Any] = lambda _: None,
    skip: Callable[[int], Any] = lambda _: None,
    start: dict[str, Any] | None = None,
    checkpoint: Checkpoint | None = None,
    enclose: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: state,
    on_report: OnReport | None = None,
    report_at: Mapping[int, int] | None = None,
    on_rows: OnRows = lambda *_: None,
    keep: Callable[[int], None] = lambda _: None,
) -> EnsembleResult:
    """Train all members to the end of the plan.

    Row t of the history has the losses *before* update t: row 0 is the start, and the last row,
    at t = number of iterations, is the end.

    Args:
        task, params: the task, and its parameters, which ``optimizer`` updates.
        optimizer: of this package, or a wrapped foreign one.
        plan: length and logging.
        on_batch: called with each batch before its use.
        on_snapshot: called with each point of the trajectory, ``[members, parameters]``.
        progress, skip: called with the number of new iterations, and of those before ``start``.
        start: a saved state to resume from.
        checkpoint: where states are saved when due.
        enclose: converts a state to the content of a checkpoint.
        on_report: called with the number of a report, the history so far and a function that
            evaluates a split; training ends if it returns True.
        report_at: numbers of the reports, by iteration.
        on_rows: called with each block of rows, and each member's iteration of divergence.
        keep: called with the number of finished epochs, at the start and after each epoch.
    """
    loop = _TrainingLoop(task, params, optimizer, plan, on_snapshot, on_rows)
    t, length = 0, task.batches_per_epoch
    task.prepare(params)
    if start is not None:
        t = loop.load_state_dict(start)
        skip(t)
    else:
        keep(0)

    def save_if_due() -> None:
        if checkpoint is not None and checkpoint.due:
            with loop.clock.paused() as seconds:
                checkpoint.save(enclose(loop.state_dict(t, seconds)))

    end, stopped = plan.iterations(length), False
    while t < end and None in loop.diverged_at:
        loop.clock.start()
        for batch in task.epoch(t // length, t % length):
            on_batch(batch)
            loop.iterate(t, batch)
            t += 1
            progress(1)
            if on_report is not None and (number := (report_at or {}).get(t)) is not None:
                loop.clock.stop()
                stopped = loop.ends_after_report(number, on_report)
                loop.clock.start()
            if t == end or stopped:
                break
            if task.resumes_within_epoch and t % length:
                save_if_due()
        loop.clock.stop()
        if t % length or stopped:  # a run that ends within an epoch
            break
        keep(t // length)
        save_if_due()
    # Also if every member diverged earlier: all histories of an arm end at the same iteration.
    loop.finish(end)
    return loop.result()


def _due(t: int, every: int) -> bool:
    return every > 0 and t % every == 0


class _TrainingLoop:
    """State of one call of :func:`train_ensemble`."""

    def __init__(
        self,
        task: Task,
        params: list[Tensor],
        optimizer: AnyOptimizer,
        plan: Plan,
        on_snapshot: Callable[[Tensor], None],
        on_rows: OnRows,
    ) -> None:
        self.on_snapshot, self.on_rows = on_snapshot, on_rows
        self.task, self.params, self.optimizer, self.plan = task, params, optimizer, plan
        self.clock = DeviceClock(task.device)
        self.recorder = Recorder(task.members)
        self.factor = make_schedule(
            plan.schedule,
            epochs=plan.schedule_epochs or plan.share * plan.epochs,
            batches_per_epoch=task.batches_per_epoch,
            floor=plan.floor,
        )
        self.base_lr = [group["lr"] for group in optimizer.param_groups]
        self.diverged_at: list[int | None] = [None] * task.members
        self.snapshots: list[int] = []
        self._frozen: list[int] = []
        self._first_loss: Any = None
        self.seconds = 0.0
        self.final: dict[str, list[float]] = {}
        self._kept = [*params, *task.buffers.values()]
        self._last_good = [p.detach().clone() for p in self._kept]
        self._unflushed = 0
        # Sums over batches since the last row, on the device: adding does not wait for it.
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._means: dict[str, Tensor] = {}

    def iterate(self, t: int, batch: Any) -> None:
        """Train for one iteration and record what is due."""
        factor = self.factor(t)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * factor
        plan = self.plan
        statistics = t % plan.statistics_every == 0
        snapshot = _due(t, plan.snapshot_every)
        logged = statistics or snapshot or _due(t, plan.evaluate_every) or t % plan.log_every == 0
        if logged:
            self._record(t, snapshot=snapshot)
        loss = training_step(self.task, self.params, self.optimizer, batch, plan.curvature_share)
        if not self.task.measures_train_loss:
            for name, value in {"loss": loss, **self.task.batch_metrics}.items():
                self._sums[name] = self._sums[name] + value if self._summed else value
            self._summed += 1
        if self._frozen:
            self._restore(self._frozen)
        if logged:
            self._record_step(t, loss, statistics=statistics)

    def _record(self, t: int, *, snapshot: bool) -> None:
        """Record losses and trajectory before an update, with the clock stopped."""
        seconds = self.clock.stop()
        with self.optimizer.evaluation():
            if self.task.measures_train_loss:
                with torch.no_grad():
                    self.recorder.add(t, train_loss=self.task.train_loss(self.params))
            if _due(t, self.plan.evaluate_every):
                self.recorder.add(t, **self.task.evaluate(self.params, "valid"))
            if snapshot:
                members = self.task.members
                flat = torch.cat([p.detach().reshape(members, -1) for p in self.params], 1)
                self.on_snapshot(flat)
                self.snapshots.append(t)
        self.recorder.add(
            t,
            lr=self.optimizer.param_groups[0]["lr"],
            gradient_equivalents=self.optimizer.gradient_equivalents,
            device_seconds=seconds,
        )
        self._unflushed += 1
        if self._unflushed >= FLUSH_EVERY:
            self._flush()
        self.clock.start()

    def _record_step(self, t: int, loss: Tensor, *, statistics: bool) -> None:
        """Record batch loss, metrics and statistics after an update, with the clock stopped."""
        self.clock.stop()
        metrics = {f"batch_{name}": value for name, value in self.task.batch_metrics.items()}
        self.recorder.add(t, batch_loss=loss, **metrics)
        if t % self.plan.log_every == 0:  # means span log_every batches
            self._record_means(t)
        if statistics:
            # Per tensor: a concatenation would be as large as the model.
            norms = [
                torch.linalg.vector_norm(p.grad.reshape(self.task.members, -1), dim=1)
                for p in self.params
                if p.grad is not None
            ]
            norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
            self.recorder.add(t, gradient_norm=norm, **self.optimizer.statistics())
        self.clock.start()

    def _record_means(self, t: int) -> None:
        """Record means over the batches since the last call; without any, the last means."""
        if self._summed:
            self._means = {f"train_{name}": s / self._summed for name, s in self._sums.items()}
            self._summed = 0
        self.recorder.add(t, **self._means)

    def _flush(self) -> None:
        """Move rows to the host, freeze diverged members, save the last good state."""
        rows = self.recorder.flush()
        self._unflushed = 0
        losses = {t: row["train_loss"] for t, row in rows.items() if "train_loss" in row}
        self._freeze_diverged(losses)
        for kept, p in zip(self._last_good, self._kept, strict=True):
            kept.copy_(p.detach())
        self.on_rows(rows, self.diverged_at)

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
        """Reset members to their last good state; momentum must not move frozen members."""
        for p, kept in zip(self._kept, self._last_good, strict=True):
            for member in members:
                p[member] = kept[member]

    def ends_after_report(self, number: int, on_report: OnReport) -> bool:
        """Call ``on_report``; returns whether training ends."""
        self._flush()

        def evaluate(split: str) -> dict[str, Tensor]:
            with self.optimizer.evaluation():
                return self.task.evaluate(self.params, split)

        return on_report(number, self.recorder, evaluate)

    def finish(self, t: int) -> None:
        """Record the last row and the final losses."""
        self.optimizer.finish()
        self._record(t, snapshot=_due(t, self.plan.snapshot_every))
        self._record_means(t)
        self.seconds = self.clock.stop()
        if self.plan.evaluate_every:
            validated = _due(t, self.plan.evaluate_every)  # just now, by _record
            for split in ("test",) if validated else ("valid", "test"):
                self.recorder.add(t, **self.task.evaluate(self.params, split))
        self._flush()
        if self.plan.measure_end:
            self._measure_end()
        for member, start in enumerate(self.diverged_at):
            if start is not None:
                self.recorder.blank(member, start)

    def _measure_end(self) -> None:
        """Measure final losses without batch noise; NaN for diverged members."""
        with self.optimizer.evaluation():
            measured = {
                name: value
                for split in ("train", "valid")
                for name, value in self.task.evaluate(self.params, split).items()
            }
        for name, value in measured.items():
            values = value.detach().double().cpu().tolist()
            ends = zip(values, self.diverged_at, strict=True)
            self.final[name] = [v if at is None else math.nan for v, at in ends]

    def state_dict(self, t: int, seconds: float) -> dict[str, Any]:
        """State that the remaining iterations and the history depend on."""
        cuda = self.task.device.type == "cuda"
        return {
            "iteration": t,
            "seconds": seconds,
            "params": [p.detach().cpu().clone() for p in self.params],
            "last_good": [p.cpu().clone() for p in self._last_good],
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state_dict(),
            "recorder": self.recorder.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.task.device) if cuda else None,
            "sums": {name: s.cpu() for name, s in self._sums.items()},
            "means": {name: m.cpu() for name, m in self._means.items()},
            "counts": {"summed": self._summed, "unflushed": self._unflushed},
            "first_loss": None if self._first_loss is None else self._first_loss.tolist(),
            "frozen": self._frozen,
            "diverged_at": self.diverged_at,
            "snapshots": self.snapshots,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Inverse of :meth:`state_dict`; returns the iteration."""
        for own, saved in zip(self.params, state["params"], strict=True):
            own.copy_(saved)
        for own, saved in zip(self._last_good, state["last_good"], strict=True):
            own.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.task.load_state_dict(state["task"])
        self.recorder.load_state_dict(state["recorder"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.task.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.task.device)
        self.clock = DeviceClock(self.task.device, state["seconds"])
        device = self.task.device
        self._sums = {name: s.to(device) for name, s in state["sums"].items()}
        self._means = {name: m.to(device) for name, m in state["means"].items()}
        self._summed = state["counts"]["summed"]
        self._unflushed = state["counts"]["unflushed"]
        if state["first_loss"] is not None:
            self._first_loss = np.asarray(state["first_loss"], dtype=np.float32)
        self._frozen, self.diverged_at = state["frozen"], state["diverged_at"]
        self.snapshots = state["snapshots"]
        return int(state["iteration"])

    def result(self) -> EnsembleResult:
        """Results of the run."""
        return EnsembleResult(
            history=self.recorder.to_frame(),
            weights=[p.detach().cpu() for p in self.params],
            snapshots=self.snapshots,
            diverged_at=self.diverged_at,
            seconds=self.seconds,
            gradient_equivalents=self.optimizer.gradient_equivalents,
            task_state=self.task.state_dict(),
            final=self.final,
        )
