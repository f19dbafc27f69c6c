"""MLflow has what was trained, once; and training does not care whether there is an MLflow."""

import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from adaptive_opt.engine.contract import HistoryBlock
from adaptive_opt.files import changed_at
from adaptive_opt.io.datasets import ParquetDataset, RecordDataset, TensorsDataset
from adaptive_opt.io.runs import RunFolder
from adaptive_opt.io.tracking.delivery import Delivery
from adaptive_opt.io.tracking.run import Destination, TrackedRun
from adaptive_opt.io.tracking.spool import Spool
from adaptive_opt.io.tracking.store import UnreachableError
from adaptive_opt.io.tracking.training import ENVIRONMENT, TrackedTraining, track_training
from adaptive_opt.parameters.models import TrackingParameters
from adaptive_opt.pipelines.rr_synthesis.nodes import make_function
from adaptive_opt.pipelines.training.nodes import train
from tests.project.test_parameters import load

TASK, POINTS, LENGTH = "rr_cond29", 20, 320
PARENT = "mlflow.parentRunId"


@pytest.fixture(scope="module")
def parameters():
    return load("smoke")


@pytest.fixture(scope="module")
def function(parameters):
    return make_function(TASK, parameters["rr_synthesis"])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Folder with a database that every test here adds to: making one takes seconds."""
    return tmp_path_factory.mktemp("tracked")


@contextmanager
def tracked(project, uri, files=(), **settings):
    """A tracked run; what it had to say is in the list afterwards."""
    to = Destination(uri, "study", project)
    chosen = TrackingParameters(points=POINTS, live_seconds=0, wait_seconds=120, **settings)
    said = []
    run = TrackedRun(to, "a run", chosen, {"scale": "smoke"}, {"a.b": "1"}, {"scale": "smoke"})
    try:
        yield said
    finally:
        kept = [(str(f), "08_reporting", changed_at(f)) for f in files]
        said.append(run.close("FINISHED", kept))


def database(project):
    return f"sqlite:///{project / 'mlflow.db'}"


def train_arm(parameters, function, folder, arm="adam"):
    """Train as the pipeline does, and save as the catalog does."""
    given = (parameters[name] for name in ("tasks", "arms", "training"))
    found = [{"values": {}, "found": True, "failed": ""}] * 2
    best = {"values": {}, "failed": "", "studies": found}
    history, weights, snapshots, lengths, summary = train(
        TASK, arm, function, RunFolder(folder), best, *given
    )
    ParquetDataset(filepath=str(folder / "history.parquet")).save(history)
    TensorsDataset(filepath=str(folder / "weights.safetensors")).save(weights)
    TensorsDataset(filepath=str(folder / "snapshots.safetensors")).save(snapshots)
    ParquetDataset(filepath=str(folder / "lengths.parquet")).save(lengths)
    RecordDataset(filepath=str(folder / "summary.json")).save(summary)
    return history, weights


def without_clock(history):
    return history.drop(columns="device_seconds")


class Recorded:
    """What is in the database."""

    def __init__(self, project):
        with closing(sqlite3.connect(project / "mlflow.db")) as base:

            def ask(query):
                return base.execute(query).fetchall()

            self.runs = {r: (n, s) for r, n, s in ask("SELECT run_uuid, name, status FROM runs")}
            self.tags = {r: {} for r in self.runs}
            for run, key, value in ask("SELECT run_uuid, key, value FROM tags"):
                self.tags[run][key] = value
            self.params = {r: {} for r in self.runs}
            for run, key, value in ask("SELECT run_uuid, key, value FROM params"):
                self.params[run][key] = value
            self.metrics = {r: {} for r in self.runs}
            query = "SELECT run_uuid, key, step, value FROM metrics ORDER BY step, timestamp"
            for run, key, step, value in ask(query):
                self.metrics[run].setdefault(key, []).append((step, value))

    def parents(self):
        return [r for r in self.runs if PARENT not in self.tags[r]]

    def children(self, digest):
        return [r for r in self.runs if self.tags[r].get("digest") == digest]


def expected_curve(history, seed, points=POINTS):
    """Of the logged rows the first of every twentieth of the run, and the last."""
    rows = history[history["seed"] == seed].sort_values("iteration")
    kept = {}
    for step, value in zip(rows["iteration"], rows["train_loss"], strict=True):
        kept.setdefault(math.floor(step / (LENGTH / points)), (step, value))
    return list(kept.values())


def check_children(recorded, folder, arm="adam"):
    """One for each seed, finished, with the curve of the history; its parents."""
    history = pd.read_parquet(folder / "history.parquet")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    children = recorded.children(summary["digest"])
    assert sorted(recorded.tags[c]["seed"] for c in children) == ["0", "1"]
    for child in children:
        tags, metrics = recorded.tags[child], recorded.metrics[child]
        assert recorded.runs[child] == (f"{TASK} {arm} {tags['seed']}", "FINISHED")
        assert (tags["task"], tags["arm"], tags["kind"]) == (TASK, arm, "first-order")
        assert tags["scale"] == "smoke"
        assert recorded.params[child]["lr"] == str(
            summary["hyperparameters"][int(tags["seed"])]["lr"]
        )
        curve = expected_curve(history, int(tags["seed"]))
        assert len(curve) == POINTS + 1
        assert metrics["train_loss"] == curve
        assert metrics["gradient_equivalents"] == [(LENGTH, summary["gradient_equivalents"])]
        assert len(metrics["device_seconds"]) == 1
    return {recorded.tags[c][PARENT] for c in children}


@pytest.fixture(scope="module")
def undisturbed(parameters, function, project):
    """Trained without MLflow."""
    assert ENVIRONMENT not in os.environ
    folder = project / "undisturbed" / "adam"
    return train_arm(parameters, function, folder)


@pytest.fixture(scope="module")
def first(parameters, function, project, undisturbed):
    """A run that is recorded in the database."""
    with tracked(project, database(project)) as said:
        got = train_arm(parameters, function, project / "adam")
    assert said == [None]
    pd.testing.assert_frame_equal(without_clock(got[0]), without_clock(undisturbed[0]))
    return project


def test_every_seed_has_a_run_with_its_curve_under_the_run_of_the_command(first):
    recorded = Recorded(first)
    (parent,) = check_children(recorded, first / "adam")
    assert recorded.runs[parent] == ("a run", "FINISHED")
    assert recorded.params[parent] == {"a.b": "1"}
    assert recorded.metrics[parent][f"{TASK}/adam/diverged"] == [(0, 0)]
    assert not (first / "mlflow_unsent").exists()


def test_what_was_finished_before_is_recorded_once(parameters, function, first, tmp_path):
    """In a second run an arm that MLflow knows gets no run; one that it does not gets its own.

    The project's folder was moved meanwhile, and what is recorded moves with it.
    """
    moved = tmp_path / "moved"
    shutil.copytree(first, moved)
    other, figure = moved / "sgdm", moved / "figure.txt"
    figure.write_text("a figure")
    train_arm(parameters, function, other, "sgdm")
    before = len(Recorded(moved).parents())
    with tracked(moved, database(moved), [figure]) as said:
        train_arm(parameters, function, moved / "adam")
        train_arm(parameters, function, other, "sgdm")
    assert said == [None]
    recorded = Recorded(moved)
    assert len(recorded.parents()) == before + 1
    (parent,) = check_children(recorded, other, "sgdm")
    assert check_children(recorded, moved / "adam") != {parent}
    assert {f"{TASK}/{arm}/diverged" for arm in ("adam", "sgdm")} < recorded.metrics[parent].keys()
    kept = moved / "mlflow_artifacts" / parent / "artifacts" / "08_reporting" / "figure.txt"
    assert kept.read_text() == "a figure"
    assert not (first / "mlflow_artifacts" / parent).exists()


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture
def server(first, tmp_path):
    """``mlflow server`` on the database of the others; its process, and its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    command += ["--workers=1", f"--backend-store-uri={database(first)}"]
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    yield process, f"http://127.0.0.1:{port}"
    kill(process)


def kill(process):
    """With its workers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_server_killed_midway_changes_nothing(
    parameters, function, first, server, undisturbed, monkeypatch
):
    """Nor is a point of the curves lost: the next run sends what the server did not take."""
    process, uri = server
    folder = first / "killed" / "adam"
    observe, blocks = TrackedTraining.observe, []

    def kill_at_the_second(self, block):
        if len(blocks) == 1:
            deadline = time.monotonic() + 120
            while list(self._spool.waiting()) and time.monotonic() < deadline:
                time.sleep(0.02)
            kill(process)
        blocks.append(max(block.rows))
        observe(self, block)

    monkeypatch.setattr(TrackedTraining, "observe", kill_at_the_second)
    monkeypatch.setattr("adaptive_opt.engine.train.FLUSH_EVERY", 10)
    parameters = {**parameters, "training": {**parameters["training"], "resume": False}}
    with tracked(first, uri) as said:
        history, weights = train_arm(parameters, function, folder)
    assert len(blocks) > 2
    assert blocks[0] < LENGTH
    pd.testing.assert_frame_equal(without_clock(history), without_clock(undisturbed[0]))
    assert all(torch.equal(weights[n], w) for n, w in undisturbed[1].items())
    (line,) = said
    assert line.startswith(f"MLflow at {uri} has not taken ")
    assert line.endswith("they wait in mlflow_unsent and are sent with the next run")
    assert "\n" not in line

    begun = [r for r, (_, status) in Recorded(first).runs.items() if status == "RUNNING"]
    assert len(begun) == 1 + 2
    with tracked(first, database(first)) as said:
        pass
    assert said == [None]
    recorded = Recorded(first)
    history = pd.read_parquet(folder / "history.parquet")
    for run in begun:
        assert recorded.runs[run][1] == "FINISHED"
        if PARENT in recorded.tags[run]:
            curve = expected_curve(history, int(recorded.tags[run]["seed"]))
            assert recorded.metrics[run]["train_loss"] == curve
    assert not any(status == "RUNNING" for _, status in recorded.runs.values())


def closed_port(_):
    return f"http://127.0.0.1:{free_port()}", "refused", None


def silent_port(_):
    listening = socket.create_server(("127.0.0.1", 0))
    return f"http://127.0.0.1:{listening.getsockname()[1]}", "timed out", listening


def damaged_database(folder):
    (folder / "mlflow.db").write_bytes(b"no database " * 1000)
    return database(folder), "not a database", None


@pytest.mark.parametrize("broken", [closed_port, silent_port, damaged_database])
def test_training_goes_on_where_mlflow_cannot_be_reached(
    parameters, function, tmp_path, undisturbed, broken, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    uri, reason, held = broken(tmp_path)
    with tracked(tmp_path, uri) as said:
        history, weights = train_arm(parameters, function, tmp_path / "adam")
        ended = time.monotonic()
    waited = time.monotonic() - ended
    pd.testing.assert_frame_equal(without_clock(history), without_clock(undisturbed[0]))
    assert all(torch.equal(weights[n], w) for n, w in undisturbed[1].items())
    (line,) = said
    assert reason in line
    assert "are sent with the next run" in line
    (left,) = (tmp_path / "mlflow_unsent").iterdir()
    kinds = [json.loads(f.read_text())["kind"] for f in sorted(left.glob("[0-9]*.json"))]
    assert kinds[0] == "children"
    assert kinds[-1] == "close"
    assert waited < 30  # far below what MLflow's own retries take
    if held is not None:
        held.close()


def test_no_folder_for_records_is_one_line(tmp_path):
    (tmp_path / "mlflow_unsent").write_text("in the way")
    with pytest.raises(OSError, match="mlflow_unsent"):  # which the hooks turn into a line
        TrackedRun(
            Destination(database(tmp_path), "study", tmp_path),
            "a run", TrackingParameters(), {}, {}, {},
        )  # fmt: skip


def test_records_that_nobody_would_send_are_not_made(tmp_path, monkeypatch, caplog):
    """The folder of the run is on another machine: said once, and nothing is put there."""
    folder = tmp_path / "mlflow_unsent" / "run"
    monkeypatch.setenv(ENVIRONMENT, json.dumps({"folder": str(folder), "points": 10}))
    resolved = {"optimizer": "adaptive_opt.optim.Adam", "hyperparameters": {"lr": 1.0}}
    for digest in ("a", "b"):
        with track_training("rr_cond29", "adam", digest, resolved) as tracked:
            tracked.observe(HistoryBlock([0], 100, {0: {"train_loss": np.ones(1)}}, [None]))
    assert caplog.text.count("is not seen from here, so MLflow is not told") == 1
    assert not folder.exists()


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from adaptive_opt.engine.contract import HistoryBlock
from adaptive_opt.io.tracking.run import Destination, TrackedRun
from adaptive_opt.io.tracking.training import track_training
from adaptive_opt.parameters.models import TrackingParameters
project = Path(sys.argv[1])
to = Destination(f"sqlite:///{project / 'mlflow.db'}", "study", project)
TrackedRun(to, "killed", TrackingParameters(live_seconds=0), {}, {}, {})
resolved = {"optimizer": "adaptive_opt.optim.Adam", "hyperparameters": {"lr": 1.0}}
with track_training("rr_cond29", "adam", "a digest", resolved) as tracked:
    rows = {0: {"train_loss": np.array([3.0, 4.0])}}
    tracked.observe(HistoryBlock([5, 6], 100, rows, [None, None]))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_of_a_process_that_was_killed_are_closed(first):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    subprocess.run([sys.executable, "-c", KILLED, str(first)], env=env, check=False)
    deadline = time.monotonic() + 60
    while (left := list((first / "mlflow_unsent").glob("*"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    recorded = Recorded(first)
    (parent,) = (r for r, (name, _) in recorded.runs.items() if name == "killed")
    assert recorded.runs[parent][1] == "KILLED"
    children = {recorded.tags[c]["seed"]: c for c in recorded.children("a digest")}
    assert set(children) == {"5", "6"}
    for seed, child in children.items():
        assert recorded.runs[child][1] == "KILLED"
        assert recorded.tags[child][PARENT] == parent
        assert recorded.metrics[child]["train_loss"] == [(0, {"5": 3.0, "6": 4.0}[seed])]


class FakeStore:
    """A tracking server in memory, which fails when it is told to."""

    def __init__(self):
        self.runs, self.requests_left = {}, math.inf

    def _asked(self):
        self.requests_left -= 1
        if self.requests_left < 0:
            raise UnreachableError("gone")

    def find(self, tag, value, deleted=False):
        self._asked()
        return [r for r in self.runs.values() if r.data.tags.get(tag) == value]

    def create(self, name, tags, time):
        info = SimpleNamespace(run_id=f"run {len(self.runs)}", status="RUNNING", name=name)
        info.lifecycle_stage = "active"
        data = SimpleNamespace(tags=dict(tags), points=set())
        self.runs[info.run_id] = SimpleNamespace(info=info, data=data)
        self._asked()  # it may be made though the answer is lost
        return info.run_id

    def log(self, run, metrics=(), params=None, tags=None):
        self.runs[run].data.points |= {(n, step, v, t) for n, v, t, step in metrics}
        self.runs[run].data.tags |= tags or {}
        self._asked()

    def steps(self, run, metric):
        self._asked()
        return {step for name, step, _, _ in self.runs[run].data.points if name == metric}

    def reopen(self, run, tags):
        self.log(run, tags=tags)
        self.runs[run].info.status = "RUNNING"

    def end(self, run, status, time):
        self._asked()
        self.runs[run].info.status = status

    def children(self):
        return {r.data.tags["seed"]: r for r in self.runs.values() if PARENT in r.data.tags}, len(
            [r for r in self.runs.values() if PARENT in r.data.tags]
        )


def history_of(seeds, iterations, value=1.0):
    rows = [(s, t, value + s + t) for s in seeds for t in iterations]
    return pd.DataFrame(rows, columns=["seed", "iteration", "train_loss"])


def observed(spool, seeds, iterations, upto=None):
    """Training that says its rows one by one; broken off, or finished with a whole history."""
    identity = {"task": TASK, "arm": "adam", "digest": "d", "params": {}, "tags": {"digest": "d"}}
    training = TrackedTraining(spool, identity, points=10, every=0)
    for t in iterations:
        rows = {t: {"train_loss": np.array([1.0 + s + t for s in seeds], dtype=np.float32)}}
        training.observe(HistoryBlock(seeds, 100, rows, [None] * len(seeds)))
    if upto is None:
        summary = {"iterations": 100, "seeds": seeds, "diverged_at": [None] * len(seeds)}
        summary |= {"final_train_loss": [1.0] * len(seeds)}
        summary |= {"gradient_equivalents": 1.0, "device_seconds": 1.0}
        training.finish(history_of(seeds, range(0, 101, 5)), summary)
    else:
        training.abandon(upto)


def opened(folder):
    spool = Spool(folder)
    spool.open({"name": "a", "time": 0, "tags": {}, "params": {}, "inherited": {}})
    return spool


def test_a_run_that_is_taken_up_goes_on_in_its_entry(tmp_path):
    store, seeds = FakeStore(), [0, 1]
    first, second = opened(tmp_path / "first"), opened(tmp_path / "second")
    observed(first, seeds, range(0, 50, 5), upto="KILLED")
    first.close({"status": "KILLED", "time": 1})
    assert Delivery(first, store, careful=False).step()
    assert {r.info.status for r in store.children()[0].values()} == {"KILLED"}
    observed(second, seeds, range(30, 101, 5))  # its checkpoint was older
    second.close({"status": "FINISHED", "time": 2})
    assert Delivery(second, store, careful=False).step()
    children, count = store.children()
    assert count == 2
    for seed, child in children.items():
        assert child.info.status == "FINISHED"
        assert child.data.tags["kedro_run"] == "second"
        curve = sorted((s, v) for n, s, v, _ in child.data.points if n == "train_loss")
        assert curve == [(t, 1.0 + int(seed) + t) for t in range(0, 101, 10)]


def test_a_server_that_fails_at_any_request_gets_everything_once(tmp_path):
    whole = None
    for allowed in range(40):
        store, spool = FakeStore(), opened(tmp_path / str(allowed))
        observed(spool, [0, 1], range(0, 101, 50))
        spool.close({"status": "FINISHED", "time": 2})
        store.requests_left = math.inf if whole is None else allowed
        delivery = Delivery(spool, store, careful=False)
        try:
            assert delivery.step()
            done = whole is not None
        except UnreachableError:
            store.requests_left, done = math.inf, False
            assert Delivery(spool, store, careful=True).step()
        points = {s: {p[:3] for p in r.data.points} for s, r in store.children()[0].items()}
        whole = whole or points
        assert points == whole
        assert len(store.runs) == 1 + 2
        assert {r.info.status for r in store.runs.values()} == {"FINISHED"}
        assert spool.waiting() == []
        if done:
            return
    pytest.fail("it asks for more than 40 things")


def test_what_came_after_a_divergence_is_not_drawn(tmp_path):
    store, spool = FakeStore(), opened(tmp_path / "run")
    identity = {"task": TASK, "arm": "adam", "digest": "d", "params": {}, "tags": {"digest": "d"}}
    training = TrackedTraining(spool, identity, points=10, every=0)
    rows = {t: {"train_loss": np.array([1.0, 1e9 if t == 20 else 5.0])} for t in (0, 10, 20, 30)}
    training.observe(HistoryBlock([0, 1], 100, rows, [None, 20]))
    Delivery(spool, store, careful=False).step()
    steps = {s: {p[1] for p in r.data.points} for s, r in store.children()[0].items()}
    assert steps == {"0": {0, 10, 20, 30}, "1": {0, 10}}
