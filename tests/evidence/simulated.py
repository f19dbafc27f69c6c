"""Simulated studies whose true speed-ups are known.

Loss at length h is c + A·(v h)^(−b), with v the speed of a run: the arm's, times the luck of its
search, times that of its seed, part of which all arms share. Every measured loss has noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from adaptive_opt.engine.lengths import COLUMNS
from adaptive_opt.evidence.verdict import TaskData

LENGTHS = (0.0625, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Truth:
    """What a study is drawn from; the default is like a small Transformer.

    Attributes:
        floor, scale, power: c, A and b of the loss.
        plateau: the loss of an arm that learns nothing, and no loss is above it.
        searches, seeds: of an arm.
        search_sd, seed_sd, shared_sd: standard deviations of log speeds.
        noise: of a measured log loss.
        uneven: by how much arms differ in ``search_sd``, as a standard deviation of its log.
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
    """A study of a task: Adam at speed 1 and arms at others; 0: never leaves the plateau."""
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
