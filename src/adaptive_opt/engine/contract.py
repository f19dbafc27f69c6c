"""What the training loop takes and gives: a task, a plan, a result."""

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

__all__ = ["EnsembleResult", "HistoryBlock", "Observer", "Plan", "Rows", "Task", "ignore"]

Rows = Mapping[int, Mapping[str, NDArray[np.float32]]]
"""Part of a history: by iteration, and by column, a value for each member."""


class Task(Protocol):
    """What the loop needs of a task; parameters and losses have a leading member dimension."""

    members: int
    device: torch.device
    batches_per_epoch: int
    resumes_within_epoch: bool
    """Whether an epoch can be begun at any of its batches; else a checkpoint waits for its end."""
    batch_metrics: dict[str, Tensor]
    """Beside the loss of the last batch, ``[members]`` each."""
    buffers: dict[str, Tensor]
    """What training changes beside the parameters, ``[members, ...]`` each."""
    hidden: list[bool]
    """Of each parameter: a matrix inside the network, neither an embedding nor the output."""

    def initial_parameters(self) -> list[Tensor]:
        """Leaves that require grad."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """Batches of an epoch, from the one with index ``start`` on."""

    def loss(self, weights: Sequence[Tensor], batch: Any) -> Tensor:
        """``[members]``, differentiable twice."""

    def curvature_loss(self, weights: Sequence[Tensor], batch: Any) -> Tensor:
        """The same on the part of the batch that curvature is computed on."""

    def loss_and_gradient(
        self, weights: Sequence[Tensor], batch: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """The same loss and its gradient, by the fastest way the task knows."""

    def loss_and_sampled_loss(
        self, weights: Sequence[Tensor], batch: Any, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, SampledLoss]:
        """The same loss, differentiable, and one for the Gauss–Newton estimate.

        A task's ``generators`` are one for each member.
        """

    measures_train_loss: bool
    """Whether ``train_loss`` is quick; else the history has the mean over the batches since
    its last row, likewise of ``batch_metrics``."""

    def train_loss(self, weights: Sequence[Tensor]) -> Tensor:
        """Loss over the training data, ``[members]``."""

    def evaluate(self, weights: Sequence[Tensor], split: str) -> dict[str, Tensor]:
        """Losses and metrics in evaluation mode, as columns of the history; none without data.

        ``valid`` and ``test`` are held-out data, ``train`` is a fixed sample of the training data.
        """

    def constant_loss(self, split: str) -> float:
        """Loss over a split of the best prediction that does not look at the input."""

    def prepare(self, weights: Sequence[Tensor]) -> None:
        """What no clock shall count."""

    def state_dict(self) -> dict[str, Any]:
        """What else training changes, at the end of an epoch or where it can be resumed."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""


@dataclass(frozen=True)
class Plan:
    """Length of a run, and what is noted on the way.

    Attributes:
        epochs: passes over the data.
        share: the part of them that is trained, rounded to whole iterations.
        schedule, floor: see :func:`adaptive_opt.engine.schedule.make_schedule`.
        schedule_epochs: what the schedule spans; None: the run, whatever its share.
        log_every: iterations between two rows of the history.
        statistics_every: iterations between two looks into the optimizer.
        snapshot_every: iterations between two points of the trajectory; 0: none.
        evaluate_every: iterations between two looks at validation data; 0: none. Test data
            are looked at once, at the end, if validation data are at all.
        measure_end: whether the result has ``final``.
        curvature_share: below 1, curvature is that of part of the batch.
        diverged_above: a member whose loss is not finite, or above this multiple of its
            first loss, is frozen where it last was well.
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
        """Length of the run, at least one iteration.

        Example:
            >>> Plan(epochs=3, share=0.25).iterations(100)
            75
        """
        return max(1, round(self.share * self.epochs * batches_per_epoch))


@dataclass(frozen=True)
class EnsembleResult:
    """What a run leaves.

    Attributes:
        history: one row for each (member, logged iteration).
        final: at the end, measured without batch noise, in evaluation mode: ``train_loss``
            over a fixed training sample, ``valid_loss`` and metrics over the validation
            split where there is one; ``[members]`` each, NaN where a member diverged.
        weights: final parameters, ``[members, ...]`` each, on the CPU.
        snapshots: the iterations whose points were handed to ``on_snapshot``.
        diverged_at: for each member the iteration it was frozen at, or None.
        seconds: training time of the whole ensemble, evaluation and logging apart.
        gradient_equivalents: cost of one member.
        task_state: what the task's ``state_dict`` has at the end.
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
    """Rows that the history of some runs has got since the last block.

    Attributes:
        seeds: of the runs, in the order of the members.
        iterations: length of a run.
        rows: an iteration may come in two blocks, with other columns in each.
        diverged_at: for each member the iteration from which on its values mean nothing.
    """

    seeds: Sequence[int]
    iterations: int
    rows: Rows
    diverged_at: Sequence[int | None]


Observer = Callable[[HistoryBlock], None]
"""Is told of a history while it grows. It is called with the clock stopped, keeps its hands off
what it is given, and neither waits nor raises: training waits for it and fails with it."""


def ignore(block: HistoryBlock) -> None:
    """An observer that looks away."""
    del block
