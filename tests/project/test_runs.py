"""A summary identifies a finished run; one process at a time trains in a folder."""

import subprocess
import sys
import threading

import pandas as pd
import pytest
import torch
from kedro.io import DatasetError

from adaptive_opt.io.datasets import ParquetDataset, RecordDataset, TensorsDataset
from adaptive_opt.io.runs import RunFolder, RunFolderDataset, RunSummaryDataset
from adaptive_opt.pipelines.training.nodes import train


def save(path, digest, value, upto=3):
    """Save history, weights and summary, as the catalog does."""
    parts = [
        (ParquetDataset, "history.parquet", pd.DataFrame({"value": [value]})),
        (TensorsDataset, "weights.safetensors", {"w": torch.tensor([value])}),
        (RecordDataset, "summary.json", {"digest": digest}),
    ]
    for kind, name, content in parts[:upto]:
        kind(filepath=str(path / name)).save(content)


def test_a_finished_run_is_found(tmp_path):
    folder = RunFolderDataset(filepath=str(tmp_path)).load()
    assert folder.finished("a") is None
    save(tmp_path, "a", 1)
    history, weights, summary = folder.finished("a")
    assert history["value"].tolist() == [1] == weights["w"].tolist()
    assert summary == {"digest": "a"}
    assert folder.finished("b") is None


def test_a_run_killed_while_its_results_are_written_does_not_pass_for_the_one_before(tmp_path):
    """Run b is killed before its summary, after run a: the folder has no finished run."""
    folder = RunFolder(tmp_path)
    save(tmp_path, "a", 1)
    folder.forget()
    save(tmp_path, "b", 2, upto=2)
    assert folder.finished("a") is None
    assert folder.finished("b") is None
    folder.forget()  # a missing summary is fine


def test_a_run_that_lacks_one_of_its_files_is_not_finished(tmp_path):
    save(tmp_path, "a", 1)
    wanted = ("weights", "snapshots")
    assert RunFolder(tmp_path).finished("a", wanted) is None
    TensorsDataset(filepath=str(tmp_path / "snapshots.safetensors")).save({})
    _, weights, snapshots, _ = RunFolder(tmp_path).finished("a", wanted)
    assert weights.keys() == {"w"}
    assert snapshots == {}


def test_a_summary_that_is_no_record_is_no_summary(tmp_path, caplog):
    save(tmp_path, "a", 1)
    for text in ("null", "[]", "5", "{", ""):
        (tmp_path / "summary.json").write_text(text)
        assert RunFolder(tmp_path).finished("a") is None
        assert "is damaged" in caplog.text
        caplog.clear()


HOLD = """
import sys
from pathlib import Path
from adaptive_opt.io.runs import RunFolder, RunSummaryDataset

folder = Path(sys.argv[1])
with RunFolder(folder).locked():
    print("locked", flush=True)
    sys.stdin.readline()
(folder / "saving").touch()
RunSummaryDataset(filepath=str(folder / "summary.json")).save({"digest": "a"})
sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in a folder, until it reads a line and saves its summary."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_waits_until_the_first_has_saved(tmp_path, holder, caplog):
    def save_later():
        holder.stdin.write("\n")
        holder.stdin.flush()

    threading.Timer(0.5, save_later).start()
    folder = RunFolder(tmp_path)
    with folder.locked():
        assert (tmp_path / "saving").exists()
        assert holder.poll() is None  # the summary released the lock, not the end of the process
    assert f"process {holder.pid} on" in caplog.text
    assert "waiting until it ends" in caplog.text
    folder.unlock()
    assert {path.name for path in tmp_path.iterdir()} <= {"saving", "summary.json", "training.lock"}


def test_a_process_that_is_killed_leaves_no_lock(tmp_path, holder, caplog):
    holder.kill()
    holder.wait()
    folder = RunFolder(tmp_path)
    with folder.locked():
        assert "waiting" not in caplog.text
    folder.unlock()


def test_an_error_releases_the_lock(tmp_path):
    folder = RunFolder(tmp_path)

    def fail():
        with folder.locked():
            assert folder.holder.startswith("process ")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert folder.holder == "another process"


def test_training_takes_the_lock(tmp_path):
    class Refused(RunFolder):
        def locked(self):
            raise PermissionError

    with pytest.raises(PermissionError):
        train("rr_cond29", "adam", {}, Refused(tmp_path), {}, {}, {}, {})


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    locked = RunFolder(tmp_path / "file" / "run").locked()
    with pytest.raises(DatasetError, match=r"file/run cannot be locked \(Not a directory\)"):
        locked.__enter__()


def test_the_summary_ends_a_run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoint.touch()
    with folder.locked():
        pass
    assert folder.holder.startswith("process ")
    RunSummaryDataset(filepath=str(tmp_path / "summary.json")).save({"digest": "a"})
    assert not folder.checkpoint.exists()
    assert folder.holder == "another process"
    assert RecordDataset(filepath=str(tmp_path / "summary.json")).load() == {"digest": "a"}
