"""Compare trials as one ensemble and one by one, and found and published configurations.

The first part searches one arm on a Rahimi–Recht function twice in each round, with the same
sampler, seed and budget: with all trials trained as one program, and one at a time, as the
original did; the two take turns, and the time is that of the whole search, proposals and what is
written to the database included. The figure is the median of the ratios.

The second part trains, at full length and over the study's seeds, which no trial has seen, the
configurations that a search has left in the project's data and the published ones, and
compares the iterations to target. It needs ``kedro run --pipelines=data,rr_synthesis,tuning``
before.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from _common import at_least_1, parser, write

from adaptive_opt.engine.device import resolve_device
from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
from adaptive_opt.errors import StudyError
from adaptive_opt.files import CHECKOUT, PROJECT
from adaptive_opt.parameters import TrainingParameters, resolve_arm, task_parameters, with_values
from adaptive_opt.search.arm import search_arm
from adaptive_opt.search.storage import Storage
from adaptive_opt.study import tasks_of
from adaptive_opt.tasks.rr_functions import RRFunction, synthesise

SECOND_ORDER = ("sophia", "sadh", "ssdh", "ssvp")


def parameters() -> dict[str, Any]:
    """Read a section of the parameters at base scale."""
    found: dict[str, Any] = {}
    for name in ("tasks", "arms", "training", "tuning", "rr_synthesis"):
        text = (CHECKOUT / f"conf/base/parameters_{name}.yml").read_text(encoding="utf-8")
        found |= yaml.safe_load(text)
    return found


def function(task: str, given: dict[str, Any]) -> RRFunction:
    """Load the function of base scale."""
    own = {k: v for k, v in given["rr_synthesis"][task].items() if k not in ("source", "path")}
    return synthesise(given["rr_synthesis"][task]["source"], **own)


def seconds(task: str, arm: str, trials: int, epochs: int, batch: int, device: str) -> float:
    """Return the settings of a search with random trials of one seed each."""
    given = parameters()
    plan = {"sampler": "random", "objective": "time_to_target", "horizon": "run", "seeds": 1}
    # The budget is in first-order trials; a tenth of a trial beyond what so many cost.
    cost = 1.2 if arm in SECOND_ORDER else 1.0
    plan |= {"epochs": epochs, "budget": int(trials * cost + 0.9), "batch": batch}
    given["tuning"] |= {"tasks": {**given["tuning"]["tasks"], task: plan}, "studies": 1}
    given["training"]["device"] = device
    tensors = function(task, given).to_tensors()
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(f"sqlite:///{folder}/studies.db")
        # Its tables are made once a project; with the heartbeats that a search asks for.
        storage.open(given["tuning"]["heartbeat_seconds"])
        begun = time.perf_counter()
        table, _ = search_arm(task, arm, tensors, given, "benchmark", storage)
        taken = time.perf_counter() - begun
    if len(table) != trials:
        raise StudyError(f"{len(table)} trials instead of {trials}")
    return taken


def compare_ways(
    task: str, arm: str, trials: int, epochs: int, rounds: int, device: str
) -> dict[str, Any]:
    """Measure both ways in turns."""
    seconds(task, arm, 2, 1, 2, device)  # to warm up
    ways = {"together": trials, "one by one": 1}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for round_number in range(rounds):
        order = list(ways.items())[:: 1 if round_number % 2 else -1]
        for way, batch in order:
            taken[way].append(seconds(task, arm, trials, epochs, batch, device))
    ratios = [b / a for a, b in zip(taken["together"], taken["one by one"], strict=True)]
    found = {way: statistics.median(times) for way, times in taken.items()}
    return {**found, "ratio": statistics.median(ratios), "ratios": ratios}


def passages(
    fn: RRFunction, task: str, arm: str, arms: dict[str, Any], given: dict[str, Any], device: str
) -> dict[str, Any]:
    """Return iterations to target of the study's seeds, with one configuration."""
    training = TrainingParameters(**{**given["training"], "hessian_every": 0, "device": device})
    settings = task_parameters(task, given["tasks"])
    resolved = resolve_arm(arm, arms[task], training)
    history, _, _ = run_rahimi_recht(
        fn, task=task, arm=arm, **resolved, task_parameters=settings, training=training
    )
    passed = []
    for _, run in history.groupby("seed"):
        reached = run[run["train_loss"] <= settings.target_loss]["iteration"]
        passed.append(float(reached.iloc[0]) if len(reached) else np.inf)
    names = ("lr", "beta2", "rho")
    return {
        "median": None if np.isinf(np.median(passed)) else float(np.median(passed)),
        "reached": int(np.isfinite(passed).sum()),
        "seeds": len(passed),
        "configuration": {n: resolved["hyperparameters"][n] for n in names},
    }


def compare_configurations(scale: str, device: str, epochs: int | None) -> dict[str, Any]:
    """Compare found and published for every second-order arm on both functions."""
    given = parameters()
    if epochs is not None:
        for task in tasks_of("rahimi_recht"):
            given["tasks"][task.name]["epochs"] = epochs
    found: dict[str, Any] = {}
    for task in (t.name for t in tasks_of("rahimi_recht")):
        fn = function(task, given)
        for arm in SECOND_ORDER:
            file = PROJECT / "data" / "06_models" / scale / task / arm / "best.json"
            if not file.is_file():
                raise StudyError(
                    f"{file.relative_to(PROJECT)} does not exist; first "
                    f"kedro run --env={scale} --pipelines=data,rr_synthesis,tuning "
                    "--tags=rahimi_recht"
                )
            best = json.loads(file.read_text(encoding="utf-8"))
            tuned = with_values(given["arms"], task, arm, best["values"])
            row = {
                "found": passages(fn, task, arm, tuned, given, device),
                "published": passages(fn, task, arm, given["arms"], given, device),
                "trial_epochs": best["trial_epochs"],
            }
            found.setdefault(task, {})[arm] = row
            print(
                f"{task} {arm}: found {row['found']['median']} ({row['found']['reached']}), "
                f"published {row['published']['median']} ({row['published']['reached']})",
                flush=True,
            )
    return found


def main() -> None:
    """Command line."""
    line = parser(__doc__, "--parts ways --task rr_cond29 --arm ssdh")
    parts = ("ways", "configurations")
    line.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="parts to run")
    line.add_argument("--task", choices=("rr_cond29", "rr_cond15099"), default="rr_cond15099")
    line.add_argument(
        "--arm", choices=("sgdm", "adam", *SECOND_ORDER), default="ssdh", help="arm to search"
    )
    line.add_argument("--trials", type=int, default=64, help="trials of each search")
    line.add_argument("--epochs", type=int, default=150, help="epochs of each trial")
    line.add_argument("--rounds", type=int, default=3, help="rounds")
    line.add_argument("--scale", default="base", help="scale of the search to compare")
    line.add_argument("--run-epochs", type=int, default=None, help="epochs of the compared runs")
    line.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device")
    options = line.parse_args()
    at_least_1(line, options, "trials", "epochs", "rounds")
    try:
        device = resolve_device(options.device).type
        figures: dict[str, Any] = {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "device": device,
            "threads": torch.get_num_threads(),
        }
        if "ways" in options.parts:
            named = {name: getattr(options, name) for name in ("task", "arm", "trials", "epochs")}
            ways = compare_ways(**named, rounds=options.rounds, device=device)
            figures["ways"] = {**named, **ways}
            print(
                f"{options.trials} trials of {options.arm}: together {ways['together']:.2f} s, "
                f"one by one {ways['one by one']:.2f} s, ratio {ways['ratio']:.1f}"
            )
        if "configurations" in options.parts:
            found = compare_configurations(options.scale, device, options.run_epochs)
            figures |= {"scale": options.scale, "configurations": found}
    except StudyError as error:
        line.error(str(error))
    write(options.json, figures)


if __name__ == "__main__":
    main()
