"""A killed run resumes from its checkpoint and ends like an uninterrupted run."""

import json
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from adaptive_opt.engine.checkpoint import Checkpoint
from adaptive_opt.parameters import configuration_digest
from tests.engine.networks import train

CASES = {
    "rr": {"task": "rr_cond29", "arm": "ssdh"},
    "rr_foreign": {"task": "rr_cond29", "arm": "nadam"},
    "rr_sampled": {"task": "rr_cond29", "arm": "sophia_g"},
    "resnet_sampled": {"task": "resnet18", "arm": "sophia_g", "ensemble": "together"},
    "resnet": {"task": "resnet18", "arm": "ssvp_cumulative"},
    "resnet_ensemble": {"task": "resnet18", "arm": "sophia", "ensemble": "together"},
    "transformer": {"task": "transformer", "arm": "ssdh_permuted"},
    "transformer_ensemble": {"task": "transformer", "arm": "sadh", "ensemble": "together"},
}

# Fork processes from one that has imported everything but computed nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__, "adaptive_opt.engine.rahimi_recht"])


def run_case(name, folder, every):
    """Train one arm, long enough to be killed, with a checkpoint every ``every`` seconds."""
    checkpoint = Checkpoint(folder / "checkpoint.pt", "digest", every)
    case = dict(CASES[name])
    if case["task"] == "rr_cond29":
        from adaptive_opt.engine.rahimi_recht import run_rahimi_recht
        from adaptive_opt.parameters import TaskParameters, TrainingParameters, resolve_arm
        from tests.engine.test_run import CONFIGURATIONS, FUNCTION

        settings = TrainingParameters(device="cpu", hessian_every=40, statistics_every=8)
        return run_rahimi_recht(
            FUNCTION,
            **case,
            **resolve_arm(case["arm"], CONFIGURATIONS, settings),
            task_parameters=TaskParameters(epochs=500, seeds=3, target=0.1, batch_size=32),
            training=settings,
            checkpoint=checkpoint,
        )
    return train(**{"ensemble": "apart", **case}, sizes={"epochs": 40}, checkpoint=checkpoint)


def run_and_save(name, folder, every):
    """Run a case and save its results in a folder."""
    torch.set_num_threads(1)
    history, weights, summary = run_case(name, folder, every)
    history.to_parquet(folder / "history.parquet")
    torch.save(weights, folder / "weights.pt")
    (folder / "summary.json").write_text(json.dumps(summary["diverged_at"]))


def start(name, folder, every):
    process = PROCESSES.Process(target=run_and_save, args=(name, folder, every), daemon=True)
    process.start()
    return process


def wait(process):
    process.join()
    return process.exitcode


@pytest.mark.parametrize("name", CASES)
def test_a_run_killed_several_times_ends_the_same(name, tmp_path):
    """SIGKILL at a random moment after a new checkpoint, three times; then run to the end."""
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    whole.mkdir()
    interrupted.mkdir()
    uninterrupted = start(name, whole, 1e9)
    chance = np.random.default_rng(len(name))
    kills = 0
    for _ in range(3):
        process = start(name, interrupted, 0.01)
        before = _changed(interrupted)
        while process.is_alive() and _changed(interrupted) == before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
    assert kills >= 2
    assert wait(start(name, interrupted, 1e9)) == 0
    assert wait(uninterrupted) == 0
    a, b = (pd.read_parquet(f / "history.parquet") for f in (whole, interrupted))
    timeless = [c for c in a if c != "device_seconds"]
    pd.testing.assert_frame_equal(a[timeless], b[timeless], check_exact=True)
    wa, wb = (torch.load(f / "weights.pt", weights_only=True) for f in (whole, interrupted))
    assert all(torch.equal(wa[n], wb[n]) for n in wa)
    assert (whole / "summary.json").read_text() == (interrupted / "summary.json").read_text()


def _changed(folder):
    file = folder / "checkpoint.pt"
    return file.stat().st_mtime_ns if file.exists() else 0


def test_a_diverged_seed_stays_diverged(tmp_path):
    """Checkpoints save which members are frozen."""

    def run(checkpoint):
        hyper = {"optimizer": "torch.optim.SGD", "lr": 1e9}
        sizes = {"epochs": 60, "log_every": 1}
        return train(
            "resnet18", "custom", hyperparameters=hyper, ensemble="together", sizes=sizes,
            diverged_above=10.0, checkpoint=checkpoint,
        )  # fmt: skip

    history, weights, summary = run(None)
    checkpoint = InterruptingCheckpoint(tmp_path / "checkpoint.pt", after=40)
    with pytest.raises(Interrupted):
        run(checkpoint)
    resumed, weights_resumed, summary_resumed = run(Checkpoint(checkpoint.path))
    assert summary["diverged_at"] == summary_resumed["diverged_at"]
    assert all(
        torch.equal(torch.nan_to_num(w), torch.nan_to_num(weights_resumed[n]))
        for n, w in weights.items()
    )
    pd.testing.assert_frame_equal(
        history.drop(columns="device_seconds"), resumed.drop(columns="device_seconds")
    )


class Interrupted(Exception):  # noqa: N818 - not an error
    pass


class InterruptingCheckpoint(Checkpoint):
    """Interrupts the run at its first save, which is due after ``after`` checks."""

    def __init__(self, path, after):
        super().__init__(path, "", 0.0)
        self.checks, self.after = 0, after

    @property
    def due(self):
        self.checks += 1
        return self.checks > self.after

    def save(self, state):
        super().save(state)
        raise Interrupted


STATE = {"tensor": torch.arange(3), "list": [1, None, "x"]}


def test_save_load_and_remove(tmp_path):
    checkpoint = Checkpoint(tmp_path / "deep" / "c.pt", "a")
    assert checkpoint.load() is None
    checkpoint.save(STATE)
    loaded = checkpoint.load()
    assert torch.equal(loaded["tensor"], STATE["tensor"])
    assert loaded["list"] == STATE["list"]
    assert [f.name for f in checkpoint.path.parent.iterdir()] == ["c.pt"]
    checkpoint.remove()
    assert checkpoint.load() is None
    checkpoint.remove()


def test_files_of_a_killed_writer_are_deleted(tmp_path):
    checkpoint = Checkpoint(tmp_path / "c.pt", "a")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    (tmp_path / f".c.{socket.gethostname()}-{dead}.pt").write_bytes(b"half")
    checkpoint.save(STATE)
    assert [f.name for f in tmp_path.iterdir()] == ["c.pt"]


def test_saves_are_due_by_the_clock(tmp_path):
    assert not Checkpoint(None, every=0.0).due
    assert Checkpoint(tmp_path / "c.pt", every=0.0).due
    slow = Checkpoint(tmp_path / "c.pt", every=60.0)
    assert not slow.due
    slow._last -= 61
    assert slow.due
    slow.save(STATE)
    assert not slow.due


def test_checkpoints_of_another_configuration_are_not_used(tmp_path, caplog):
    Checkpoint(tmp_path / "c.pt", "a").save(STATE)
    caplog.set_level("INFO")
    assert Checkpoint(tmp_path / "c.pt", "b").load() is None
    assert "of another configuration; the run starts from iteration 0" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "half", "noise", "flipped", "other", "keys"])
def test_damaged_checkpoints_are_not_used(tmp_path, caplog, damage):
    checkpoint = Checkpoint(tmp_path / "c.pt", "a")
    checkpoint.save({"tensor": torch.arange(10_000)})
    content = bytearray(checkpoint.path.read_bytes())
    if damage == "flipped":
        content[60:90] = bytes(30)
    contents = {
        "empty": b"",
        "half": bytes(content[: len(content) // 2]),
        "noise": np.random.default_rng(0).bytes(500),
        "flipped": bytes(content),
        "other": b"PK\x03\x04" + bytes(40),
    }
    if damage == "keys":
        torch.save([1], checkpoint.path)
    else:
        checkpoint.path.write_bytes(contents[damage])
    assert checkpoint.load() is None
    assert "is damaged" in caplog.text
    checkpoint.save(STATE)
    assert checkpoint.load() is not None


class _Payload:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"digest": "a", "state": _Payload()}, tmp_path / "c.pt")
    assert Checkpoint(tmp_path / "c.pt", "a").load() is None
    (tmp_path / "d.pt").write_bytes(pickle.dumps({"digest": "a", "state": _Payload()}))
    assert Checkpoint(tmp_path / "d.pt", "a").load() is None
    assert not (tmp_path / "executed").exists()


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from adaptive_opt.engine.checkpoint import Checkpoint
from adaptive_opt.parameters import configuration_digest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoint = Checkpoint(Path(sys.argv[1]), "a")
checkpoint.save({"tensor": torch.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
checkpoint.save({"tensor": torch.zeros(100_000)})  # does not fit
print(checkpoint.load()["tensor"].numel(), sorted(f.name for f in checkpoint.path.parent.iterdir()))
"""


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    """The write fails half-way, the old file stays, and a warning is logged."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "c.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split(maxsplit=1) == ["10", "['c.pt']\n"], done.stderr
    assert "was not written" in done.stderr


def test_digest_depends_on_values_not_on_order():
    a = configuration_digest({"lr": 0.1, "seeds": [0, 1]})
    assert a == configuration_digest({"seeds": [0, 1], "lr": 0.1})
    assert a != configuration_digest({"lr": 0.1, "seeds": [0, 2]})
    assert len(json.dumps(a)) == 34


def test_a_checkpoint_has_about_four_times_the_weights(tmp_path):
    """Parameters, their last good state, and two tensors of the optimizer's state."""
    checkpoint = InterruptingCheckpoint(tmp_path / "c.pt", after=5)
    with pytest.raises(Interrupted):
        train("transformer", "ssdh", checkpoint=checkpoint, sizes={"width": 64, "feedforward": 64})
    state = checkpoint.load()["state"]
    parameters = sum(p.numel() for p in state["params"])
    assert checkpoint.path.stat().st_size < 4.5 * 4 * parameters + 100_000
    assert np.isfinite(state["seconds"])
