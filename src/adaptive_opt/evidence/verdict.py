"""The verdict: every arm against the best first-order one, every rung against the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from adaptive_opt.study import get_arm, get_task

from . import statistics
from .answer import answer
from .ladder import STEPS, made_of
from .schema import ArmVerdict, BreakEven, Clock, LadderVerdict, TaskVerdict, Verdict
from .scores import CAVEAT, break_even_period, integrated_scores, performance_profiles
from .tables import ARM_LABELS, Histories
from .targets import CLOCKS, METRICS, target_ladder

__all__ = ["QUESTION", "build_verdict", "comparison_table", "fix_targets", "profile_table"]
__all__ += ["restrict"]

QUESTION = (
    "Does second-order information for step size adaptation make neural networks converge faster?"
)


def fix_targets(
    baselines: Histories, fixed: Mapping[str, float], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The targets of every task, before any other arm is looked at.

    Args:
        baselines: histories of the first-order arms.
        fixed: by task, the training loss that its parameters name, added as ``fixed``.
        settings: the parameters ``analysis.verdict``.

    Returns:
        By task and metric: ``baseline``, ``start`` and ``levels`` by name (``share_25`` …).
    """
    shares = settings["shares"]
    targets: dict[str, Any] = {}
    for task in dict.fromkeys(str(h["task"].iloc[0]) for h in baselines):
        own = [h for h in baselines if str(h["task"].iloc[0]) == task]
        for metric in METRICS:
            found = target_ladder(own, metric, shares, settings["reached_by"])
            names = [f"share_{round(100 * s)}" for s in shares]
            levels = dict(zip(names, found["levels"], strict=False))
            if metric == "train_loss":
                levels["fixed"] = fixed[task]
            if levels:
                targets.setdefault(task, {})[metric] = {**found, "levels": levels}
    return targets


def build_verdict(
    times: pd.DataFrame,
    targets: Mapping[str, Any],
    summaries: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    scale: str,
    provenance: Mapping[str, Any],
) -> Verdict:
    """Everything that is concluded from the times.

    Args:
        times: see :func:`.targets.times_to_targets`.
        targets: from :func:`fix_targets`.
        summaries: of the runs.
        settings: the parameters ``analysis.verdict``.
        scale: of the study.
        provenance: versions, device, commands.
    """
    runs = {(s["task"], s["arm"]): s for s in summaries}
    tasks = [
        _task(str(task), rows, targets[str(task)], runs, settings)
        for task, rows in times.groupby("task", sort=False)
    ]
    headline = _median_times(times, targets)
    scores: dict[Clock, dict[str, float]] = {
        clock: integrated_scores(headline[clock]) for clock in CLOCKS
    }
    return Verdict(
        scale=scale,
        question=QUESTION,
        answer=answer(tasks),
        settings=dict(settings),
        tasks=tasks,
        scores=scores,
        scores_caveat=CAVEAT,
        provenance={**provenance, **_configurations(summaries)},
    )


def restrict(verdict: Verdict, half: str) -> Verdict:
    """What the record says about one half of the study.

    The answer is that of its tasks; scores, which are over all tasks, are left out.
    """
    tasks = [task for task in verdict.tasks if get_task(task.task).half == half]
    return verdict.model_copy(update={"tasks": tasks, "answer": answer(tasks), "scores": {}})


def _configurations(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "device": sorted({str(s["device"]) for s in summaries}),
        "torch": sorted({str(s["torch"]) for s in summaries}),
        "configurations": {f"{s['task']}.{s['arm']}": s["hyperparameters"] for s in summaries},
    }


def _task(
    task: str,
    times: pd.DataFrame,
    targets: Mapping[str, Any],
    runs: Mapping[tuple[str, str], Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> TaskVerdict:
    arms: list[ArmVerdict] = []
    ladder: list[LadderVerdict] = []
    for (metric, target), rows in times.groupby(["metric", "target"], sort=False):
        context = {
            "metric": str(metric),
            "target": str(target),
            "level": float(rows["level"].iloc[0]),
            "headline": _is_headline(str(metric), str(target), targets),
        }
        for clock in CLOCKS:
            arms += _against_baseline(rows, {**context, "clock": clock}, settings)
        ladder += _rung_by_rung(rows, {**context, "clock": "iteration"}, settings)
    return TaskVerdict(
        task=task,
        label=get_task(task).label,
        seeds=int(times["seed"].nunique()),
        baselines={m: t["baseline"] for m, t in targets.items()},
        targets={m: t["levels"] for m, t in targets.items()},
        arms=arms,
        ladder=ladder,
        made_of=_parts(ladder),
        break_even=_break_even(task, times, targets, runs),
    )


def _is_headline(metric: str, target: str, targets: Mapping[str, Any]) -> bool:
    """The deepest level of the training loss that the baselines set; else the fixed one."""
    levels = [n for n in targets["train_loss"]["levels"] if n != "fixed"]
    return metric == "train_loss" and target == (levels[-1] if levels else "fixed")


def _by_arm(rows: pd.DataFrame, clock: str) -> tuple[pd.DataFrame, pd.Series]:
    """Times of every arm, and until when all of its runs were observed.

    Times are by seed, a column an arm; infinite where a run never arrives.
    """
    times = rows.assign(time=rows[clock].where(rows["reached"], np.inf))
    ends = rows.groupby("arm", observed=True)[f"end_{clock}"].min()
    return times.pivot(index="seed", columns="arm", values="time"), ends


def _fastest_baseline(rows: pd.DataFrame, clock: str) -> str | None:
    """The baseline with the lowest restricted geometric mean time.

    Arms of which half of the runs arrive come first, in runs as long as they are: times are
    restricted at the end of the shortest run, before which, by the clock, none may have arrived.
    """
    arms = [a for a in rows["arm"].unique() if get_arm(a).is_baseline]
    if not arms:
        return None
    times, ends = _by_arm(rows, clock)
    horizon = float(ends[arms].min())

    def order(arm: str) -> tuple[bool, float, int]:
        own = times[arm].dropna()
        arrived = int(np.isfinite(own).sum())
        mean = float(np.log(own.clip(upper=horizon)).mean())
        return 2 * arrived < len(own), round(mean, 9), -arrived

    return str(min(arms, key=order))


def _compared(
    rows: pd.DataFrame, pairs: Sequence[tuple[str, str]], clock: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Each pair of arms compared, corrected for the number of pairs."""
    found = []
    times, ends = _by_arm(rows, clock)
    for arm, other in pairs:
        both = times[[arm, other]].dropna()
        t, u = both.iloc[:, 0], both.iloc[:, 1]
        horizon = float(ends[[arm, other]].min())
        result = statistics.compare(
            t, u, horizon, margin=settings["margin"], confidence=settings["confidence"]
        )
        arrived = [int((x < horizon).sum()) for x in (t, u)]
        found.append((result, arrived))
    different = statistics.holm([r.p_different for r, _ in found])
    equivalent = statistics.holm([r.p_equivalent for r, _ in found])
    alpha = 1 - settings["confidence"]
    records = []
    for (result, arrived), p, q in zip(found, different, equivalent, strict=True):
        values = asdict(result)
        del values["spread"], values["never"]
        verdict = statistics.decide(result, p, q, alpha)
        needed = None
        if verdict == "undecided":
            needed = statistics.seeds_to_decide(
                result, len(pairs), margin=settings["margin"], alpha=alpha
            )
        records.append(
            values
            | {"p_different": p, "p_equivalent": q, "verdict": verdict, "seeds_to_decide": needed}
            | {"arrived": arrived[0], "arrived_other": arrived[1]}
            | {k: None if not math.isfinite(values[k]) else values[k] for k in ("low", "high")}
        )
    return records


def _against_baseline(
    rows: pd.DataFrame, context: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[ArmVerdict]:
    """Every arm that is neither first-order nor a placebo, and the other first-order ones."""
    baseline = _fastest_baseline(rows, context["clock"])
    arms = [a for a in rows["arm"].unique() if a != baseline and get_arm(a).kind != "ladder"]
    if baseline is None or not arms:
        return []
    results = _compared(rows, [(arm, baseline) for arm in arms], context["clock"], settings)
    return [
        ArmVerdict(**context, **r, arm=arm, label=ARM_LABELS[arm], versus=baseline)
        for arm, r in zip(arms, results, strict=True)
    ]


def _rung_by_rung(
    rows: pd.DataFrame, context: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[LadderVerdict]:
    """Every step of every ladder whose two arms are there."""
    present = [str(a) for a in rows["arm"].unique()]
    found = []
    for parent in (a for a in present if get_arm(a).kind == "second-order"):
        steps = [s for s in STEPS if {parent + s.upper, parent + s.lower} <= {*present}]
        pairs = [(parent + s.upper, parent + s.lower) for s in steps]
        results = _compared(rows, pairs, context["clock"], settings) if pairs else []
        for step, (upper, lower), result in zip(steps, pairs, results, strict=True):
            found.append(
                LadderVerdict(
                    **context,
                    **result,
                    parent=parent,
                    upper=upper,
                    lower=lower,
                    part=step.part,
                    question=step.question,
                )
            )
    return found


def _parts(ladder: Sequence[LadderVerdict]) -> dict[str, str]:
    """What the gain of each parent is made of, at the headline target."""
    steps = {(s.upper, s.lower): s for s in STEPS}
    said: dict[str, str] = {}
    for parent in dict.fromkeys(r.parent for r in ladder):
        own = [r for r in ladder if r.parent == parent and r.headline]
        cut = len(parent)
        verdicts = [(steps[r.upper[cut:], r.lower[cut:]], str(r.verdict)) for r in own]
        said[parent] = made_of(ARM_LABELS[parent], verdicts)
    return said


def _break_even(
    task: str,
    times: pd.DataFrame,
    targets: Mapping[str, Any],
    runs: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[BreakEven]:
    """Of every second-order arm, by the medians at the headline target."""
    named = zip(times["metric"], times["target"], strict=True)
    rows = times[[_is_headline(metric, target, targets) for metric, target in named]]
    baseline = _fastest_baseline(rows, "device_seconds")
    if baseline is None:
        return []
    found = []
    for arm in (a for a in rows["arm"].unique() if get_arm(a).kind == "second-order"):
        run = runs[task, arm]
        without = f"{arm}_constant" if (task, f"{arm}_constant") in runs else baseline
        plain = runs[task, without]
        values = break_even_period(
            iterations=float(_by_arm(rows, "iteration")[0][arm].median()),
            seconds=run["device_seconds"] / run["iterations"],
            seconds_without=plain["device_seconds"] / plain["iterations"],
            update_period=run["hyperparameters"]["update_period"],
            baseline_seconds=float(_by_arm(rows, "device_seconds")[0][baseline].median()),
        )
        period = values["period"] if math.isfinite(values["period"]) else None
        found.append(
            BreakEven(
                arm=arm,
                label=ARM_LABELS[arm],
                update_period=run["hyperparameters"]["update_period"],
                first=values["first"],
                curvature=values["curvature"],
                measured_on=without,
                period=period,
            )
        )
    return found


def _median_times(times: pd.DataFrame, targets: Mapping[str, Any]) -> dict[Clock, pd.DataFrame]:
    """By clock: tasks × arms, medians over seeds at the headline target; placebos left out."""
    keep = [
        _is_headline(m, t, targets[task]) and get_arm(arm).kind != "ladder"
        for task, arm, m, t in zip(
            times["task"], times["arm"], times["metric"], times["target"], strict=True
        )
    ]
    rows = times[keep]
    tables: dict[Clock, pd.DataFrame] = {}
    for clock in CLOCKS:
        values = rows.assign(time=rows[clock].where(rows["reached"], np.inf))
        medians = values.groupby(["task", "arm"], sort=False)["time"].median()
        tables[clock] = medians.unstack("arm").fillna(np.inf)
    return tables


def profile_table(times: pd.DataFrame, targets: Mapping[str, Any]) -> pd.DataFrame:
    """Performance profiles on the three clocks, in long form, with a column ``clock``."""
    parts = [
        performance_profiles(table).assign(clock=clock)
        for clock, table in _median_times(times, targets).items()
    ]
    return pd.concat(parts, ignore_index=True)


def comparison_table(verdict: Verdict) -> pd.DataFrame:
    """Every comparison of the verdict as a row, arms and ladders alike."""
    rows = []
    for task in verdict.tasks:
        for r in task.arms:
            rows.append({"task": task.task, "kind": "arm", **r.model_dump(exclude={"label"})})
        for s in task.ladder:
            values = s.model_dump(exclude={"question"})
            values |= {"arm": s.upper, "versus": s.lower}
            rows.append({"task": task.task, "kind": "ladder", **values})
    return pd.DataFrame(rows)
