"""A finished run is known by its summary, and no other results pass for it."""

import pandas as pd
import torch

from adaptive_opt.io.datasets import ParquetDataset, RecordDataset, TensorsDataset
from adaptive_opt.io.runs import RunFolder, RunFolderDataset


def save(path, digest, value, upto=3):
    """As the catalog does: history, weights, summary."""
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
    """Run a, then b is killed before its summary: what is there is not a."""
    folder = RunFolder(tmp_path)
    save(tmp_path, "a", 1)
    folder.forget()
    save(tmp_path, "b", 2, upto=2)
    assert folder.finished("a") is None
    assert folder.finished("b") is None
    folder.forget()  # nothing there is fine


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
