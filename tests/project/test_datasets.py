"""Files are written whole or not at all, and read without running anything."""

import pandas as pd
import pytest
import torch
from kedro.io import DatasetError

from adaptive_opt.io.datasets import (
    CSVDataset,
    JSONDataset,
    ParquetDataset,
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
