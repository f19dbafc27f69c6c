"""Parallel nodes: their results, the calls of hooks, and what happens if a node fails."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import torch
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.specs import DatasetSpecs, NodeSpecs
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset
from pluggy import PluginManager

from adaptive_opt.errors import StudyError
from adaptive_opt.io.runners import REMOTE_DATA
from adaptive_opt.io.runners.local_runner import StudyRunner
from tests.project.conftest import kedro

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2,
    reason="nodes run side by side on Linux, on two cores or more",
)

CPU = {"parameters": MemoryDataset({"training": {"device": "cpu"}})}


MEETING = multiprocessing.get_context("fork").Barrier(2)


def where(_):
    return {
        "process": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }


def meet(parameters):
    MEETING.wait(60)
    return where(parameters)


def together(*places):
    return pd.DataFrame({"process": [p["process"] for p in places]})


@pytest.fixture
def make(tmp_path):
    """Return a catalog with the parameters and files for some datasets."""

    def catalog(*names, **others):
        files = {n: JSONDataset(filepath=str(tmp_path / f"{n}.json")) for n in names}
        return DataCatalog(CPU | files | others)

    return catalog


class Seen:
    """A hook that records its calls and the process."""

    def __init__(self):
        self.events = []

    def _see(self, event, **told):
        assert os.getpid() == self.process
        self.events.append((event, told))

    process = os.getpid()

    @hook_impl
    def before_node_run(self, node, inputs, is_async, run_id):
        self._see("before_node_run", node=node.name)

    @hook_impl
    def after_node_run(self, node, outputs):
        self._see("after_node_run", node=node.name)

    @hook_impl
    def after_dataset_loaded(self, dataset_name, data, node):
        self._see("after_dataset_loaded", name=dataset_name, data=data, node=node.name)

    @hook_impl
    def after_dataset_saved(self, dataset_name, data, node):
        self._see("after_dataset_saved", name=dataset_name, data=data, node=node.name)

    @hook_impl
    def on_node_error(self, error, node):
        self._see("on_node_error", error=error, node=node.name)


def hook_manager(seen):
    manager = PluginManager(hook_impl.project_name)
    for specs in (DatasetSpecs, NodeSpecs):
        manager.add_hookspecs(specs)
    manager.register(seen)
    return manager


def run(pipeline, catalog, **options):
    seen = Seen()
    try:
        StudyRunner(**options).run(pipeline, catalog, hook_manager(seen))
    finally:
        run.seen = seen.events
    return seen.events


def fork(function):
    left, right = (node(function, "parameters", side, name=side) for side in ("left", "right"))
    return Pipeline([left, right, node(together, ["left", "right"], "both", name="both")])


FORK = fork(where)


def test_nodes_have_processes_and_cores_of_their_own(make, tmp_path):
    catalog = make("left", "right", both=CSVDataset(filepath=str(tmp_path / "both.csv")))
    threads = torch.get_num_threads()
    run(fork(meet), catalog, workers=2)
    left, right = catalog.load("left"), catalog.load("right")
    assert len({left["process"], right["process"], os.getpid()}) == 3
    assert not {*left["cores"]} & {*right["cores"]}
    for place in (left, right):
        assert place["threads"] == len(place["cores"])
    assert torch.get_num_threads() == threads
    assert sorted(catalog.load("both")["process"]) == sorted([left["process"], right["process"]])


NODE_EVENTS = ["before_node_run", "after_node_run", "after_dataset_saved"]


def check_events(events):
    """Check that the hooks of each node of FORK came in Kedro's order, without data."""
    for name in ("left", "right", "both"):
        own = [event for event, told in events if told["node"] == name]
        assert own == ["after_dataset_loaded"] * (2 if name == "both" else 1) + NODE_EVENTS
    assert [t["node"] for e, t in events if e == "before_node_run"][-1] == "both"
    saved = {t["name"]: t["data"] for e, t in events if e == "after_dataset_saved"}
    assert saved == dict.fromkeys(("left", "right", "both"), REMOTE_DATA)


def test_hooks_are_called_here_without_the_data(make, tmp_path):
    catalog = make("left", "right", both=CSVDataset(filepath=str(tmp_path / "both.csv")))
    check_events(run(FORK, catalog, workers=2))


def test_without_hooks_nodes_run_as_well(make, tmp_path):
    catalog = make("left", "right", both=CSVDataset(filepath=str(tmp_path / "both.csv")))
    StudyRunner(workers=2).run(FORK, catalog)
    assert len(catalog.load("both")) == 2


def test_one_worker_is_this_process(make):
    catalog = make("left")
    run(FORK.filter(node_names=["left"]), catalog, workers=1)
    assert catalog.load("left")["process"] == os.getpid()


def test_what_lives_in_memory_stays_in_this_process(make, tmp_path, caplog):
    catalog = make("left", both=CSVDataset(filepath=str(tmp_path / "both.csv")))
    with caplog.at_level("INFO", "adaptive_opt"):
        run(FORK, catalog, workers=2)
    assert "only in memory is right" in caplog.text
    assert {*catalog.load("both")["process"]} == {os.getpid()}


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "two"])
def test_a_number_of_workers_that_is_none(workers):
    with pytest.raises(StudyError, match="whole number of at least 1"):
        StudyRunner(workers=workers)


def test_on_a_gpu_it_is_one_at_a_time(make, monkeypatch):
    monkeypatch.setattr("adaptive_opt.engine.device.resolve_device", lambda _: torch.device("cuda"))
    catalog = make("left", "right")
    run(FORK.filter(node_names=["left", "right"]), catalog)
    assert catalog.load("left")["process"] == catalog.load("right")["process"] == os.getpid()
    with pytest.raises(StudyError, match="one node at a time"):
        run(FORK.filter(node_names=["left", "right"]), catalog, workers=2)


class UnsendableError(Exception):  # it cannot be unpickled from its message
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def say(_):
    raise StudyError("the file is damaged")


def stumble(_):
    raise UnsendableError("one", "two")


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (say, "^the file is damaged$"),
        (stumble, "one and two"),
        (die, r"bad: its process died \(SIGKILL\); if memory ran out.*workers=1"),
    ],
)
def test_a_failure_is_told_and_ends_the_others(make, tmp_path, function, words):
    def slow(_):
        time.sleep(60)

    pipeline = Pipeline(
        [
            node(function, "parameters", "left", name="bad"),
            node(slow, "parameters", "right", name="slow"),
        ]
    )
    start = time.monotonic()
    with pytest.raises(Exception, match=words):
        run(pipeline, make("left", "right"), workers=2)
    assert time.monotonic() - start < 20
    failed = [told["node"] for event, told in run.seen if event == "on_node_error"]
    assert failed == ([] if function is die else ["bad"])


def test_an_interrupt_ends_the_workers_in_order(make, tmp_path):
    begun, note = tmp_path / "begun", tmp_path / "left in order"

    def slow(_):
        try:
            begun.touch()
            time.sleep(60)
        except KeyboardInterrupt:
            note.write_text("yes")
            raise

    pipeline = Pipeline(
        [
            node(slow, "parameters", "left", name="slow"),
            node(where, "parameters", "right", name="quick"),
        ]
    )

    def interrupt():
        while not begun.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, make("left", "right"), workers=2)
    assert note.read_text() == "yes"


def test_workers_do_not_outlive_their_parent(tmp_path):
    """Otherwise they and the next run could write the same files."""
    beat = tmp_path / "beat"
    program = f"""
import time
from pathlib import Path
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro_datasets.json import JSONDataset
from adaptive_opt.io.runners.local_runner import StudyRunner

def write(_):
    while True:
        Path({str(beat)!r}).write_text(str(time.time()))
        time.sleep(0.01)

files = {{n: JSONDataset(filepath={str(tmp_path)!r} + "/" + n) for n in ("a", "b")}}
catalog = DataCatalog(files | {{"parameters": MemoryDataset({{"training": {{"device": "cpu"}}}})}})
nodes = [node(write, "parameters", n, name=n) for n in files]
StudyRunner(workers=2).run(Pipeline(nodes), catalog)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    while not beat.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(0.5)
    last = beat.read_text()
    time.sleep(0.3)
    assert beat.read_text() == last


def test_side_by_side_is_bit_for_bit_one_after_the_other(project, tmp_path):
    """Searches and runs of a network: convolutions could depend on the number of threads."""
    part = ["run", "--env=smoke", "--namespaces=data,tuning.resnet18,training.resnet18"]
    part += ["--tags=ssdh,adam", "--params=tracking.enabled=false"]
    found = []
    for runner in (f"--runner={SequentialRunner.__name__}", "--runner-params=workers=2"):
        done = kedro(project, *part, runner, "--params=training.resume=false")
        assert done.returncode == 0, done.stdout + done.stderr
        folder = project / "data" / "07_model_output" / "smoke" / "resnet18"
        found.append({a: pd.read_parquet(folder / a / "history.parquet") for a in ("ssdh", "adam")})
    for arm, history in found[0].items():
        kept = [c for c in history if "seconds" not in c]
        pd.testing.assert_frame_equal(history[kept], found[1][arm][kept], check_exact=True)


def test_the_command_takes_a_number_of_workers(project):
    done = kedro(project, "run", "--env=smoke", "--runner-params=workers=none")
    assert done.returncode == 1
    assert "workers=none: must be a whole number" in done.stderr
    assert "Traceback" not in done.stderr
