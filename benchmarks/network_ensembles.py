"""Compare seeds of a small network as one ensemble and one after the other.

The networks, data and arms of ``conf/base``, each trained for a few epochs through the
study's own loop, with ``training.ensemble`` set to ``together`` and to ``apart``. The two
take turns, each of them first in every other round; the ratio of their times is taken within
each round, so that a slow moment of the machine meets both, and the figure is the median over
the rounds. Above 1 the ensemble is faster. Evaluation and logging are not counted.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from _common import at_least_1, parser, write

from adaptive_opt.engine.device import resolve_device
from adaptive_opt.engine.network import run_network
from adaptive_opt.errors import StudyError
from adaptive_opt.files import CHECKOUT
from adaptive_opt.parameters import TrainingParameters, resolve_arm, task_parameters
from adaptive_opt.parameters.data import RAW, ImageDataParameters, TextDataParameters
from adaptive_opt.study import published_arms
from adaptive_opt.tasks.images import ImageData, load_images
from adaptive_opt.tasks.text import TextData, load_text

TASKS = ("resnet18", "transformer")
WAYS = ("apart", "together")


def parameters(name: str) -> dict[str, Any]:
    """Read a section of the parameters at base scale."""
    text = (CHECKOUT / f"conf/base/parameters_{name}.yml").read_text(encoding="utf-8")
    section: dict[str, Any] = yaml.safe_load(text)[name]
    return section


def load(task: str) -> ImageData | TextData:
    """Load the data of a network."""
    given = parameters("data")[task]
    if task == "resnet18":
        return load_images(ImageDataParameters(**given), RAW)[0]
    return load_text(TextDataParameters(**given), RAW)


def milliseconds(
    data: ImageData | TextData, task: str, arm: str, way: str, device: str, **sizes: int
) -> float:
    """Measure seconds per run and iteration, for seeds trained in one of the two ways."""
    training = TrainingParameters(**{**parameters("training"), "ensemble": way, "device": device})
    _, _, summary = run_network(
        data,
        task=task,
        arm=arm,
        **resolve_arm(arm, parameters("arms")[task], training),
        task_parameters=task_parameters(task, {task: {**parameters("tasks")[task], **sizes}}),
        training=training,
    )
    return float(summary["microseconds_per_run_iteration"]) / 1e3


def measure(
    data: ImageData | TextData, task: str, arm: str, rounds: int, device: str, **sizes: int
) -> dict[str, Any]:
    """Measure both ways in turns, after a short run of each to warm up."""
    for way in WAYS:
        milliseconds(data, task, arm, way, device, epochs=1, seeds=1)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS[:: -1 if number % 2 else 1]:
            times[way].append(milliseconds(data, task, arm, way, device, **sizes))
    ratios = [a / t for a, t in zip(times["apart"], times["together"], strict=True)]
    medians = {way: statistics.median(times[way]) for way in WAYS}
    return {**medians, "ratio": statistics.median(ratios), "ratios": ratios, "rounds": times}


def main() -> None:
    """Measure, print, and write."""
    line = parser(__doc__, "--task resnet18 --seeds 8")
    line.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="networks")
    line.add_argument(
        "--arms", nargs="+", choices=published_arms(), default=["adam", "ssdh"], help="optimizers"
    )
    line.add_argument("--seeds", type=int, default=4, help="seeds of each arm")
    line.add_argument("--rounds", type=int, default=3, help="rounds")
    line.add_argument("--epochs", type=int, default=2, help="epochs of each run")
    line.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device")
    options = line.parse_args()
    at_least_1(line, options, "seeds", "rounds", "epochs")
    try:
        device = resolve_device(options.device).type
    except StudyError as error:
        line.error(str(error))
    figures: dict[str, Any] = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "device": device,
        "threads": torch.get_num_threads(),
        "setup": {name: getattr(options, name) for name in ("seeds", "rounds", "epochs")},
        "tasks": {},
    }
    print(f"{options.seeds} seeds, ms per run and iteration")
    print(f"  {'task':14s}{'arm':8s}" + "".join(f"{x:>10s}" for x in (*WAYS, "ratio")))
    for task in options.task:
        data, figures["tasks"][task] = load(task), {}
        for arm in options.arms:
            sizes = {"seeds": options.seeds, "epochs": options.epochs}
            found = measure(data, task, arm, options.rounds, device, **sizes)
            figures["tasks"][task][arm] = found
            cells = "".join(f"{found[x]:10.2f}" for x in (*WAYS, "ratio"))
            print(f"  {task:14s}{arm:8s}{cells}", flush=True)
    write(options.json, figures)


if __name__ == "__main__":
    main()
