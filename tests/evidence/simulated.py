"""Simulated studies with known speed-ups.

The loss at length h is c + A·(v h)^(−b). The speed v of a run is the speed of its arm times random
factors of its search and of its seed; part of the seed's factor is shared by all arms. Every
measured loss has noise.

``python -m tests.evidence.simulated 1000`` prints the tables of docs/comparison.md.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from adaptive_opt.engine.lengths import COLUMNS
from adaptive_opt.evidence.verdict import TaskData, judge_task

LENGTHS = (0.0625, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Truth:
    """Parameters of a simulated study; the default resembles a small Transformer.

    Attributes:
        floor, scale, power: c, A and b of the loss.
        plateau: loss of an arm that learns nothing, the upper limit of all losses.
        searches, seeds: number of searches and of seeds per arm.
        search_sd, seed_sd, shared_sd: standard deviations of log speeds.
        noise: standard deviation of a measured log loss.
        uneven: standard deviation of log ``search_sd`` between arms.
    """

    floor: float = 4.0
    scale: float = 0.23
    power: float = 0.95
    plateau: float = 5.4
    searches: int = 3
    seeds: int = 12
    search_sd: float = 0.12
    seed_sd: float = 0.08
    shared_sd: float = 0.03
    noise: float = 0.002
    uneven: float = 0.0


def draw(speeds: Mapping[str, float], truth: Truth, random: np.random.Generator) -> TaskData:
    """Draw a study of one task with Adam at speed 1; an arm of speed 0 stays on the plateau."""
    shared = random.normal(0, truth.shared_sd, truth.seeds)
    tables, bests, summaries = {}, {}, {}
    for arm, speed in {"adam": 1.0, **speeds}.items():
        sd = truth.search_sd * math.exp(random.normal(0, truth.uneven))
        luck = random.normal(0, sd, truth.searches)
        rows = []
        for seed in range(truth.seeds):
            study = seed % truth.searches
            log = luck[study] + shared[seed] + random.normal(0, truth.seed_sd)
            lengths = (*LENGTHS, 2.0) if arm == "adam" and seed < truth.searches else LENGTHS
            for share in lengths:
                rows.append(_row(arm, seed, study, share, speed * math.exp(log), truth, random))
        tables[arm] = pd.DataFrame(rows, columns=list(COLUMNS))
        study_record = {"found": True, "failed": "", "edges": {}, "values": {}, "value": 1.0}
        bests[arm] = {"studies": [study_record] * truth.searches, "values": {}}
        bests[arm]["constants"] = {"train_loss": truth.plateau}
        summaries[arm] = {"task": "transformer", "arm": arm, "iterations": 1000, "failed": ""}
        summaries[arm] |= {"device": "cpu", "torch": "2", "hyperparameters": {}, "seeds": []}
    return TaskData("transformer", tables, bests, summaries, None, truth.seeds)


def _row(
    arm: str, seed: int, study: int, share: float, speed: float, truth: Truth,
    random: np.random.Generator,
) -> dict[str, object]:  # fmt: skip
    loss = truth.plateau
    if speed > 0:
        loss = min(loss, truth.floor + truth.scale * (speed * share) ** -truth.power)
    loss *= math.exp(random.normal(0, truth.noise))
    return {
        "task": "transformer", "arm": arm, "seed": seed, "study": study, "share": share,
        "iterations": round(1000 * share), "train_loss": loss, "valid_loss": math.nan,
        "valid_accuracy": math.nan, "diverged": False, "gradient_equivalents": 1000 * share,
    }  # fmt: skip


SETTINGS = {"margin": 0.1, "confidence": 0.95, "constant_margin": 0.02}

SPEEDS = {
    **{"sgdm": 1.0, "sophia": 0.9, "sadh": 1.1, "ssdh": 3.0, "ssvp": 0.3},
    **{"ssvp_cumulative": 1.0, "sgd": 0.03, "adamw": 30.0, "amsgrad": 0.0},
}
"""True speed of each arm; only the names of the arms matter. The speeds 0.03 and 30 are beyond the
trained lengths; an arm of speed 0 learns nothing."""

WORDS = ("faster", "slower", "equivalent", "undecided")


@dataclass(frozen=True)
class Outcome:
    """Results for one arm, as shares of all simulated studies.

    Attributes:
        speed: true speed.
        covered: share with the true speed inside the interval.
        words: share of each verdict.
        bounded: share with only a bound.
    """

    speed: float
    covered: float
    words: Mapping[str, float]
    bounded: float


def simulate(
    truth: Truth, studies: int, speeds: Mapping[str, float] = SPEEDS, seed: int = 0
) -> dict[str, Outcome]:
    """Simulate and judge many studies."""
    random = np.random.default_rng(seed)
    covered: Counter[str] = Counter()
    words: dict[str, Counter[str]] = {arm: Counter() for arm in speeds}
    bounded: Counter[str] = Counter()
    for _ in range(studies):
        verdict = judge_task(draw(speeds, truth, random), SETTINGS)
        for arm, speed in speeds.items():
            found = verdict.arm(arm).speedup()  # type: ignore[union-attr]
            assert found is not None
            low = 0.0 if found.low is None else found.low
            high = math.inf if found.high is None else found.high
            covered[arm] += low <= speed <= high
            words[arm][found.verdict] += 1
            bounded[arm] += found.bound in ("<", ">")
    return {
        arm: Outcome(
            speed,
            covered[arm] / studies,
            {word: count / studies for word, count in words[arm].items()},
            bounded[arm] / studies,
        )
        for arm, speed in speeds.items()
    }


def power(truth: Truth, studies: int, speeds: Sequence[float]) -> dict[float, float]:
    """Share of studies with a decision on an arm of each speed, beside six arms of speed 1."""
    others = dict.fromkeys(["sgdm", "sophia", "sadh", "ssvp", "ssvp_cumulative", "sgd"], 1.0)
    found = {}
    for speed in speeds:
        outcome = simulate(truth, studies, {"ssdh": speed, **others})["ssdh"]
        found[speed] = 1 - outcome.words.get("undecided", 0.0)
    return found


def main(studies: int) -> None:
    """Print the tables of docs/comparison.md."""
    for seeds in (12, 6):
        truth = Truth(seeds=seeds)
        print(f"\n3 searches × {seeds // 3} seeds, {studies} studies:\n")
        print(
            "| true speed | interval covers it | faster | slower | equivalent | undecided | bound |"
        )
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for outcome in simulate(truth, studies).values():
            shares = [outcome.words.get(w, 0.0) for w in WORDS]
            row = " | ".join(
                f"{100 * s:.1f} %" for s in (outcome.covered, *shares, outcome.bounded)
            )
            print(f"| {outcome.speed:g} | {row} |")
        decided = power(truth, studies // 4, (1.1, 1.2, 1.3, 1.5, 2.0, 3.0))
        print("\nPower: " + ", ".join(f"{s:g}×: {100 * p:.0f} %" for s, p in decided.items()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
