"""Nodes as tasks of a Ray cluster: their results, and what remains after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset
from kedro_datasets.pandas import CSVDataset

import adaptive_opt.io
from adaptive_opt.errors import StudyError
from adaptive_opt.parameters import find_faults
from adaptive_opt.parameters.resources import ResourcesParameters, node_resources
from tests.conftest import PROJECT
from tests.project.conftest import KEDRO, kedro
from tests.project.test_runner import Seen, UnsendableError, check_events, hook_manager
from tests.project.test_site import parameters

HERE = "adaptive_opt.io.RayRunner"
CPU = {"training": {"device": "cpu"}}


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module")
def cluster(ray):
    """A cluster of three nodes on this machine, each with one core."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.others = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    yield made
    made.shutdown()


def where(given):
    return {
        "process": os.getpid(),
        "threads": torch.get_num_threads(),
    }


def together(left, right):
    return pd.DataFrame({"process": [left["process"], right["process"]]})


FORK = Pipeline(
    [
        node(where, "parameters", "left", name="left"),
        node(where, "parameters", "right", name="right"),
        node(together, ["left", "right"], "both", name="both"),
    ]
)


def files(folder, *names, given=CPU):
    """Return a catalog with the parameters and files for some datasets."""
    made = {n: JSONDataset(filepath=str(folder / f"{n}.json")) for n in names}
    both = CSVDataset(filepath=str(folder / "both.csv"))
    return DataCatalog({**made, "both": both, "parameters": MemoryDataset(given)})


def run(pipeline, catalog, **options):
    seen = Seen()
    try:
        adaptive_opt.io.RayRunner(**options).run(pipeline, catalog, hook_manager(seen))
    finally:
        run.seen = seen.events
    return seen.events


def processes_of_ray():
    """Return the command lines of all Ray processes by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "raylet" in line or "gcs_server" in line or line.startswith("ray::"):
            found[folder.name] = line
    return found


def test_nodes_run_elsewhere_and_hooks_here(cluster, tmp_path):
    catalog = files(tmp_path, "left", "right")
    events = run(FORK, catalog, address=cluster.address)
    left, right = catalog.load("left"), catalog.load("right")
    assert os.getpid() not in {left["process"], right["process"]}
    for place in (left, right):
        assert place["threads"] == 1
    check_events(events)


def test_what_lives_in_memory_is_refused_at_the_start(ray, tmp_path):
    with pytest.raises(StudyError, match=r"only in memory is right, which both would take"):
        run(FORK, files(tmp_path, "left"))
    assert run.seen == []
    assert not ray.is_initialized()


def fail(_):
    raise UnsendableError("one", "two")


def slow(note, _):
    try:
        Path(note, "begun").touch()
        while True:  # Ray interrupts Python code, not system calls
            time.sleep(0.05)
    except KeyboardInterrupt:
        Path(note, "ended in order").touch()
        raise


def test_a_failure_is_told_with_how_to_go_on_and_ends_the_others(cluster, tmp_path, caplog):
    def wait_and_fail(given):
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        fail(given)

    nodes = [
        node(where, "parameters", "left", name="good"),
        node(wait_and_fail, "left", "right", name="bad"),
        node(lambda given: slow(str(tmp_path), given), "left", "third", name="slow"),
    ]
    with pytest.raises(RuntimeError, match="one and two"):
        run(Pipeline(nodes), files(tmp_path, "left", "right", "third"), address=cluster.address)
    assert [told["node"] for event, told in run.seen if event == "on_node_error"] == ["bad"]
    assert '--from-nodes "bad,slow"' in caplog.text
    assert (tmp_path / "ended in order").exists()


def test_a_node_whose_process_dies_is_begun_again(cluster, tmp_path):
    def die_once(_):
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def die(_):
        os.kill(os.getpid(), signal.SIGKILL)

    catalog = files(tmp_path, "left", given={**CPU, "resources": {"retries": 1}})
    events = run(
        Pipeline([node(die_once, "parameters", "left", name="weak")]),
        catalog,
        address=cluster.address,
    )
    assert [e for e, _ in events].count("after_node_run") == 1
    with pytest.raises(StudyError, match="dead: its process died 2 times"):
        run(
            Pipeline([node(die, "parameters", "left", name="dead")]),
            catalog,
            address=cluster.address,
        )


def test_more_than_any_machine_has(cluster, tmp_path):
    catalog = files(tmp_path, "left", given={**CPU, "resources": {"cpus": 2}})
    with pytest.raises(StudyError, match="left is to have 2 cores and 0 GPUs"):
        run(FORK.filter(node_names=["left"]), catalog, address=cluster.address)


PART = ("run", "--env=smoke", "--namespaces=tuning.resnet18,training.resnet18", "--tags=ssdh,adam")
PART += ("--params=training.resume=false",)


def histories(folder):
    found = {arm: pd.read_parquet(folder / arm / "history.parquet") for arm in ("ssdh", "adam")}
    return {arm: h[[c for c in h if "seconds" not in c]] for arm, h in found.items()}


def test_three_nodes_one_killed_are_bit_for_bit_one_after_the_other(cluster, project):
    assert kedro(project, "run", "--env=smoke", "--pipelines=data").returncode == 0
    done = kedro(project, *PART, f"--runner={SequentialRunner.__name__}")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = project / "data" / "07_model_output" / "smoke" / "resnet18"
    alone = histories(folder)
    summaries = [folder / arm / "summary.json" for arm in alone]
    for file in summaries:
        file.unlink()
    command = [*KEDRO, *PART, f"--runner={HERE}", f"--runner-params=address={cluster.address}"]
    with (project / "ray.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=project, env={**os.environ, "PYTHONPATH": ""}, stdout=log, stderr=log
        )
        while not any(file.exists() for file in summaries):
            assert process.poll() is None, (project / "ray.log").read_text()
            time.sleep(0.05)
        cluster.remove_node(cluster.others.pop(), allow_graceful=False)
        assert process.wait(120) == 0, (project / "ray.log").read_text()
    for arm, history in histories(folder).items():
        pd.testing.assert_frame_equal(alone[arm], history, check_exact=True)
    assert "MLflow" in (project / "ray.log").read_text()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are counted in /proc")
def test_an_interrupt_leaves_no_process_and_no_file(ray, tmp_path):
    """A Ray that the run starts listens on loopback only, and ends with the run."""
    scratch = tmp_path / "t"
    scratch.mkdir()
    program = f"""
import sys
from kedro.pipeline import Pipeline, node
from functools import partial
sys.path.insert(0, {str(PROJECT)!r})
from pathlib import Path
from tests.project.test_ray import HERE, files, slow
from adaptive_opt.io import RayRunner
work = node(partial(slow, {str(tmp_path)!r}), "parameters", "left", name="slow")
RayRunner(workers=1).run(Pipeline([work]), files(Path({str(tmp_path)!r}), "left"))
"""
    before = processes_of_ray()
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "TMPDIR": "/tmp"},  # noqa: S108
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "begun").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    assert processes_of_ray().keys() - before.keys()  # processes of an earlier test may be ending
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=60)[1]
    assert "KeyboardInterrupt" in said
    assert (tmp_path / "ended in order").exists(), said
    assert processes_of_ray().keys() <= before.keys()
    assert not list(Path("/tmp").glob(f"ray*/session_*_{process.pid}"))  # noqa: S108


def test_a_process_has_one_gpu_all_its_life_and_else_none(ray, tmp_path):
    """torch keeps the first GPU that it used. The GPUs are simulated, Ray's choice is real."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False},
    )

    def seen(*_):
        return {"process": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}

    training = [f"training{i}" for i in range(4)]
    nodes = [node(seen, ["parameters", "params:training"], n, name=n) for n in training]
    nodes += [node(seen, n, f"after_{n}", name=f"after_{n}") for n in training]
    given = {"training": {"device": "cuda"}}
    catalog = files(tmp_path, *training, *(f"after_{n}" for n in training), given=given)
    catalog["params:training"] = MemoryDataset(given["training"])
    try:
        run(Pipeline(nodes), catalog, address=made.address)
    finally:
        made.shutdown()
    with_gpu = [catalog.load(n) for n in training]
    assert {s["gpus"] for s in with_gpu} <= {"0", "1"}
    assert len({s["process"] for s in with_gpu}) == len(training)
    without = [catalog.load(f"after_{n}") for n in training]
    assert {s["gpus"] for s in without} == {""}
    assert not {s["process"] for s in without} & {s["process"] for s in with_gpu}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpus_are_asked_of_the_cluster_and_not_of_this_machine(ray, project):
    parts = ["rr_synthesis.rr_cond29", "tuning.rr_cond29.sgdm", "training.rr_cond29.sgdm"]
    done = kedro(
        project, "run", "--env=smoke", "--pipelines=rr_synthesis,tuning,training",
        f"--namespaces={','.join(parts)}", f"--runner={HERE}",
        "--params=training.device=cuda,tuning.source=published",
    )  # fmt: skip
    assert done.returncode == 1
    assert "no machine of the Ray cluster has as many" in done.stdout + done.stderr
    assert "torch sees no GPU here" not in done.stdout + done.stderr


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("adaptive_opt.io.runners.ray_runner.find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"pip install 'adaptive_opt\[ray\]'"):
        adaptive_opt.io.RayRunner()


def test_an_address_where_no_cluster_is(ray, tmp_path):
    with pytest.raises(StudyError, match=r"no Ray cluster can be used at 127.0.0.1:1 .*address="):
        run(FORK, files(tmp_path, "left", "right"), address="127.0.0.1:1")


def test_the_package_is_light_until_a_runner_is_asked_for():
    program = (
        "import adaptive_opt.io, sys; print(sorted({'ray', 'kedro', 'torch'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_last_tag_that_fits_says_what_a_node_takes():
    given = {"resnet18": {"cpus": 2}, "second-order": {"gpus": 0.5}, "ssdh": {"gpus": 0.25}}
    found = ResourcesParameters(tags=given)
    tags = {"resnet18", "second-order", "ssdh"}
    assert node_resources(found, tags) == {"cpus": 2, "gpus": 0.25}
    assert node_resources(found, {"adam"}) == {"cpus": 1, "gpus": 1}


def test_faults_of_resources_are_told():
    given = {
        "cpus": 0,
        "gpus": 1.5,
        "tags": {"resnet": {}},
    }  # Ray assigns a part of one GPU, or whole GPUs
    faults = find_faults(parameters(given={"resources": given}))
    assert {f.path for f in faults} == {("resources", n) for n in ("cpus", "gpus", "tags")}
