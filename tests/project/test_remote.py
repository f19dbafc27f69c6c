"""A catalog on an object store: an S3 server on loopback."""

import json
import logging
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
import torch
from kedro.io import DatasetError

from adaptive_opt.engine.checkpoint import Checkpoint
from adaptive_opt.errors import StudyError
from adaptive_opt.files import at, changed_at, is_remote, on_disk
from adaptive_opt.io.datasets import (
    CSVDataset,
    ParquetDataset,
    RecordDataset,
    TensorsDataset,
    TextDataset,
)
from adaptive_opt.io.runs import RunFolderDataset
from adaptive_opt.io.status.outcome import _summary, path_of
from tests.project.conftest import kedro
from tests.project.warm import run_kedro

ARMS = ("ssdh", "adam")
NAMESPACES = ["rr_synthesis.rr_cond29"]
NAMESPACES += [f"{part}.rr_cond29.{arm}" for part in ("tuning", "training") for arm in ARMS]
GIVEN = ("--env=smoke", "--pipelines=rr_synthesis,tuning,training")
GIVEN += ("--params=training.device=cpu,tuning.source=published",)
PART = ("run", *GIVEN, f"--namespaces={','.join(NAMESPACES)}")


@pytest.fixture(scope="module")
def store():
    """A bucket, and the environment variables for its server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install '.[s3]'")
    moto = pytest.importorskip("moto.server", reason="moto, a server of S3, is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret of nobody",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def here(store, monkeypatch):
    """The bucket for this process, which has already read the environment."""
    import fsspec

    for name, value in store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": store["FSSPEC_S3_ENDPOINT_URL"]})
    return "s3://study"


KEPT = [
    (TensorsDataset, "t.safetensors", {"a": torch.arange(3.0)}),
    (ParquetDataset, "t.parquet", pd.DataFrame({"a": [1, 2]})),
    (CSVDataset, "t.csv", pd.DataFrame({"a": [1, 2]})),
    (RecordDataset, "t.json", {"a": 1}),
    (TextDataset, "t.md", "text"),
]


@pytest.mark.parametrize(("kind", "name", "content"), KEPT)
def test_a_dataset_is_as_on_a_disk(here, kind, name, content):
    data = kind(filepath=f"{here}/{kind.__name__}/{name}")
    assert not data.exists()
    with pytest.raises(DatasetError, match=f"{name} does not exist"):
        data.load()
    data.save(content)
    assert data.exists()
    assert str(kind(filepath=f"{here}/{kind.__name__}/{name}").load()).startswith(str(content)[:5])
    assert is_remote(path_of(data))
    assert changed_at(path_of(data)) > 1e9


@pytest.mark.parametrize(("kind", "name", "content"), [k for k in KEPT if k[1][2:] != "csv"][:2])
def test_damage_is_found_there_too(here, kind, name, content):
    data = kind(filepath=f"{here}/damaged/{name}")
    data.save(content)
    path = path_of(data)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(DatasetError, match=f"{name} is damaged"):
        data.load()


def test_a_checkpoint_is_gone_on_from(here, caplog):
    folder = RunFolderDataset(filepath=f"{here}/run").load()
    assert folder.finished("a") is None
    checkpoint = Checkpoint(folder.checkpoint, "a", 0.0)
    assert checkpoint.load() is None
    checkpoint.save({"w": torch.ones(2)})
    assert torch.equal(Checkpoint(folder.checkpoint, "a").load()["w"], torch.ones(2))
    assert Checkpoint(folder.checkpoint, "b").load() is None
    folder.checkpoint.write_bytes(b"PK damaged")
    assert checkpoint.load() is None
    assert "is damaged" in caplog.text
    checkpoint.remove()
    assert not folder.checkpoint.exists()
    checkpoint.remove()  # a missing file is fine
    folder.forget()


def test_a_store_that_is_away_is_a_sentence(here, monkeypatch):
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(DatasetError, match=r"s3://away/t.json cannot be written \(.*127.0.0.1:1"):
        RecordDataset(filepath="s3://away/t.json").save({"a": 1})


@pytest.fixture
def memory(monkeypatch):
    """A file system that can fail; its URLs have a host, unlike those of S3."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "store", {})

    def fail(method):
        def refuse(*_, **__):
            raise RuntimeError("the token has expired")

        monkeypatch.setattr(MemoryFileSystem, method, refuse)

    return fail


def run_in(url):
    """Return the folder of a finished run, and its checkpoint."""
    for name, content in (("summary.json", {"digest": "a"}), ("history.parquet", KEPT[1][2])):
        kind = RecordDataset if name.endswith("json") else ParquetDataset
        kind(filepath=f"{url}/{name}").save(content)
    TensorsDataset(filepath=f"{url}/weights.safetensors").save({"w": torch.ones(2)})
    folder = RunFolderDataset(filepath=url).load()
    checkpoint = Checkpoint(folder.checkpoint, "a", 0.0)
    checkpoint.save({"w": torch.ones(2)})
    return folder, checkpoint


def test_all_of_a_run_is_in_the_same_place(memory):
    """The first part of a URL is a host for some file systems, a folder for others."""
    folder, checkpoint = run_in("memory://host/run")
    assert folder.finished("a") is not None
    assert {path.name for path in folder.path.iterdir()} == {
        "summary.json", "history.parquet", "weights.safetensors", "checkpoint.pt"
    }  # fmt: skip
    folder.forget()
    assert folder.finished("a") is None
    checkpoint.remove()
    assert checkpoint.load() is None


@pytest.mark.parametrize("method", ["info", "get_file"])
def test_what_cannot_be_reached_is_neither_absent_nor_damaged(memory, method):
    """Otherwise a finished run would be repeated, and a checkpoint overwritten."""
    folder, checkpoint = run_in("memory://host/run")
    memory(method)
    told = r"cannot be reached \(RuntimeError: the token has expired\); run again when it can"
    with pytest.raises(DatasetError, match=rf"summary.json {told}"):
        folder.finished("a")
    with pytest.raises(StudyError, match=rf"checkpoint.pt {told}"):
        checkpoint.load()
    if method == "info":
        with pytest.raises(DatasetError, match="token"):
            RecordDataset(filepath="memory://host/run/summary.json").exists()


def test_what_cannot_be_deleted(memory, caplog):
    folder, checkpoint = run_in("memory://host/run")
    memory("rm_file")
    with pytest.raises(DatasetError, match=r"summary.json cannot be deleted \(.*token has expired"):
        folder.forget()
    checkpoint.remove()
    assert "checkpoint.pt was not deleted" in caplog.text


def test_what_was_made_on_two_file_systems_is_told_of_each(memory, tmp_path):
    on_disk, elsewhere = (
        [tmp_path / "a" / "x.csv", tmp_path / "b" / "x.csv"],
        at("memory://h/x.csv"),
    )
    assert _summary(on_disk) == f"2 in {tmp_path}: a, b"
    assert _summary([elsewhere]) == str(elsewhere)
    for other in (elsewhere, Path("data/y.csv")):
        said = _summary([*on_disk, other])
        assert said.startswith("3 in ")
        assert str(other.parent) in said


@pytest.mark.skipif(sys.platform != "linux", reason="nodes run side by side on Linux alone")
def test_a_study_is_kept_there(project, here, store, tmp_path):
    """By new and by forked processes, with the results of a local disk; found again."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    globals_file = project / "conf" / "smoke" / "globals.yml"
    before = globals_file.read_text()
    disk, url = tmp_path / "data", f"{here}/smoke"
    store = {**store, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}

    def on(data, runner, start):
        globals_file.write_text(f"{before}data_root: {data}\n")
        done = start(project, *PART, f"--runner=adaptive_opt.io.{runner}", **store)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    try:
        on(disk, "StudyRunner", kedro)
        first = on(url, "RayRunner", run_kedro)
        again = on(url, "StudyRunner", run_kedro)
        status = run_kedro(project, "adaptive", "status", *GIVEN, "--json", **store)
    finally:
        globals_file.write_text(before)
    assert f"2 in {url}/07_model_output/smoke/rr_cond29: adam, ssdh" in first
    assert again.count("nothing has changed") == 2
    cells = json.loads(status.stdout)["cells"]
    assert {c["arm"] for c in cells if c["training"]["state"] == "done"} == {*ARMS}
    place = "07_model_output/smoke/rr_cond29/ssdh"
    with on_disk(at(f"{url}/{place}/history.parquet")) as file:
        there = pd.read_parquet(file).drop(columns="device_seconds")
    on_the_disk = pd.read_parquet(disk / place / "history.parquet").drop(columns="device_seconds")
    pd.testing.assert_frame_equal(there, on_the_disk, check_exact=True)
    assert not at(f"{url}/{place}/checkpoint.pt").exists()
    assert "secret of nobody" not in first + again + status.stdout + status.stderr
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as base:
        query = "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'"
        assert base.execute(query).fetchone()[0] == 8  # two places, two arms, two seeds
