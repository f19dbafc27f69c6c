"""Files are written atomically and read without running code."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from kedro.io import DatasetError

from adaptive_opt.io.datasets import (
    CSVDataset,
    JSONDataset,
    ParquetDataset,
    RecordDataset,
    RecordsDataset,
    TensorsDataset,
    TextDataset,
)


def test_tensors_round_trip(tmp_path):
    data = TensorsDataset(filepath=str(tmp_path / "deep" / "t.safetensors"))
    assert not data.exists()
    data.save({"W1": torch.arange(6.0).view(2, 3).T, "n": torch.tensor(3)})
    assert data.exists()
    found = data.load()
    assert torch.equal(found["W1"], torch.arange(6.0).view(2, 3).T)
    assert int(found["n"]) == 3


def test_damaged_and_missing_tensors_are_named(tmp_path):
    path = tmp_path / "t.safetensors"
    data = TensorsDataset(filepath=str(path))
    with pytest.raises(DatasetError, match="does not exist"):
        data.load()
    data.save({"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DatasetError, match=r"is damaged .*delete it and run again"):
        data.load()


@pytest.mark.parametrize(
    ("dataset", "name", "good", "bad"),
    [
        (CSVDataset, "t.csv", pd.DataFrame({"a": [1]}), object()),
        (ParquetDataset, "t.parquet", pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [object()]})),
        (JSONDataset, "t.json", {"a": 1}, {"a": object()}),
        (TensorsDataset, "t.safetensors", {"a": torch.ones(2)}, {"a": "no tensor"}),
        (TextDataset, "t.md", "text", 5),
    ],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, dataset, name, good, bad):
    data = dataset(filepath=str(tmp_path / name))
    data.save(good)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(Exception):  # noqa: B017, PT011
        data.save(bad)
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]
    data.save(good)
    assert str(data.load()) == str(good)


FULL_DISK = """
import resource, signal, sys, torch
import pandas as pd
from adaptive_opt.io.datasets import ParquetDataset, TensorsDataset, TextDataset
from kedro.io import DatasetError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = sys.argv[1]
cases = [
    (TensorsDataset, "t.safetensors", lambda n: {"a": torch.ones(n)}),
    (ParquetDataset, "t.parquet", lambda n: pd.DataFrame({"a": torch.rand(n).numpy()})),
    (TextDataset, "t.md", lambda n: "x" * n),
]
for kind, name, make in cases:
    kind(filepath=f"{folder}/{name}").save(make(10))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for kind, name, make in cases:
    data = kind(filepath=f"{folder}/{name}")
    try:
        data.save(make(100_000))
    except DatasetError as error:
        print(name in str(error), "File too large" in str(error), len(next(iter(data.load()))) >= 1
              if name != "t.safetensors" else len(data.load()["a"]) == 10)
"""


def test_a_full_disk_is_a_sentence_and_loses_nothing(tmp_path):
    """The write fails half-way, because of a limit on the size of files."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["True True True"] * 3, done.stdout + done.stderr
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["t.md", "t.parquet", "t.safetensors"]


def test_a_dataset_has_one_version(tmp_path):
    config = {"type": JSONDataset, "filepath": str(tmp_path / "t.json"), "versioned": True}
    with pytest.raises(DatasetError, match="results have one version; remove `versioned: true`"):
        JSONDataset.from_config("t", config)


def test_records_are_read_where_there_are_any(tmp_path):
    data = RecordsDataset(folder=str(tmp_path / "none"), pattern="step_*.json")
    assert data.exists()
    assert data.load() == {}
    for name in ("step_b", "step_a", "other"):
        (tmp_path / f"{name}.json").write_text(f'{{"name": "{name}"}}', encoding="utf-8")
    data = RecordsDataset(folder=str(tmp_path), pattern="step_*.json")
    assert list(data.load()) == ["step_a", "step_b"]
    assert data.load()["step_b"] == {"name": "step_b"}
    with pytest.raises(DatasetError, match="is read-only"):
        data.save({})


def test_previews_of_what_kedro_has_none_for(tmp_path):
    tensors = TensorsDataset(filepath=str(tmp_path / "t.safetensors"))
    tensors.save({"W1": torch.ones(2, 3), "n": torch.tensor(3)})
    assert tensors.preview()["data"] == [["W1", "F32", "[2, 3]"], ["n", "I64", "[]"]]
    report = TextDataset(filepath=str(tmp_path / "report.md"))
    report.save("# Loss\n\n| arm | loss |\n| --- | ---: |\n| Adam | 0.1 |\n")
    assert "<h1>Loss</h1>" in report.preview()
    assert "<td>Adam</td>" in report.preview()
    assert "\n" not in report.preview()
    page = TextDataset(filepath=str(tmp_path / "report.html"))
    page.save(
        "<html><head><title>T</title></head><body>said<script>\nrun()\n</script></body></html>"
    )
    assert page.preview() == "<html><body>said</body></html>"
    (tmp_path / "step.json").write_text('{"a": 1}')
    records = RecordsDataset(folder=str(tmp_path))
    assert records.preview() == '{"step": {"a": 1}}'


KEPT = {
    "t.safetensors": (TensorsDataset, {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(2)}),
    "t.parquet": (ParquetDataset, pd.DataFrame({"seed": [0, 1], "loss": [0.5, 0.25]})),
    "t.json": (RecordDataset, {"value": 0.1, "values": {"lr": 0.5, "list": [1, "x", None]}}),
}


@pytest.mark.parametrize("name", KEPT)
def test_no_flipped_bit_goes_unnoticed(tmp_path, name):
    """One bit in every byte is flipped, and the file is truncated at every byte."""
    kind, content = KEPT[name]
    file = tmp_path / name
    data = kind(filepath=str(file))
    data.save(content)
    assert str(data.load()) == str(content) or name == "t.safetensors"
    good, first = file.read_bytes(), data.load()
    cases = [
        (i, good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :]) for i in range(len(good))
    ]
    cases += [(i, good[:i]) for i in range(len(good))]
    unnoticed = []
    for i, damaged in cases:
        file.write_bytes(damaged)
        try:
            if str(data.load()) != str(first):
                unnoticed.append(i)
        except DatasetError as error:
            if f"{file} is damaged" not in str(error):
                unnoticed.append(i)
    assert unnoticed == []


def test_a_table_with_a_checksum_is_a_table_to_others(tmp_path):
    kind, content = KEPT["t.parquet"]
    kind(filepath=str(tmp_path / "t.parquet")).save(content)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), content)
    content.to_parquet(tmp_path / "t.parquet")  # a table without a checksum is refused
    with pytest.raises(DatasetError, match="the content does not match the checksum"):
        kind(filepath=str(tmp_path / "t.parquet")).load()


KILLED = """
import os, sys
from pathlib import Path
from adaptive_opt.files import write_whole
write_whole(Path(sys.argv[1]), lambda partial: (partial.write_text("half"), os._exit(9)))
"""


def test_what_a_killed_process_left_half_written_goes_with_the_next_writing(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "t.json"])
    # It stays a zombie until it is waited for, which for an orphan may take seconds.
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".t.")
    other = left.with_name(left.name.replace(".t.", ".u."))
    other.write_text("another file's")
    RecordDataset(filepath=str(tmp_path / "t.json")).save({"a": 1})
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "t.json"]
    assert killed.wait() == 9
