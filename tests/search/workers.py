"""A search with trials that train nothing, and a script that runs one of its workers."""

import json
import os
import sys
import time
from pathlib import Path

from adaptive_opt.search.spaces import Dimension, Space
from adaptive_opt.search.storage import Storage
from adaptive_opt.search.tune import Outcome, Search, search

SPACE = Space(x=Dimension(0.001, 1.0), y=Dimension(-1.0, 1.0, "linear"))


def bowl(configurations, report):
    """Return a quadratic with its minimum at (0.1, 0.3) as the result of every trial."""
    del report
    return [
        Outcome((c["x"] - 0.1) ** 2 + (c["y"] - 0.3) ** 2, "complete", 10.0, 0.0, 1)
        for c in configurations
    ]


def make_search(train=bowl, **changes):
    """Return a search of 20 trials in batches of two."""
    settings = {
        "task": "rr_cond29",
        "arm": "ssdh",
        "scale": "test",
        "space": SPACE,
        "train": train,
        "depends_on": {"objective": "train_loss"},
        "budget": 200.0,
        "cost": 10.0,
        "batch": 2,
        "startup": 8,
        "heartbeat_seconds": 1,
    }
    return Search(**{**settings, **changes})


def main():
    """Run a worker. Arguments: URL, output folder, seconds a batch, [hang in the third batch]."""
    url, folder, seconds, hangs = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
    batches = 0

    def train(configurations, report):
        nonlocal batches
        batches += 1
        if hangs and batches == 3:
            (folder / "hangs").write_text(json.dumps([c["x"] for c in configurations]))
            time.sleep(1000)
        time.sleep(seconds)
        outcomes = bowl(configurations, report)
        for c in configurations:
            with (folder / f"trained.{os.getpid()}").open("a") as log:
                log.write(f"{c['x']!r}\n")
        return outcomes

    trials, best = search(make_search(train), Storage(url))
    (folder / f"result.{os.getpid()}.json").write_text(json.dumps(best))
    trials.to_parquet(folder / f"trials.{os.getpid()}.parquet")


if __name__ == "__main__":
    main()
