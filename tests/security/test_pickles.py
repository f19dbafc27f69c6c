"""A pickle that would run a command, in the place of every kind of file that is read."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from kedro.io import DatasetError

from adaptive_opt.engine.checkpoint import Checkpoint
from adaptive_opt.errors import StudyError
from adaptive_opt.files import read_record
from adaptive_opt.io import datasets
from adaptive_opt.io.runs import RunFolder, RunSummaryDataset
from adaptive_opt.io.status.grid import Files, _load
from adaptive_opt.parameters.data import ImageDataParameters, TextDataParameters
from adaptive_opt.tasks.function_files import read_function_file
from adaptive_opt.tasks.images import load_images
from adaptive_opt.tasks.text import load_text


class Trap:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def plain(marker):
    return pickle.dumps(Trap(marker))


def in_numpy(marker):
    """An archive of arrays of objects, all of those names that a reader asks for."""
    buffer = io.BytesIO()
    trap = np.array([Trap(marker)], dtype=object)
    names = ("A", "X", "x_train", "y_train", "x_test", "y_test")
    np.savez(buffer, **dict.fromkeys(names, trap))
    return buffer.getvalue()


def in_torch(marker):
    buffer = io.BytesIO()
    torch.save({"digest": "x", "state": Trap(marker), "A": Trap(marker)}, buffer)
    return buffer.getvalue()


def in_old_torch(marker):
    buffer = io.BytesIO()
    torch.save({"digest": "x", "state": Trap(marker)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


PAYLOADS = {"plain": plain, "numpy": in_numpy, "torch": in_torch, "old torch": in_old_torch}


@pytest.mark.parametrize("make", PAYLOADS.values(), ids=PAYLOADS)
def test_the_traps_are_real(tmp_path, make):
    marker = tmp_path / "sprung"
    content = make(marker)
    if zipfile.is_zipfile(io.BytesIO(content)) and make is in_numpy:
        np.load(io.BytesIO(content), allow_pickle=True)["A"]
    elif make is plain:
        pickle.loads(content)  # noqa: S301
    else:
        torch.load(io.BytesIO(content), weights_only=False)
    assert marker.exists()


READERS = {
    "function.npz": read_function_file,
    "function.pth": read_function_file,
    "checkpoint.pt": lambda f: Checkpoint(f, "x").load(),
    "status.pt": _load,
    "tensors.safetensors": lambda f: datasets.TensorsDataset(filepath=str(f)).load(),
    "shown.safetensors": lambda f: Files(lambda _: f).arrays("x"),
    "history.parquet": lambda f: datasets.ParquetDataset(filepath=str(f)).load(),
    "best.json": lambda f: datasets.RecordDataset(filepath=str(f)).load(),
    "runs.json": lambda f: datasets.JSONDataset(filepath=str(f)).load(),
    "figure.plotly.json": lambda f: datasets.PlotlyDataset(filepath=str(f)).load(),
    "step_x.json": lambda f: datasets.RecordsDataset(folder=str(f.parent)).load(),
    "table.csv": lambda f: datasets.CSVDataset(filepath=str(f)).load(),
    "report.md": lambda f: datasets.TextDataset(filepath=str(f)).load(),
    "summary.json": lambda f: RunFolder(f.parent).finished("x"),
    "shown.json": lambda f: RunSummaryDataset(filepath=str(f)).load(),
    "run.json": read_record,
    "studies.db": lambda f: datasets.StudyStorageDataset(url=f"sqlite:///{f}").load().check(),
    "images.npz": lambda f: load_images(ImageDataParameters(source="npz", path=str(f)), f.parent),
    "train.txt": lambda f: load_text(TextDataParameters(source="files", path=str(f.parent)), f),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("name", READERS)
def test_a_pickle_is_refused_and_not_run(tmp_path, name, payload):
    marker, file = tmp_path / "sprung", tmp_path / "data" / name
    file.parent.mkdir()
    if name == "train.txt":
        for split in ("valid", "test"):
            file.with_name(f"{split}.txt").write_text("a word")
    file.write_bytes(payload(marker))
    try:
        found = READERS[name](file)
    except (StudyError, DatasetError) as error:
        found = str(error)
    # Refused by name or as good as no file; to a table or a text a pickle is letters.
    refused = found in (None, {}) or (isinstance(found, str) and str(file.parent) in found)
    assert refused or name in ("table.csv", "train.txt", "report.md")
    assert not marker.exists()


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_pickle_among_images(tmp_path, payload):
    place, marker = tmp_path / "images", tmp_path / "sprung"
    for name in "ab":
        (place / name).mkdir(parents=True)
        (place / name / "0.png").write_bytes(payload(marker))
    with pytest.raises(StudyError, match=r"image file .*a/0.png is damaged"):
        load_images(ImageDataParameters(source="folder", path=str(place)), tmp_path)
    assert not marker.exists()


def test_every_dataset_of_the_catalog_is_tried():
    import yaml

    from tests.conftest import PROJECT

    text = (PROJECT / "conf" / "base" / "catalog.yml").read_text(encoding="utf-8")
    kinds = {entry["type"].rpartition(".")[2] for entry in yaml.safe_load(text).values()}
    tried = {*datasets.__all__, "RunFolderDataset", "RunSummaryDataset"}
    writes_only = {"MatplotlibDataset"}
    assert kinds - writes_only <= tried
    source = (PROJECT / "tests" / "security" / "test_pickles.py").read_text(encoding="utf-8")
    assert [k for k in kinds & set(datasets.__all__) if f"datasets.{k}(" not in source] == [
        *writes_only & kinds
    ]
