"""Training at several lengths: the final loss as a function of the training budget.

A run at share h of the full length T is a separate training of h·T iterations, with its own
learning rate schedule. It has the same initial weights and first batches as the other runs of its
seed. Only its final loss is kept, measured without batch noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from .checkpoint import Checkpoint
from .contract import EnsembleResult
from .results import pack_result

__all__ = ["COLUMNS", "Lengths", "TrainingJob", "merge_configurations", "plan_jobs", "train_jobs"]

COLUMNS = (
    *("task", "arm", "seed", "study", "share", "iterations"),
    *("train_loss", "valid_loss", "valid_accuracy", "diverged", "gradient_equivalents"),
)
"""Columns of the table of final losses."""

Enclose = Callable[[dict[str, Any] | None], dict[str, Any]]
Train = Callable[["TrainingJob", dict[str, Any] | None, Enclose], EnsembleResult]


@dataclass(frozen=True)
class TrainingJob:
    """Seeds that are trained together at one length.

    Attributes:
        share: fraction of the full length.
        seeds: of the members.
        hyperparameters: of all members; values that differ are tensors ``[members]``.
    """

    share: float
    seeds: Sequence[int]
    hyperparameters: dict[str, Any]

    @property
    def is_full(self) -> bool:
        """Whether the job has full length; history and weights are kept only then."""
        return self.share == 1


class Lengths:
    """Training lengths, and the final losses measured at them.

    Args:
        shares: lengths as fractions of the full length, besides 1, which is always trained.
    """

    def __init__(self, shares: Sequence[float] = ()) -> None:
        self.shares = (1.0, *sorted((s for s in {*shares} if s != 1), reverse=True))
        self.rows: list[dict[str, Any]] = []

    def add(
        self, task: str, arm: str, studies: int, length: int, done: Sequence[Mapping[str, Any]]
    ) -> None:
        """Record the final losses of finished jobs.

        Args:
            task, arm: names.
            studies: number of searches; seed s uses the configuration of search s mod ``studies``.
            length: iterations of a full-length run.
            done: records of :func:`train_jobs`.
        """
        for record in done:
            for member, seed in enumerate(record["seeds"]):
                final = {n: v[member] for n, v in record["final"].items() if n in COLUMNS}
                self.rows.append(
                    {
                        "task": task,
                        "arm": arm,
                        "seed": int(seed),
                        "study": int(seed) % studies,
                        "share": float(record["share"]),
                        "iterations": max(1, round(record["share"] * length)),
                        "diverged": record["diverged_at"][member] is not None,
                        "gradient_equivalents": record["gradient_equivalents"],
                        **final,
                    }
                )

    def table(self) -> pd.DataFrame:
        """One row per (seed, share), with the columns :data:`COLUMNS`; missing values are NaN."""
        frame = pd.DataFrame(self.rows, columns=list(COLUMNS))
        losses = ["train_loss", "valid_loss", "valid_accuracy", "gradient_equivalents"]
        frame = frame.astype({**dict.fromkeys(losses, float), "diverged": bool})
        return frame.sort_values(["seed", "share"], ignore_index=True)


def plan_jobs(
    shares: Sequence[float],
    seeds: Sequence[int],
    configurations: Sequence[dict[str, Any] | None],
    *,
    together: bool,
    per_member: bool,
) -> list[TrainingJob]:
    """Jobs of an arm, in the order of training.

    Args:
        shares: lengths; only one run per search is trained at lengths above 1.
        seeds: of the runs.
        configurations: one per search; seed s uses number s mod their count. None if no seed
            uses it.
        together: whether all seeds of a length train as one ensemble, else one after the other.
        per_member: whether members of an ensemble may have different hyperparameters.

    Example:
        >>> jobs = plan_jobs((1, 0.5), [0, 1, 2], [{"lr": 1.0}, {"lr": 2.0}], together=True,
        ...                    per_member=False)
        >>> [(job.share, list(job.seeds)) for job in jobs]
        [(1, [0, 2]), (1, [1]), (0.5, [0, 2]), (0.5, [1])]
    """
    number = len(configurations)

    def merged(group: Sequence[int]) -> dict[str, Any]:
        each = [configurations[s % number] for s in group]
        return merge_configurations([c for c in each if c is not None])

    groups: list[list[int]] = [[s] for s in seeds]
    if together:
        same = all(c == configurations[0] for c in configurations)
        groups = (
            [list(seeds)]
            if per_member or same
            else [g for i in range(number) if (g := [s for s in seeds if s % number == i])]
        )
    # Lengths above 1 enter no statistical test: one run per search is enough.
    one_per_search = list(seeds)[:number]
    members = [
        (share, [s for s in group if share <= 1 or s in one_per_search])
        for share in shares
        for group in groups
    ]
    return [TrainingJob(share, group, merged(group)) for share, group in members if group]


def merge_configurations(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge hyperparameters for an ensemble; values that differ become tensors ``[members]``.

    Example:
        >>> merge_configurations([{"lr": 1.0, "eps": 0.1}, {"lr": 2.0, "eps": 0.1}])
        {'lr': tensor([1., 2.]), 'eps': 0.1}
    """
    first = each[0]
    merged = {}
    for name, value in first.items():
        values = [c[name] for c in each]
        merged[name] = value if _all_equal(values) else torch.tensor(values)
    return merged


def _all_equal(values: Sequence[Any]) -> bool:
    first = values[0]
    if all(v is first for v in values):
        return True  # also for tensors, whose comparison has no truth value
    return not isinstance(first, torch.Tensor) and all(v == first for v in values)


def train_jobs(
    jobs: Sequence[TrainingJob],
    train: Train,
    checkpoint: Checkpoint,
    saved: Mapping[str, Any],
    extra: Callable[[], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Train jobs one after the other, continuing from a checkpoint.

    Args:
        jobs: see :func:`plan_jobs`.
        train: trains a job from a saved state, or from the start if it is None; the last argument
            converts a state to the content of a checkpoint.
        checkpoint: where finished jobs and the state of the current job are saved.
        saved: content of the checkpoint, ``done`` and ``state``.
        extra: returns additional content for checkpoints.

    Returns:
        One record per job: ``share``, ``seeds``, ``final``, ``diverged_at``,
        ``gradient_equivalents``, ``seconds``; for full length also ``result``.
    """
    done: list[dict[str, Any]] = list(saved["done"])
    state = saved["state"]

    def enclose(inner: dict[str, Any] | None) -> dict[str, Any]:
        return {"done": done, "state": inner, **extra()}

    for job in jobs[len(done) :]:
        result = train(job, state, enclose)
        state = None
        record = {
            "share": job.share,
            "seeds": list(job.seeds),
            "final": result.final,
            "diverged_at": result.diverged_at,
            "gradient_equivalents": result.gradient_equivalents,
            "seconds": result.seconds,
        }
        done.append(record | ({"result": pack_result(result)} if job.is_full else {}))
        if len(done) < len(jobs) and (job.is_full or checkpoint.due):
            checkpoint.save(enclose(None))
    return done
