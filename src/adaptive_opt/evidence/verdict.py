"""Build the verdict record from the results of all tasks."""

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
    """Judge every task and collect the results in one record.

    Args:
        tasks: results of each task.
        settings: the parameters ``analysis.verdict``.
        scale: name of the scale, such as ``base``.
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
    """Restrict the record to ``rahimi_recht`` or ``networks`` and answer for these tasks alone."""
    tasks = [task for task in verdict.tasks if get_task(task.task).half == half]
    return verdict.model_copy(update={"tasks": tasks, "answer": answer(tasks)})


def judge_task(data: TaskData, settings: Mapping[str, Any]) -> TaskVerdict:
    """Compare all arms of one task.

    Args:
        data: results of the task.
        settings: the parameters ``analysis.verdict``.
    """
    return Judge(data, settings).verdict()


def comparison_table(verdict: Verdict) -> pd.DataFrame:
    """Table with one row for each comparison of the record."""
    rows: list[dict[str, Any]] = []
    for task in verdict.tasks:
        for arm in task.arms:
            keys = {"task": task.task, "kind": "arm", "arm": arm.arm, "versus": task.reference}
            rows += [{**keys, **s.model_dump()} for s in arm.speedups]
        for step in task.ladder:
            keys = {"task": task.task, "kind": "ladder", "arm": step.upper, "versus": step.lower}
            rows.append({**keys, **step.result.model_dump()})
    columns = ["task", "kind", "arm", "versus", *Speedup.model_fields]
    return pd.DataFrame(rows, columns=columns)
