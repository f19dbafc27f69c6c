"""MLflow gets every training once, and training does not depend on MLflow."""

import json
import logging
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
from adaptive_opt.files import changed_at, write_record
from adaptive_opt.io.datasets import ParquetDataset, RecordDataset, TensorsDataset
from adaptive_opt.io.runs import RunFolder
from adaptive_opt.io.tracking import training
from adaptive_opt.io.tracking.hooks import TrackedRun
from adaptive_opt.io.tracking.sender import Delivery, Store, UnreachableError
from adaptive_opt.io.tracking.training import (
    ENVIRONMENT,
    TrackedTraining,
    is_abandoned,
    track_training,
)
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
    """Folder with a database for all tests here, because creating one takes seconds."""
    return tmp_path_factory.mktemp("tracked")


RUN = {"name": "a run", "tags": {"scale": "smoke"}, "params": {"a.b": "1"}}
RUN["inherited"] = {"scale": "smoke"}


@contextmanager
def tracked(project, uri, files=(), **settings):
    """Track a run; afterwards the value has its ``address`` and ``warnings``."""
    chosen = TrackingParameters(points=POINTS, live_seconds=0, wait_seconds=120, **settings)
    outcome, handler = SimpleNamespace(address="", warnings=[]), logging.Handler()
    handler.emit = lambda record: outcome.warnings.append(record.getMessage())
    run = TrackedRun(uri, "study", chosen, RUN, project)
    try:
        yield outcome
    finally:
        kept = [(str(f), "08_reporting", changed_at(f)) for f in files]
        logging.getLogger("adaptive_opt.io.tracking").addHandler(handler)
        outcome.address = run.close("FINISHED", kept)
        logging.getLogger("adaptive_opt.io.tracking").removeHandler(handler)


def database(project):
    return f"sqlite:///{project / 'mlflow.db'}"


def train_arm(parameters, function, folder, arm="adam"):
    """Train as the pipeline does and save as the catalog does."""
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
    """The content of the database."""

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
    """Return the first logged row of every twentieth of the run, and the last row."""
    rows = history[history["seed"] == seed].sort_values("iteration")
    kept = {}
    for step, value in zip(rows["iteration"], rows["train_loss"], strict=True):
        kept.setdefault(math.floor(step / (LENGTH / points)), (step, value))
    return list(kept.values())


def check_children(recorded, folder, arm="adam"):
    """Check the child run of each seed against the history; return the parents."""
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
    """History and weights of a training without MLflow."""
    assert ENVIRONMENT not in os.environ
    folder = project / "undisturbed" / "adam"
    return train_arm(parameters, function, folder)


@pytest.fixture(scope="module")
def first(parameters, function, project, undisturbed):
    """Folder of a run that is recorded in the database."""
    with tracked(project, database(project)) as outcome:
        got = train_arm(parameters, function, project / "adam")
    assert outcome.warnings == []
    page = "http://127.0.0.1:5000/#/experiments/1/runs?"
    assert outcome.address.startswith(f"make mlflow, then {page}")
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
    """In a second run, only an arm that MLflow does not have gets a new child run.

    The project's folder was moved meanwhile, and what is recorded moves with it.
    """
    moved = tmp_path / "moved"
    shutil.copytree(first, moved)
    other, figure = moved / "sgdm", moved / "figure.txt"
    figure.write_text("a figure")
    train_arm(parameters, function, other, "sgdm")
    before = len(Recorded(moved).parents())
    with tracked(moved, database(moved), [figure]) as outcome:
        train_arm(parameters, function, moved / "adam")
        train_arm(parameters, function, other, "sgdm")
    assert outcome.warnings == []
    recorded = Recorded(moved)
    assert len(recorded.parents()) == before + 1
    (parent,) = check_children(recorded, other, "sgdm")
    assert check_children(recorded, moved / "adam") != {parent}
    assert {f"{TASK}/{arm}/diverged" for arm in ("adam", "sgdm")} < recorded.metrics[parent].keys()
    kept = moved / "mlflow_artifacts" / parent / "artifacts" / "08_reporting" / "figure.txt"
    assert kept.read_text() == "a figure"
    assert not (first / "mlflow_artifacts" / parent).exists()


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def points_of_running(project):
    """Return the number of points of each child run that has not ended."""
    recorded = Recorded(project)
    running = [r for r, (_, status) in recorded.runs.items() if status == "RUNNING"]
    return [
        sum(map(len, recorded.metrics[r].values())) for r in running if PARENT in recorded.tags[r]
    ]


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@pytest.fixture
def server(first, tmp_path):
    """Process and address of an ``mlflow server`` on the shared database."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    command += ["--workers=1", f"--backend-store-uri={database(first)}"]
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # six processes that are not needed here
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
    """Kill a server and its workers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("where", ["database", "server"])
def test_mlflow_stores_a_point_that_it_gets_twice_once(first, request, where):
    """Sending everything again relies on this."""
    uri = database(first) if where == "database" else request.getfixturevalue("server")[1]
    store = Store(uri, "study", first / "mlflow_artifacts")
    run = store.create(f"twice on a {where}", {}, 0)
    points = [("train_loss", 1 / (1 + step), 1000 + step, step) for step in range(1500)]
    store.log(run, points[:1000], {"lr": "0.1"}, {})
    for _ in range(2):
        store.log(run, points, {"lr": "0.1"}, {})
    store.end(run, "FINISHED", 1)
    recorded = Recorded(first).metrics[run]["train_loss"]
    assert recorded == [(step, value) for _, value, _, step in points]


def test_a_server_killed_midway_changes_nothing(
    parameters, function, first, server, undisturbed, monkeypatch
):
    """No point of the curves is lost: the next run sends what the server did not take."""
    process, uri = server
    folder = first / "killed" / "adam"
    observe, blocks = TrackedTraining.observe, []

    def kill_at_the_second(self, block):
        if len(blocks) == 1:
            wait_for(lambda: [n > 0 for n in points_of_running(first)] == [True, True])
            kill(process)
        blocks.append(max(block.rows))
        observe(self, block)

    monkeypatch.setattr(TrackedTraining, "observe", kill_at_the_second)
    monkeypatch.setattr("adaptive_opt.engine.train.FLUSH_EVERY", 10)
    parameters = {**parameters, "training": {**parameters["training"], "resume": False}}
    with tracked(first, uri) as outcome:
        history, weights = train_arm(parameters, function, folder)
    assert len(blocks) > 2
    assert blocks[0] < LENGTH
    pd.testing.assert_frame_equal(without_clock(history), without_clock(undisturbed[0]))
    assert all(torch.equal(weights[n], w) for n, w in undisturbed[1].items())
    (line,) = outcome.warnings
    assert line.startswith(f"MLflow at {uri} does not have this run yet (")
    assert line.endswith("It is kept in mlflow_unsent and sent by the next kedro run.")
    assert "\n" not in line
    assert outcome.address == ""

    begun = [r for r, (_, status) in Recorded(first).runs.items() if status == "RUNNING"]
    assert len(begun) == 1 + 2
    with tracked(first, database(first)) as outcome:
        pass
    assert outcome.warnings == []
    recorded = Recorded(first)
    history = pd.read_parquet(folder / "history.parquet")
    for run in begun:
        assert recorded.runs[run][1] == "FINISHED"
        if PARENT in recorded.tags[run]:
            curve = expected_curve(history, int(recorded.tags[run]["seed"]))
            assert recorded.metrics[run]["train_loss"] == curve
    assert not any(status == "RUNNING" for _, status in recorded.runs.values())
    assert not (first / "mlflow_unsent").exists()


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
    with tracked(tmp_path, uri) as outcome:
        history, weights = train_arm(parameters, function, tmp_path / "adam")
        ended = time.monotonic()
    waited = time.monotonic() - ended
    pd.testing.assert_frame_equal(without_clock(history), without_clock(undisturbed[0]))
    assert all(torch.equal(weights[n], w) for n, w in undisturbed[1].items())
    (line,) = outcome.warnings
    assert reason in line
    assert "sent by the next kedro run" in line
    (left,) = (tmp_path / "mlflow_unsent").iterdir()
    assert {f"{TASK}.adam.json", "run.json", "end.json"} < {f.name for f in left.iterdir()}
    assert waited < 30  # far less than MLflow's own retries take
    if held is not None:
        held.close()


def test_no_folder_for_records_is_one_line(tmp_path):
    (tmp_path / "mlflow_unsent").write_text("in the way")
    with pytest.raises(OSError, match="mlflow_unsent"):  # the hooks log it in one line
        TrackedRun(database(tmp_path), "study", TrackingParameters(), RUN, tmp_path)


RESOLVED = {"optimizer": "adaptive_opt.optim.Adam", "hyperparameters": {"lr": 1.0}}


def test_records_that_nobody_would_send_are_not_made(tmp_path, monkeypatch, caplog):
    """The folder of the run is on another machine: one warning, and no files."""
    folder = tmp_path / "mlflow_unsent" / "run"
    monkeypatch.setenv(ENVIRONMENT, json.dumps({"folder": str(folder), "points": 10}))
    for digest in ("a", "b"):
        with track_training(TASK, "adam", digest, RESOLVED) as tracked:
            tracked.observe(block_of([0], {0: [1.0]}))
    assert caplog.text.count("MLflow misses trainings of this machine") == 1
    assert not folder.exists()


KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from adaptive_opt.engine.contract import HistoryBlock
from adaptive_opt.io.tracking.hooks import TrackedRun
from adaptive_opt.io.tracking.training import track_training
from adaptive_opt.parameters.models import TrackingParameters
project, name, sender_too = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
description = {"name": name, "tags": {}, "params": {}, "inherited": {}}
uri = f"sqlite:///{project / 'mlflow.db'}"
run = TrackedRun(uri, "study", TrackingParameters(live_seconds=0), description, project)
resolved = {"optimizer": "adaptive_opt.optim.Adam", "hyperparameters": {"lr": 1.0}}
with track_training("rr_cond29", "adam", f"digest of {name}", resolved) as tracked:
    rows = {0: {"train_loss": np.array([3.0, 4.0])}}
    tracked.observe(HistoryBlock([5, 6], 100, rows, [None, None]))
    if sender_too:
        run._sender.kill()
        run._sender.wait()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("sender", [[], ["sender too"]], ids=["alone", "with its sender"])
def test_runs_of_a_process_that_was_killed_are_closed(first, sender):
    """Its sender closes them; if that was killed too, the next run does."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    name = " ".join(["killed", *sender])
    command = [sys.executable, "-c", KILLED, str(first), name, *sender]
    subprocess.run(command, env=env, check=False)
    if sender:
        with tracked(first, database(first)) as outcome:
            pass
        assert outcome.warnings == []
    wait_for(lambda: not list((first / "mlflow_unsent").glob("*")))
    recorded = Recorded(first)
    (parent,) = (r for r, (n, _) in recorded.runs.items() if n == name)
    assert recorded.runs[parent][1] == "KILLED"
    children = {recorded.tags[c]["seed"]: c for c in recorded.children(f"digest of {name}")}
    assert set(children) == {"5", "6"}
    for seed, child in children.items():
        assert recorded.runs[child][1] == "KILLED"
        assert recorded.tags[child][PARENT] == parent
        assert recorded.metrics[child]["train_loss"] == [(0, {"5": 3.0, "6": 4.0}[seed])]


class FakeStore:
    """A tracking server in memory, which can fail at any request."""

    experiment = "1"

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
        self._asked()  # the run may exist although the answer is lost
        return info.run_id

    def log(self, run, points, params, tags):
        self.runs[run].data.points |= {(n, step, v, t) for n, v, t, step in points}
        self.runs[run].data.tags |= tags
        self._asked()

    def end(self, run, status, time):
        self._asked()
        self.runs[run].info.status = status

    def children(self, key):
        """Return status and curve of each seed's child run; check that none exists twice."""
        tagged = [r for r in self.runs.values() if r.data.tags.get("kedro_run") == key]
        children = [r for r in tagged if PARENT in r.data.tags]
        found = {}
        for run in children:
            points = sorted((s, v) for n, s, v, _ in run.data.points if n == "train_loss")
            assert len({s for s, _ in points}) == len(points)
            found[run.data.tags["seed"]] = run.info.status, points
        assert len(found) == len(children)
        return found


def value_at(seed, iteration):
    return float(np.float32(1 + seed + 1 / (1 + iteration)))


def block_of(seeds, rows, diverged_at=None):
    rows = {t: {"train_loss": np.array(v, dtype=np.float32)} for t, v in rows.items()}
    return HistoryBlock(seeds, 100, rows, diverged_at or [None] * len(seeds))


def observed(folder, monkeypatch, iterations, digest="d", kept=False, ends=True):
    """Run a training that reports rows one by one, and is interrupted or finishes."""
    settings = {"folder": str(folder), "points": 10, "live_seconds": 0}
    monkeypatch.setenv(ENVIRONMENT, json.dumps(settings))
    seeds = [0, 1]
    with track_training(TASK, "adam", digest, RESOLVED, kept) as tracked:
        for t in iterations:
            tracked.observe(block_of(seeds, {t: [value_at(s, t) for s in seeds]}))
        if not ends:
            raise KeyboardInterrupt
        rows = [(s, t, value_at(s, t)) for s in seeds for t in range(0, 101, 5)]
        history = pd.DataFrame(rows, columns=["seed", "iteration", "train_loss"])
        summary = {"iterations": 100, "seeds": seeds, "diverged_at": [None, None]}
        summary |= {"final_train_loss": [1.0, 1.0]}
        summary |= {"gradient_equivalents": 1.0, "device_seconds": 1.0}
        tracked.finish(history, summary)


def opened(folder):
    write_record(folder / "run.json", {**RUN, "time": 0, "process": {"host": "another", "pid": 1}})
    return folder


def close(folder, status="FINISHED"):
    write_record(folder / "end.json", {"status": status, "time": 2, "metrics": {}, "files": []})


def whole(seed):
    return [(t, value_at(seed, t)) for t in range(0, 101, 10)]


def test_a_resumed_training_gets_a_new_run_with_the_whole_curve(tmp_path, monkeypatch):
    store, first, second = FakeStore(), opened(tmp_path / "first"), opened(tmp_path / "second")
    with pytest.raises(KeyboardInterrupt):
        observed(first, monkeypatch, range(0, 50, 5), ends=False)
    close(first, "KILLED")
    assert Delivery(first, store).send()
    observed(second, monkeypatch, range(30, 101, 5))  # its checkpoint was older
    close(second)
    assert Delivery(second, store).send()
    assert store.children("first") == {str(s): ("KILLED", whole(s)[:5]) for s in (0, 1)}
    assert store.children("second") == {str(s): ("FINISHED", whole(s)) for s in (0, 1)}


def test_a_worker_that_takes_over_goes_on_with_the_same_run(tmp_path, monkeypatch):
    """Within one ``kedro run``, also if the server came back in between."""
    store, folder = FakeStore(), opened(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        observed(folder, monkeypatch, range(0, 50, 5), ends=False)
    Delivery(folder, store).send()
    observed(folder, monkeypatch, range(30, 101, 5))
    close(folder)
    assert Delivery(folder, store).send()
    assert store.children("run") == {str(s): ("FINISHED", whole(s)) for s in (0, 1)}


def test_only_what_has_changed_is_sent(tmp_path, monkeypatch):
    store, folder = FakeStore(), opened(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        observed(folder, monkeypatch, range(0, 50, 5), ends=False)
    delivery = Delivery(folder, store)
    assert not delivery.send()
    store.requests_left = 0
    assert not delivery.send()
    store.requests_left, logged, log = math.inf, [], store.log
    store.log = lambda run, points, *rest: logged.extend(points) or log(run, points, *rest)
    observed(folder, monkeypatch, range(50, 101, 5))
    delivery.send()
    assert {step for name, *_, step in logged if name == "train_loss"} == {*range(50, 101, 10)}


def test_a_server_that_fails_at_any_request_gets_everything_once(tmp_path, monkeypatch):
    for allowed in range(40):
        store, folder = FakeStore(), opened(tmp_path / str(allowed))
        observed(folder, monkeypatch, range(0, 101, 50))
        close(folder)
        store.requests_left = allowed
        try:
            done = Delivery(folder, store).send()
        except UnreachableError:
            store.requests_left, done = math.inf, False
            assert Delivery(folder, store).send()
        assert store.children(str(allowed)) == {str(s): ("FINISHED", whole(s)) for s in (0, 1)}
        assert len(store.runs) == 1 + 2
        assert {r.info.status for r in store.runs.values()} == {"FINISHED"}
        if done:
            assert allowed > 5
            return
    pytest.fail("it asks for more than 40 things")


def test_a_full_disk_costs_nothing_that_was_trained(tmp_path, monkeypatch, caplog):
    """The next write has everything; without one, the next run sends what is kept."""
    store, folder = FakeStore(), opened(tmp_path / "run")
    calls = iter(range(99))

    def write_or_fail(path, record, upto=3):
        if next(calls) < upto:
            raise OSError("no space left")
        write_record(path, record)

    monkeypatch.setattr(training, "write_record", write_or_fail)
    observed(folder, monkeypatch, range(0, 101, 50))
    close(folder)
    assert Delivery(folder, store).send()
    assert store.children("run") == {str(s): ("FINISHED", whole(s)) for s in (0, 1)}
    assert caplog.text.count("no space left") == 1

    full, after, again = (opened(tmp_path / name) for name in ("full", "after", "again"))
    monkeypatch.setattr(training, "write_record", lambda *_: write_or_fail(*_, upto=99))
    observed(full, monkeypatch, range(0, 101, 50), "other")
    monkeypatch.undo()
    for folder in (full, after, again):
        if folder != full:
            observed(folder, monkeypatch, [], "other", kept=True)
        close(folder)
        assert Delivery(folder, store).send()
    assert store.children("full") == {}
    assert store.children("after") == {str(s): ("FINISHED", whole(s)) for s in (0, 1)}
    assert store.children("again") == {}


def test_a_run_is_left_over_when_nobody_is_at_work_on_it(tmp_path):
    folder = opened(tmp_path / "run")
    assert not is_abandoned(folder)
    assert not is_abandoned(tmp_path / "none")
    os.utime(folder / "run.json", (0, 0))
    assert is_abandoned(folder)  # its host is silent
    closed = opened(tmp_path / "closed")
    close(closed)
    assert is_abandoned(closed)


def test_what_came_after_a_divergence_is_not_drawn(tmp_path, monkeypatch):
    store, folder = FakeStore(), opened(tmp_path / "run")
    settings = {"folder": str(folder), "points": 10, "live_seconds": 0}
    monkeypatch.setenv(ENVIRONMENT, json.dumps(settings))
    rows = {t: [1.0, 1e9 if t == 20 else 5.0] for t in (0, 10, 20, 30)}
    with track_training(TASK, "adam", "d", RESOLVED) as tracked:
        tracked.observe(block_of([0, 1], rows, [None, 20]))
    Delivery(folder, store).send()
    steps = {seed: [t for t, _ in curve] for seed, (_, curve) in store.children("run").items()}
    assert steps == {"0": [0, 10, 20, 30], "1": [0, 10]}
