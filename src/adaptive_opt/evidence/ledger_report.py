"""Report of the replication ledger; every sentence is computed from its tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import pandas as pd

from adaptive_opt.switches import BASELINE, CLIP_NORM, SWITCHES, VARIANTS, Switch, get_variant

from .tables import ARM_LABELS, TASK_LABELS, count, markdown, percent, records

__all__ = ["report"]

OWN = ("SADH", "SSDH", "SSVP", "Sophia")
"""Measured optimizers that belong to this package."""


def report(
    ledger: pd.DataFrame,
    targets: pd.DataFrame,
    precision: pd.DataFrame,
    step_costs: Mapping[str, Any],
    *,
    scale: str,
    searched: bool,
) -> str:
    """Report in Markdown: overview table, one section for each switch, published numbers.

    Args:
        ledger, targets, precision: tables of :mod:`.ledger`.
        step_costs: records of ``benchmarks/step_overhead.py``, by file name.
        scale: name of the scale, such as ``base``.
        searched: whether the variant ``searched`` used the results of a search.
    """
    parts = [f"# Replication ledger, scale `{scale}`", _introduction(ledger)]
    for task in ledger["task"].unique():
        parts += [f"**{TASK_LABELS[task]}**", _overview(ledger[ledger["task"] == task])]
    special: dict[str, Callable[[], Iterable[str]]] = {
        "initialisation": lambda: _spreads(ledger),
        "clip": lambda: _clipping(ledger),
        "search": lambda: () if searched else (_NOTHING_SEARCHED,),
        "targets": lambda: _targets(targets),
        "clock": lambda: _clock(step_costs),
        "precision": lambda: _precision(precision),
    }
    for switch in SWITCHES:
        parts += _section(switch, ledger, list(special.get(switch.name, tuple)()))
    parts += ["## All switches as published", *_effects(ledger, "published")]
    parts += [_SETTLING, _settling(ledger)]
    return "\n\n".join(parts) + "\n"


_NOTHING_SEARCHED = (
    "- Nothing was searched (`tuning.source: published`), so this row is equal to the baseline."
)
_SETTLING = (
    "Iteration at which the loss of the best run settles, in % of the run: with all switches "
    "corrected, with all switches as published, and the published number."
)


def _introduction(ledger: pd.DataFrame) -> str:
    targets = ledger.drop_duplicates("task")
    at = " and ".join(
        f"{t:g} on {TASK_LABELS[n]}" for n, t in targets[["task", "target"]].to_numpy()
    )
    return (
        "Time to target: the first iteration with a root mean squared error of at most "
        f"{at}; median over {ledger['seeds'].iloc[0]} seeds. A seed that never reaches the target "
        "counts as infinite; the number of such seeds is in brackets. The baseline has every "
        "defect corrected and the published hyperparameters. Every other row changes one thing."
    )


def _overview(rows: pd.DataFrame) -> str:
    """Table of variants × arms."""
    arms = list(dict.fromkeys(rows["arm"]))
    by_key = {(r["variant"], r["arm"]): r for r in records(rows)}
    body = [
        [v.label, *(_cell(by_key[v.name, arm]) for arm in arms)]
        for v in VARIANTS
        if (v.name, arms[0]) in by_key
    ]
    return markdown(["", *(ARM_LABELS[a] for a in arms)], body)


def _cell(row: Mapping[str, Any]) -> str:
    never = f" ({row['never']})" if 0 < row["never"] < row["seeds"] else ""
    return count(row["median_iterations"]) + never


def _section(switch: Switch, ledger: pd.DataFrame, special: list[str]) -> list[str]:
    sentences = [
        f"As published: {switch.published}. Here: {switch.corrected}. "
        f"Why it matters: {switch.why}.",
        switch.note,
    ]
    parts = [f"## {switch.label}", " ".join(s for s in sentences if s)]
    for name in switch.variants:
        if len(switch.variants) > 1:
            other = get_variant(get_variant(name).against).label
            parts.append(f"*{get_variant(name).label}*, compared with *{other}*:")
        parts += _effects(ledger, name)
    return [*parts, "\n".join(special)] if special else parts


def _effects(ledger: pd.DataFrame, variant: str) -> list[str]:
    """Effect of a variant, one list item for each task."""
    rows = ledger[ledger["variant"] == variant]
    lines = [
        f"- {TASK_LABELS[task]}: {_effect(rows[rows['task'] == task], ledger)}"
        for task in rows["task"].unique()
    ]
    return ["\n".join(lines)] if lines else []


def _effect(rows: pd.DataFrame, ledger: pd.DataFrame) -> str:
    """Effect of a variant on the arms of one task."""
    against, task = rows["against"].iloc[0], rows["task"].iloc[0]
    other = ledger[(ledger["variant"] == against) & (ledger["task"] == task)]
    before = {r["arm"]: r for r in records(other)}
    changes, never, same = [], [], []
    for row in records(rows):
        arm, then = ARM_LABELS[row["arm"]], before[row["arm"]]
        if row["unchanged"]:
            same.append(arm)
        elif row["never"] == row["seeds"] == then["never"]:
            never.append(arm)
        else:
            changes.append(f"{arm} {_change(row, then)}")
    if never:
        changes.append(f"{_listed(never)}: never, as before")
    if same:
        changes.append(f"{_listed(same)}: unchanged, bit for bit")
    orders = (_order(other), _order(rows))
    if orders[0] != orders[1] and orders[1]:
        changes.append(f"the order becomes {orders[1]}; it was {orders[0] or 'none'}")
    return "; ".join(changes) + "."


def _change(row: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    paired = f"earlier in {row['faster']}, later in {row['slower']} of {row['seeds']} seeds"
    if row["ratio"] == 1:
        return f"takes {count(row['median_iterations'])} iterations as before ({paired})"
    if math.isfinite(row["ratio"]):
        numbers = f"{count(row['median_iterations'])} instead of {count(then['median_iterations'])}"
        return f"needs {row['ratio']:.2f} times the iterations ({numbers}; {paired})"
    now, before = row["seeds"] - row["never"], then["seeds"] - then["never"]
    return f"reaches the target in {now} of {row['seeds']} seeds instead of {before} ({paired})"


def _order(rows: pd.DataFrame) -> str:
    ranked = rows.dropna(subset=["rank"]).sort_values("rank", kind="stable")
    return ", ".join(ARM_LABELS[a] for a in ranked["arm"])


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _spreads(ledger: pd.DataFrame) -> Iterable[str]:
    for task in ledger["task"].unique():
        one, own = (
            ledger[(ledger["variant"] == v) & (ledger["task"] == task)]["final_spread"].median()
            for v in ("initialisation", BASELINE)
        )
        yield (
            f"- {TASK_LABELS[task]}: the standard deviation over seeds of log10 of the final loss "
            f"is {one:.2g} with the same initial weights for all seeds, and {own:.2g} with "
            "different ones (medians over arms)."
        )


def _clipping(ledger: pd.DataFrame) -> Iterable[str]:
    rows = ledger[ledger["variant"] == "clipped"]
    for task in rows["task"].unique():
        shares = rows[rows["task"] == task].sort_values("clipped_share", kind="stable")
        listed = ", ".join(
            f"{ARM_LABELS[r['arm']]} {percent(100 * r['clipped_share'])}" for r in records(shares)
        )
        yield f"- {TASK_LABELS[task]}: share of gradients with norm above {CLIP_NORM:g}: {listed}."


def _targets(targets: pd.DataFrame) -> Iterable[str]:
    for task in targets["task"].unique():
        rows = records(targets[targets["task"] == task])
        settled = [r for r in rows if not pd.isna(r["own_rank"])]
        if not settled:
            continue
        first = min(settled, key=lambda r: (r["own_rank"], -r["own_target"]))
        lowest = min(r["own_target"] for r in settled)
        yield (
            f"- {TASK_LABELS[task]}: by its own final value, {ARM_LABELS[first['arm']]} is the "
            f"fastest, at iteration {count(first['own_iteration'])}. Its final loss is "
            f"{first['own_target']:.2g}, {first['own_target'] / lowest:,.3g} times the lowest."
        )
        body = [
            [
                ARM_LABELS[r["arm"]],
                f"{r['own_target']:.2g}",
                count(r["own_iteration"]),
                _rank(r["own_rank"]),
                _cell(r),
                _rank(r["rank"]),
            ]
            for r in rows
        ]
        head = ["arm", "own final loss", "iteration", "rank", "one target, median", "rank"]
        yield "\n" + markdown(head, body) + "\n"


def _rank(value: Any) -> str:
    return "–" if pd.isna(value) else f"{value:.0f}"  # read as a float from a file with gaps


def _clock(step_costs: Mapping[str, Any]) -> Iterable[str]:
    measured_any = False
    for record in step_costs.values():
        for task, measured in record["tasks"].items():
            text = _step_cost({name: s["ratio"] for name, s in measured["steps"].items()})
            if text:
                measured_any = True
                yield f"- {TASK_LABELS.get(task, task)}, {record['device']}: {text}"
    if not measured_any:
        yield "- No step cost was measured here; run `make benchmark` to measure it."


def _step_cost(ratios: Mapping[str, float]) -> str:
    own = [ratios[f"{name}-k10"] for name in OWN if f"{name}-k10" in ratios]
    if not own:
        return ""
    text = (
        f"a step with a curvature refresh at every tenth step costs {median(own):.2f} times a step "
        f"of AdamW (median of {len(own)} methods)"
    )
    always = {n: r for n, r in ratios.items() if f"{n}-due" in ratios}
    others = [
        f"{ratios[name]:.2f} with {name.removesuffix('-k10')} of pytorch_optimizer if the "
        f"gradient's graph is built at every step, {ratios[f'{name}-due']:.2f} if it is built for "
        "a refresh only"
        for name in always
    ]
    return "; ".join([text, *others]) + "."


def _precision(precision: pd.DataFrame) -> Iterable[str]:
    for task in precision["task"].unique():
        rows = records(precision[precision["task"] == task])
        worst = max(rows, key=lambda r: r["wrong_sign_float32"])
        where = "at a global minimum"
        if worst["arm"] != "minimum":
            where = f"at the final weights of {ARM_LABELS[worst['arm']]}"
        yield (
            f"- {TASK_LABELS[task]}: float32 gives the most wrong signs {where}: "
            f"{worst['wrong_sign_float32']:g} of {worst['eigenvalues']:g} eigenvalues. In float64 "
            f"{worst['zero']:g} are zero and {worst['positive']:g} positive; in float32 "
            f"{worst['positive_float32']:g} are positive."
        )
        body = [
            [
                "global minimum" if r["arm"] == "minimum" else ARM_LABELS[r["arm"]],
                f"{r['positive']:g}",
                f"{r['positive_float32']:g}",
                f"{r['zero']:g}",
                f"{r['smallest']:.2g}",
                f"{r['smallest_float32']:.2g}",
                f"{r['wrong_sign_float32']:g}",
                f"{r['below_resolution_float32']:g}",
            ]
            for r in rows
        ]
        head = ["final weights of", "positive", "positive, float32", "zero"]
        head += ["smallest size above zero", "smallest, float32", "wrong sign"]
        head += ["below float32's resolution"]
        yield "\n" + markdown(head, body) + "\n"


def _settling(ledger: pd.DataFrame) -> str:
    rows = {(r["variant"], r["task"], r["arm"]): r for r in records(ledger)}
    body = [
        [
            f"{TASK_LABELS[task]}, {ARM_LABELS[arm]}",
            percent(row["settled_pct"]),
            percent(rows["published", task, arm]["settled_pct"]),
            percent(row["published_pct"]),
        ]
        for (variant, task, arm), row in rows.items()
        if variant == BASELINE
    ]
    return markdown(["", "corrected", "as published", "published"], body)
