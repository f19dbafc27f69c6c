"""Only the published CIFAR archive is unpacked; no other pickle is opened."""

import hashlib
import pickle
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters.data import ImageDataParameters
from adaptive_opt.tasks.images import load_images


def load(raw, source, **given):
    return load_images(ImageDataParameters(source=source, **given), raw)


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """Archive of a CIFAR-10 with 30 images, whose checksums torchvision accepts."""

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    rng = np.random.default_rng(0)
    names = ["data_batch_1", "data_batch_2", "test_batch"]
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    contents = {
        name: pickle.dumps(
            {
                "data": rng.integers(0, 256, (10, 3072), dtype=np.uint8),
                "labels": [i % 2 for i in range(10)],
            }
        )
        for name in names
    }
    contents["batches.meta"] = pickle.dumps({"label_names": ["plane", "car"]})
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    archive = tmp_path / "made" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    pairs = [[name, md5(contents[name])] for name in names]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", pairs[:2])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", pairs[2:])
    monkeypatch.setattr(
        datasets.CIFAR10,
        "meta",
        {
            "filename": "batches.meta",
            "key": "label_names",
            "md5": md5(contents["batches.meta"]),
        },
    )
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive.read_bytes()))
    return archive


def test_existing_archive_is_unpacked(tmp_path, small_cifar):
    raw = tmp_path / "raw"
    raw.mkdir()
    small_cifar.rename(raw / small_cifar.name)
    data, classes = load(raw, "cifar10", validation_share=0.2)
    assert classes == ["plane", "car"]
    assert (data.x_train.shape, torch.bincount(data.y_test).tolist()) == ((16, 3, 32, 32), [5, 5])
    (raw / small_cifar.name).unlink()  # the unpacked files suffice
    assert load(raw, "cifar10", validation_share=0.2)[0].digest() == data.digest()


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_failed_download_names_file_url_and_checksum(tmp_path, small_cifar, source):
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[source]
    with pytest.raises(StudyError) as error:
        load(tmp_path / "raw", source)
    for part in (str(tmp_path / "raw" / kind.filename), kind.url, kind.tgz_md5, "source to npz"):
        assert part in str(error.value)
    assert "is missing and cannot be downloaded (<urlopen error no network" in str(error.value)


def test_a_damaged_archive_is_not_unpacked(tmp_path, small_cifar):
    raw = tmp_path / "raw"
    raw.mkdir()
    content = small_cifar.read_bytes()[:-9]
    (raw / small_cifar.name).write_bytes(content)
    with pytest.raises(StudyError, match=rf"is damaged \(its md5 is {md5(content)}\)"):
        load(raw, "cifar10")
    assert [f.name for f in raw.iterdir()] == [small_cifar.name]


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_unverified_pickles_are_not_opened(tmp_path, small_cifar, name):
    marker = tmp_path / "ran"
    folder = small_cifar.parent / "cifar-10-batches-py"
    (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    small_cifar.unlink()
    with pytest.raises(StudyError, match="is missing and cannot be downloaded"):
        load(small_cifar.parent, "cifar10")
    assert not marker.exists()
    pickle.loads((folder / name).read_bytes())  # noqa: S301  the trap does run code
    assert marker.exists()


def test_an_archive_of_other_files_is_refused(tmp_path, small_cifar, monkeypatch):
    changed = [[name, md5(b"other")] for name, _ in datasets.CIFAR10.test_list]
    monkeypatch.setattr(datasets.CIFAR10, "test_list", changed)
    with pytest.raises(StudyError, match="are not the published ones"):
        load(small_cifar.parent, "cifar10")
