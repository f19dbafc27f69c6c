"""Tests on CIFAR-10 and the Penn Treebank; skipped if the files are missing."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters.data import ImageDataParameters, TextDataParameters
from adaptive_opt.tasks.images import load_images
from adaptive_opt.tasks.text import load_text

SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="session")
def cifar10(real_data, tmp_path_factory):
    """An ``.npz`` of CIFAR-10, from a copy that stores JPEG files without their headers."""
    source = real_data / "cifar10_q75_jpegpack.npz"
    if not source.is_file():
        pytest.skip(f"{source} is missing")
    packed = np.load(source)
    header = packed["header"].tobytes()
    arrays = {}
    for split in ("train", "test"):
        body = packed[f"{split}_bytes"].tobytes()
        ends = np.cumsum(packed[f"{split}_len"].astype(np.int64))
        files = (header + body[a:b] for a, b in zip(np.r_[0, ends[:-1]], ends, strict=True))
        images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        arrays[f"x_{split}"] = np.stack(images)
        arrays[f"y_{split}"] = packed[f"y_{split}"]
    path = tmp_path_factory.mktemp("cifar10") / "cifar10.npz"
    np.savez(path, **arrays)
    return path


def test_cifar10(cifar10, tmp_path):
    parameters = ImageDataParameters(source="npz", path=str(cifar10), validation_share=0.1)
    data, classes = load_images(parameters, tmp_path)
    assert len(classes) == 10
    assert data.x_train.shape == (45_000, 3, 32, 32)
    assert data.x_test.shape == (10_000, 3, 32, 32)
    for split, each in (("train", 4_500), ("valid", 500), ("test", 1_000)):
        assert torch.bincount(getattr(data, f"y_{split}")).tolist() == [each] * 10
    # Published statistics of the training images; JPEG lowers the deviations a little.
    assert data.mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)
    assert data.std.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=4e-3)
    stored = np.load(cifar10)
    assert np.array_equal(data.x_test[17].permute(1, 2, 0).numpy(), stored["x_test"][17])
    # Training and validation images are those of the file, each once and with its label.
    pairs = [(data.x_train, data.y_train), (data.x_valid, data.y_valid)]
    assert sum(int(x.sum(dtype=torch.int64)) for x, _ in pairs) == stored["x_train"].sum(
        dtype=np.int64
    )
    sums = np.concatenate([x.sum((1, 2, 3), dtype=torch.int64) * 10 + y for x, y in pairs])
    wanted = stored["x_train"].sum((1, 2, 3), dtype=np.int64) * 10 + stored["y_train"]
    assert np.array_equal(np.sort(sums), np.sort(wanted))


@pytest.fixture
def penn_treebank(real_data, tmp_path):
    """Download folder with the three files."""
    with tarfile.open(real_data / "ptb.tar.xz") as archive:
        for split in SPLITS:
            member = next(m for m in archive if m.name.endswith(f"ptb.{split}.txt"))
            target = tmp_path / "penn_treebank" / f"ptb.{split}.txt"
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(archive.extractfile(member).read())
    return tmp_path


def check_counts(data):
    assert [len(getattr(data, split)) for split in SPLITS] == [929_589, 73_760, 82_430]
    assert len(data.vocabulary) == data.vocabulary_size == 10_000
    assert data.vocabulary[:5] == ["<unk>", "<eos>", "the", "N", "of"]
    lines = [int((getattr(data, split) == 1).sum()) for split in SPLITS]
    assert lines == [42_068, 3_370, 3_761]
    assert len(torch.unique(data.train)) == 10_000
    assert int((data.test == 0).sum()) == 4_794  # all from "<unk>" in the text


def test_penn_treebank(penn_treebank):
    data = load_text(TextDataParameters(source="penn_treebank"), penn_treebank)
    check_counts(data)
    start = " ".join(data.vocabulary[i] for i in data.test[:8].tolist())
    assert start == "no it was n't black monday <eos> but"


def test_penn_treebank_as_files(penn_treebank):
    for file in (penn_treebank / "penn_treebank").iterdir():
        file.rename(file.with_name(file.name.removeprefix("ptb.")))
    path = str(penn_treebank / "penn_treebank")
    check_counts(load_text(TextDataParameters(source="files", path=path), penn_treebank))


def test_one_wrong_byte_is_reported(penn_treebank):
    path = penn_treebank / "penn_treebank" / "ptb.valid.txt"
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(StudyError) as error:
        load_text(TextDataParameters(source="penn_treebank"), penn_treebank)
    parts = (str(path), "aa0affc06ff7c36e977d7cd49e3839bf", "delete it and run again")
    assert all(part in str(error.value) for part in parts)
