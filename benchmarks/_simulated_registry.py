"""Pipelines of benchmarks/simulated_grid.py that train nothing.

Each (task, arm) has two nodes, as in the study. A search uses an Optuna study. A training writes
the history, weights and summary of all seeds and is tracked by MLflow. Their results are random
numbers; everything else is the study's code.
"""

from __future__ import annotations

import hashlib
import os
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline import Node, Pipeline

ARMS = ("sgdm", "adam", "sophia", "sadh", "ssdh", "ssvp")
TRIALS, ROWS, WEIGHTS = 4, 60, 1000


def search(task: str, arm: str, storage: Any) -> tuple[Any, dict[str, Any]]:
    """Run a search of a few trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = f"{task}-{arm}"
    study = optuna.create_study(
        storage=storage.open(), study_name=name, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    for _ in range(TRIALS):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("lr", 1e-4, 1.0, log=True))
    record = {"source": "search", "study": name, "task": task, "arm": arm}
    return study.trials_dataframe(), {**record, "values": study.best_params}


def train(
    task: str, arm: str, seeds: int, folder: Any, best: dict[str, Any]
) -> tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Write the results of a training with random losses."""
    import numpy as np
    import pandas as pd
    import torch

    from adaptive_opt.io.tracking.training import track_training

    digest = hashlib.blake2b(f"{task} {arm} {best['values']}".encode(), digest_size=16).hexdigest()
    optimizer = {"optimizer": f"adaptive_opt.optim.{arm}", "hyperparameters": best["values"]}
    if (finished := folder.finished(digest, ("weights", "snapshots"))) is not None:
        with track_training(task, arm, digest, optimizer, kept=True) as tracked:
            tracked.finish(finished[0], finished[-1])
        return finished  # type: ignore[no-any-return]
    with track_training(task, arm, digest, optimizer) as tracked:
        losses = np.random.default_rng(0).random((seeds, ROWS), dtype=np.float32)
        columns = {"task": task, "arm": arm, "seed": np.repeat(np.arange(seeds), ROWS)}
        columns |= {"iteration": np.tile(np.arange(ROWS) * 10, seeds)}
        columns |= {name: losses.ravel() for name in ("train_loss", "valid_loss", "device_seconds")}
        history = pd.DataFrame(columns)
        summary = {
            "task": task,
            "arm": arm,
            "digest": digest,
            "seeds": list(range(seeds)),
            "iterations": ROWS * 10,
            "final_train_loss": losses[:, -1].tolist(),
            "diverged_at": [None] * seeds,
            "gradient_equivalents": 1.0,
            "device_seconds": 1.0,
        }
        tracked.finish(history, summary)
    folder.forget()
    tensors = {"w": torch.zeros(seeds, WEIGHTS)}
    return history, tensors, dict(tensors), summary


def register_pipelines() -> dict[str, Pipeline]:
    """Make as many (task, arm) as the environment variable says."""
    cells, seeds = (int(os.environ[f"SIMULATED_{n}"]) for n in ("CELLS", "SEEDS"))
    parts = [_one(f"sim{i // len(ARMS)}", ARMS[i % len(ARMS)], seeds) for i in range(cells)]
    return {"__default__": Pipeline(parts)}


def _one(task: str, arm: str, seeds: int) -> Pipeline:
    found = update_wrapper(partial(search, task, arm), search)
    trained = update_wrapper(partial(train, task, arm, seeds), train)
    best, home = f"tuning.{task}.{arm}.best", f"training.{task}.{arm}"
    outputs = [f"{home}.{name}" for name in ("history", "weights", "snapshots", "summary")]
    return Pipeline(
        [
            Node(
                found, ["tuning_storage"], [f"tuning.{task}.{arm}.trials", best],
                name="search", namespace=f"tuning.{task}.{arm}",
            ),
            Node(trained, [f"{home}.folder", best], outputs, name="train", namespace=home),
        ]
    )  # fmt: skip
