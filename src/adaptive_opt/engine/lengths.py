"""Training at several lengths: what final loss a training budget buys.

A run at the share h of the full length T is a training of its own of h·T iterations, with its
whole learning rate schedule, from the same initial weights and with the same first batches as
the others of its seed. What is kept of it is the loss at its end, measured without batch noise.
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

__all__ = ["COLUMNS", "Lengths", "Turn", "merge_configurations", "plan_turns", "train_turns"]

COLUMNS = (
    *("task", "arm", "seed", "study", "share", "iterations"),
    *("train_loss", "valid_loss", "valid_accuracy", "diverged", "gradient_equivalents"),
)
"""Of the table of final losses."""

Enclose = Callable[[dict[str, Any] | None], dict[str, Any]]
Train = Callable[["Turn", dict[str, Any] | None, Enclose], EnsembleResult]


@dataclass(frozen=True)
class Turn:
    """Seeds that are trained as one program, at one length.

    Attributes:
        share: of the full length.
        seeds: of the members.
        hyperparameters: of the members together; a tensor ``[members]`` where they differ.
    """

    share: float
    seeds: Sequence[int]
    hyperparameters: dict[str, Any]

    @property
    def is_full(self) -> bool:
        """Whether it is the run that history and weights are kept of."""
        return self.share == 1


class Lengths:
    """Which lengths are trained, and the final losses found.

    Args:
        shares: of the full length, apart from 1, which is always trained.
    """

    def __init__(self, shares: Sequence[float] = ()) -> None:
        self.shares = (1.0, *sorted((s for s in {*shares} if s != 1), reverse=True))
        self.rows: list[dict[str, Any]] = []

    def add(
        self, task: str, arm: str, studies: int, length: int, done: Sequence[Mapping[str, Any]]
    ) -> None:
        """Note the final losses of finished turns.

        Args:
            task, arm: names.
            studies: number of searches; the run of seed s has the configuration of s mod that.
            length: iterations of a run of full length.
            done: records of :func:`train_turns`.
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
        """A row for each (seed, share), columns :data:`COLUMNS`; NaN where there is no value."""
        frame = pd.DataFrame(self.rows, columns=list(COLUMNS))
        losses = ["train_loss", "valid_loss", "valid_accuracy", "gradient_equivalents"]
        frame = frame.astype({**dict.fromkeys(losses, float), "diverged": bool})
        return frame.sort_values(["seed", "share"], ignore_index=True)


def plan_turns(
    shares: Sequence[float],
    seeds: Sequence[int],
    configurations: Sequence[dict[str, Any] | None],
    *,
    together: bool,
    per_member: bool,
) -> list[Turn]:
    """The programs of an arm, in the order in which they are trained.

    Args:
        shares: lengths; those above 1 are trained by one run of each search.
        seeds: of the runs.
        configurations: one for each search; that of seed s is number s mod their number. None
            where no seed has it.
        together: all seeds of a length as one ensemble; else one after the other.
        per_member: whether the members of an ensemble may differ in hyperparameters.

    Example:
        >>> turns = plan_turns((1, 0.5), [0, 1, 2], [{"lr": 1.0}, {"lr": 2.0}], together=True,
        ...                    per_member=False)
        >>> [(t.share, list(t.seeds)) for t in turns]
        [(1, [0, 2]), (1, [1]), (0.5, [0, 2]), (0.5, [1])]
    """
    number = len(configurations)

    def merged(group: Sequence[int]) -> dict[str, Any]:
        each = [configurations[s % number] for s in group]
        return merge_configurations([c for c in each if c is not None])

    groups: list[list[int]] = [[s] for s in seeds]
    if together:
        alike = all(c == configurations[0] for c in configurations)
        groups = (
            [list(seeds)]
            if per_member or alike
            else [g for i in range(number) if (g := [s for s in seeds if s % number == i])]
        )
    # Beyond the full length one run of each search will do: nothing is tested there.
    few = list(seeds)[:number]
    members = [
        (share, [s for s in group if share <= 1 or s in few])
        for share in shares
        for group in groups
    ]
    return [Turn(share, group, merged(group)) for share, group in members if group]


def merge_configurations(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One set of hyperparameters for an ensemble; a tensor ``[members]`` where values differ.

    Example:
        >>> merge_configurations([{"lr": 1.0, "eps": 0.1}, {"lr": 2.0, "eps": 0.1}])
        {'lr': tensor([1., 2.]), 'eps': 0.1}
    """
    first = each[0]
    merged = {}
    for name, value in first.items():
        values = [c[name] for c in each]
        merged[name] = value if _all_alike(values) else torch.tensor(values)
    return merged


def _all_alike(values: Sequence[Any]) -> bool:
    first = values[0]
    if all(v is first for v in values):
        return True  # a tensor of the members, which has no truth value
    return not isinstance(first, torch.Tensor) and all(v == first for v in values)


def train_turns(
    turns: Sequence[Turn],
    train: Train,
    checkpoint: Checkpoint,
    saved: Mapping[str, Any],
    extra: Callable[[], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Train one turn after the other, from where a checkpoint says.

    Args:
        turns: see :func:`plan_turns`.
        train: trains a turn, from a saved state or from the start; the last argument makes what
            a checkpoint holds of a state.
        checkpoint: where finished turns, and the state of the one under way, are kept.
        saved: what it held: ``done`` and ``state``.
        extra: what else a checkpoint has to hold.

    Returns:
        A record for each turn: ``share``, ``seeds``, ``final``, ``diverged_at``,
        ``gradient_equivalents``, ``seconds``; of a full length also ``result``.
    """
    done: list[dict[str, Any]] = list(saved["done"])
    state = saved["state"]

    def enclose(inner: dict[str, Any] | None) -> dict[str, Any]:
        return {"done": done, "state": inner, **extra()}

    for turn in turns[len(done) :]:
        result = train(turn, state, enclose)
        state = None
        record = {
            "share": turn.share,
            "seeds": list(turn.seeds),
            "final": result.final,
            "diverged_at": result.diverged_at,
            "gradient_equivalents": result.gradient_equivalents,
            "seconds": result.seconds,
        }
        done.append(record | ({"result": pack_result(result)} if turn.is_full else {}))
        if len(done) < len(turns) and (turn.is_full or checkpoint.due):
            checkpoint.save(enclose(None))
    return done
