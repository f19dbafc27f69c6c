"""The verdict: from what was found on every task to the record of what is concluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from adaptive_opt.study import get_task

from .answer import answer
from .judge import Judge, TaskData, choose_reference
from .schema import Speedup, TaskVerdict, Verdict

__all__ = ["QUESTION", "TaskData", "build_verdict", "choose_reference", "comparison_table"]
__all__ += ["judge_task", "restrict"]

QUESTION = (
    "Does second-order information for step size adaptation make neural networks converge faster?"
)


def build_verdict(
    tasks: Sequence[TaskData],
    settings: Mapping[str, Any],
    scale: str,
    provenance: Mapping[str, Any],
) -> Verdict:
    """Everything that is concluded.

    Args:
        tasks: what was found on each.
        settings: the parameters ``analysis.verdict``.
        scale: of the study.
        provenance: versions, device, commands.
    """
    judged = [judge_task(task, settings) for task in tasks]
    summaries = [s for task in tasks for s in task.summaries.values() if not s.get("failed")]
    made_by = {
        "device": sorted({str(s["device"]) for s in summaries}),
        "torch": sorted({str(s["torch"]) for s in summaries}),
        "configurations": {f"{s['task']}.{s['arm']}": s["hyperparameters"] for s in summaries},
    }
    return Verdict(
        scale=scale,
        question=QUESTION,
        answer=answer(judged),
        settings=dict(settings),
        tasks=judged,
        provenance={**provenance, **made_by},
    )


def restrict(verdict: Verdict, half: str) -> Verdict:
    """What the record says about one half of the study, with an answer of its own."""
    tasks = [task for task in verdict.tasks if get_task(task.task).half == half]
    return verdict.model_copy(update={"tasks": tasks, "answer": answer(tasks)})


def judge_task(data: TaskData, settings: Mapping[str, Any]) -> TaskVerdict:
    """The verdict on one task.

    Args:
        data: what was found.
        settings: the parameters ``analysis.verdict``.
    """
    return Judge(data, settings).verdict()


def comparison_table(verdict: Verdict) -> pd.DataFrame:
    """Every comparison of the record, a row each."""
    rows: list[dict[str, Any]] = []
    for task in verdict.tasks:
        for arm in task.arms:
            named = {"task": task.task, "kind": "arm", "arm": arm.arm, "versus": task.reference}
            rows += [{**named, **s.model_dump()} for s in arm.speedups]
        for step in task.ladder:
            named = {"task": task.task, "kind": "ladder", "arm": step.upper, "versus": step.lower}
            rows.append({**named, **step.result.model_dump()})
    columns = ["task", "kind", "arm", "versus", *Speedup.model_fields]
    return pd.DataFrame(rows, columns=columns)
