"""Nodes of ``training``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from typing import Any

from adaptive_opt.parameters import (
    TaskParameters,
    TrainingParameters,
    configuration,
    resolve_arm,
)


def train_rahimi_recht(
    task: str,
    arm: str,
    tensors: dict[str, Any],
    tasks: dict[str, Any],
    arms: dict[str, Any],
    training: dict[str, Any],
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Train all seeds of an arm: history, final weights, summary."""
    from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
    from adaptive_opt.tasks.rr_functions import RRFunction

    settings = TrainingParameters(**training)
    function = RRFunction.from_tensors(tensors)
    history, weights, summary = run_rahimi_recht(
        function,
        task=task,
        arm=arm,
        **resolve_arm(arm, arms[task], settings),
        task_parameters=TaskParameters(**tasks[task]),
        training=settings,
    )
    parameters = {"tasks": tasks, "arms": arms, "training": training}
    summary["configuration"] = {
        "function": function.digest(),
        **configuration(task, arm, parameters),
    }
    return history, {f"W{i}": w for i, w in enumerate(weights, start=1)}, summary
