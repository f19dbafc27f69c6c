"""Interfaces of the training loop: task, plan, result and observer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaptive_opt.optim import SampledLoss

__all__ = ["EnsembleResult", "HistoryBlock", "Observer", "Plan", "Rows", "Task", "ignore_block"]

Rows = Mapping[int, Mapping[str, NDArray[np.float32]]]
"""Part of a history: iteration → column → one value per member, ``[members]``."""


class Task(Protocol):
    """Interface of a task; parameters and losses have a leading member dimension."""

    members: int
    device: torch.device
    batches_per_epoch: int
    resumes_within_epoch: bool
    """Whether an epoch can start at any batch; otherwise checkpoints wait for its end."""
    batch_metrics: dict[str, Tensor]
    """Metrics of the last batch besides the loss, ``[members]`` each."""
    buffers: dict[str, Tensor]
    """Tensors that training changes besides the parameters, ``[members, ...]`` each."""
    hidden: list[bool]
    """For each parameter, whether it is a matrix other than embedding and output."""

    def initial_parameters(self) -> list[Tensor]:
        """Initial parameters, ``[members, ...]`` each, as leaves that require grad."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """Batches of an epoch, beginning at index ``start``."""

    def loss(self, weights: Sequence[Tensor], batch: Any) -> Tensor:
        """Loss of each member, ``[members]``, twice differentiable."""

    def curvature_loss(self, weights: Sequence[Tensor], batch: Any) -> Tensor:
        """Like :meth:`loss`, on the part of the batch that curvature is computed on."""

    def loss_and_gradient(
        self, weights: Sequence[Tensor], batch: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss ``[members]`` and gradients, computed in the fastest way."""

    def loss_and_sampled_loss(
        self, weights: Sequence[Tensor], batch: Any, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, SampledLoss]:
        """Differentiable loss, and the sampled loss of the Gauss–Newton estimate.

        Args:
            weights: ``[members, ...]`` each.
            batch: of the task.
            generators: one per member, for the sampled loss.
        """

    def sample_gradients(self, weights: Sequence[Tensor], batch: Any) -> Mapping[Tensor, Tensor]:
        """Mean of the squared gradients of the samples of a batch, by parameter."""

    measures_train_loss: bool
    """Whether ``train_loss`` is cheap. If not, the history has the mean loss of the batches since
    its last row, and likewise means of ``batch_metrics``."""

    def train_loss(self, weights: Sequence[Tensor]) -> Tensor:
        """Loss over the training data, ``[members]``."""

    def evaluate(self, weights: Sequence[Tensor], split: str) -> dict[str, Tensor]:
        """Losses and metrics in evaluation mode, by history column; empty if a split has no data.

        ``valid`` and ``test`` are held-out data, ``train`` is a fixed sample of the training data.
        """

    def constant_loss(self, split: str) -> float:
        """Loss over a split of the best prediction that ignores the input."""

    def prepare(self, weights: Sequence[Tensor]) -> None:
        """Do work that the clock must not count, such as compilation."""

    def state_dict(self) -> dict[str, Any]:
        """State besides the parameters, at an epoch's end or wherever training can resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""


@dataclass(frozen=True)
class Plan:
    """Length of a run, and what it records.

    Attributes:
        epochs: passes over the data at full length.
        share: fraction of the full length to train, rounded to whole iterations.
        schedule, floor: see :func:`adaptive_opt.engine.schedule.make_schedule`.
        schedule_epochs: length of the schedule; None: length of the run.
        log_every: iterations between rows of the history.
        statistics_every: iterations between statistics of the optimizer.
        snapshot_every: iterations between points of the trajectory; 0: none.
        evaluate_every: iterations between evaluations on validation data; 0: none. If above 0,
            test data are evaluated once, at the end.
        measure_end: whether the result has ``final``.
        curvature_share: fraction of the batch that curvature is computed on.
        diverged_above: a member whose loss is not finite, or above this multiple of its first
            loss, has diverged and is frozen in its last good state.
    """

    epochs: int
    share: float = 1.0
    schedule: str = "cosine"
    floor: float = 0.1
    schedule_epochs: float | None = None
    log_every: int = 10
    statistics_every: int = 100
    snapshot_every: int = 0
    evaluate_every: int = 0
    measure_end: bool = False
    curvature_share: float = 1.0
    diverged_above: float = 1e6

    def iterations(self, batches_per_epoch: int) -> int:
        """Number of iterations of the run, at least 1.

        Example:
            >>> Plan(epochs=3, share=0.25).iterations(100)
            75
        """
        return max(1, round(self.share * self.epochs * batches_per_epoch))


@dataclass(frozen=True)
class EnsembleResult:
    """Result of training an ensemble.

    Attributes:
        history: one row per (member, logged iteration).
        final: values of the final weights without batch noise, in evaluation mode: ``train_loss``
            over a fixed training sample; ``valid_loss`` and metrics over the validation split, if
            there is one. ``[members]`` each, NaN for diverged members.
        weights: final parameters, ``[members, ...]`` each, on the CPU.
        snapshots: iterations of the points that ``on_snapshot`` received.
        diverged_at: for each member the iteration at which it was frozen, or None.
        seconds: training time of the whole ensemble, without evaluation and logging.
        gradient_equivalents: cost of one member.
        task_state: the task's final ``state_dict``.
    """

    history: pd.DataFrame
    weights: list[Tensor]
    snapshots: list[int]
    diverged_at: list[int | None]
    seconds: float
    gradient_equivalents: float
    task_state: dict[str, Any]
    final: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class HistoryBlock:
    """New rows of the history of an ensemble.

    Attributes:
        seeds: of the runs, in the order of the members.
        iterations: length of a run.
        rows: two blocks may have the same iteration, with different columns.
        diverged_at: for each member the iteration from which its values are invalid, or None.
    """

    seeds: Sequence[int]
    iterations: int
    rows: Rows
    diverged_at: Sequence[int | None]


Observer = Callable[[HistoryBlock], None]
"""Callback for new rows of a history, called with the clock stopped. It must not change its
argument, block or raise: training waits for it and fails with it."""


def ignore_block(block: HistoryBlock) -> None:
    """Observer that does nothing."""
    del block
