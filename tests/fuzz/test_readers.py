"""Whatever bytes a file has, its reader gives what it should or says in a sentence what is wrong.

CI tries a few for each reader, ``make fuzz`` thousands.
"""

import io
import json
import os
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kedro.io import DatasetError
from PIL import Image

from adaptive_opt.engine.checkpoint import Checkpoint
from adaptive_opt.errors import StudyError
from adaptive_opt.files import read_record
from adaptive_opt.io.configuration import LOADER_ARGUMENTS, ConfigurationLoader
from adaptive_opt.io.datasets import ParquetDataset, RecordDataset, RecordsDataset, TensorsDataset
from adaptive_opt.io.runs import RunFolder
from adaptive_opt.io.status.grid import Files
from adaptive_opt.parameters import find_faults
from adaptive_opt.parameters.data import ImageDataParameters, TextDataParameters
from adaptive_opt.search.storage import Storage
from adaptive_opt.search.tune import search
from adaptive_opt.tasks.function_files import read_function_file
from adaptive_opt.tasks.images import load_images
from adaptive_opt.tasks.rr_functions import import_function
from adaptive_opt.tasks.text import load_text
from tests.project.test_parameters import load as committed_parameters
from tests.search.workers import make_search
from tests.tasks.test_functions import save_module  # noqa: F401  a fixture

MANY = int(os.environ.get("ADAPTIVE_OPT_FUZZ", "0"))
"""Examples a reader; 0: as few as CI has time for."""


def fuzz(few=25):
    """Any fixed number of cases; the same ones every time where there are few."""
    return settings(
        max_examples=MANY or few,
        derandomize=not MANY,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "overwrite", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content, damage):
    """A file's bytes after some accidents, each at a place and with bytes of its own."""
    made = bytearray(content)
    for kind, where, what in damage:
        at = int(where * len(made))
        if kind == "flip" and made:
            made[at] ^= what[0] or 1
        elif kind == "cut":
            del made[at:]
        elif kind == "insert":
            made[at:at] = what
        elif kind == "overwrite":
            made[at : at + len(what)] = what
        else:
            made[at:at] = made[at : at + 40]
    return bytes(made)


def bytes_like(content):
    """Mostly a good file with damage, at times anything at all."""
    return st.one_of(DAMAGE.map(lambda d: damaged(content, d)), st.binary(max_size=200))


def check(read, file, errors=StudyError):
    """Read it; an error must be one sentence with the name of the file."""
    try:
        return read()
    except errors as error:
        said = str(error)
    assert str(file) in said
    assert "Traceback" not in said
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# Functions.


def function_npz():
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    arrays = {"A": rng.random((3, 2)), "X": rng.random((5, 2))}
    np.savez(buffer, **arrays, W1=rng.random((4, 2)), W2=rng.random((3, 4)))
    return buffer.getvalue()


def rezipped(content, damage):
    """The members of an archive damaged, the archive itself sound."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for i, name in enumerate(old.namelist()):
            inside = old.read(name)
            new.writestr(name, damaged(inside, damage) if i % len(damage) == 0 else inside)
    return buffer.getvalue()


@pytest.fixture
def function_pth(folder, save_module):  # noqa: F811
    save_module(folder / "good.pth")
    return (folder / "good.pth").read_bytes()


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_function_files(folder, function_pth, suffix):
    good = function_npz() if suffix == ".npz" else function_pth
    file = folder / f"function{suffix}"
    file.write_bytes(good)
    assert len(read_function_file(file)[2]) == 2

    @fuzz(60)
    @given(st.one_of(bytes_like(good), DAMAGE.map(lambda d: rezipped(good, d))))
    def tries(content):
        file.write_bytes(content)
        found = check(lambda: read_function_file(file), file)
        if found is not None:
            a, x, weights = found
            assert a.shape[1] == x.shape[1]
            assert all(np.isfinite(m).all() for m in (a, x, *weights))
        check(lambda: import_function(str(file), 2, 5, 0), file)

    tries()


# Images and text.


def images_npz():
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 4, 4), dtype=np.uint8), np.arange(20) % 2
    np.savez(buffer, x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    return buffer.getvalue()


def test_arrays_of_images(folder):
    good, file = images_npz(), folder / "images.npz"
    given_parameters = ImageDataParameters(source="npz", path=str(file))
    file.write_bytes(good)
    assert load_images(given_parameters, folder)[0].classes == 2

    @fuzz(40)
    @given(st.one_of(bytes_like(good), DAMAGE.map(lambda d: rezipped(good, d))))
    def tries(content):
        file.write_bytes(content)
        check(lambda: load_images(given_parameters, folder), file)

    tries()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_image_files(folder, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    place = folder / f"images-{kind}"
    ending = {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())
    for name in "ab":
        (place / name).mkdir(parents=True)
        for i in range(15):
            one = Image.fromarray(np.roll(pixels, i))
            one.save(place / name / f"{i}.{ending}", format=kind)
    file = place / "a" / f"0.{ending}"
    good = file.read_bytes()
    given_parameters = ImageDataParameters(source="folder", path=str(place), image_size=4)
    assert load_images(given_parameters, folder)[0].classes == 2

    @fuzz(25)
    @given(bytes_like(good))
    def tries(content):
        file.write_bytes(content)
        check(lambda: load_images(given_parameters, folder), file)

    tries()


def test_texts(folder):
    place = folder / "texts"
    place.mkdir()
    good = b"it is so\nit is not so\n" * 3
    for split in ("train", "valid", "test"):
        (place / f"{split}.txt").write_bytes(good)

    @fuzz(60)
    @given(
        st.one_of(
            bytes_like(good), st.text(max_size=80).map(lambda t: t.encode("utf-8", "ignore"))
        ),
        st.sampled_from(["whitespace", "basic_english"]),
    )
    def tries(content, tokenizer):
        (place / "train.txt").write_bytes(content)
        wanted = TextDataParameters(source="files", path=str(place), tokenizer=tokenizer)
        data = check(lambda: load_text(wanted, folder), place)
        if data is not None:
            assert int(data.train.max()) < data.vocabulary_size == len(data.vocabulary)

    tries()


# What runs leave.


def test_checkpoints(folder):
    file = folder / "checkpoint.pt"
    state = {"iteration": 7, "weights": torch.arange(100.0), "names": ["a", "b"]}
    Checkpoint(file, "digest").save(state)
    good = file.read_bytes()

    @fuzz(60)
    @given(bytes_like(good))
    def tries(content):
        file.write_bytes(content)
        found = Checkpoint(file, "digest").load()
        if found is not None:  # damage where nothing of the state is
            assert found["iteration"] == 7
            assert torch.equal(found["weights"], state["weights"])

    tries()


def results(folder):
    place = folder / "run"
    place.mkdir(exist_ok=True)
    frame = pd.DataFrame({"seed": [0, 0, 1, 1], "train_loss": [1.0, 0.5, 2.0, 0.25]})
    ParquetDataset(filepath=str(place / "history.parquet")).save(frame)
    TensorsDataset(filepath=str(place / "weights.safetensors")).save({"w": torch.arange(9.0)})
    return place, frame


def test_what_a_run_left(folder):
    place, frame = results(folder)
    record = RecordDataset(filepath=str(place / "summary.json"))
    record.save({"digest": "x", "loss": 0.1234})
    names = ("history.parquet", "weights.safetensors", "summary.json")
    good = {name: (place / name).read_bytes() for name in names}

    @fuzz(80)
    @given(st.sampled_from(names).flatmap(lambda n: st.tuples(st.just(n), bytes_like(good[n]))))
    def tries(case):
        name, content = case
        (place / name).write_bytes(content)
        found = RunFolder(place).finished("x")
        (place / name).write_bytes(good[name])
        if found is not None:
            history, weights, summary = found
            pd.testing.assert_frame_equal(history, frame)
            assert torch.equal(weights["w"], torch.arange(9.0))
            assert summary == {"digest": "x", "loss": 0.1234}

    tries()


@pytest.mark.parametrize("kind", ["tensors", "table", "records", "record"])
def test_datasets(folder, kind):
    place, _ = results(folder)
    (place / "notes").mkdir(exist_ok=True)
    notes = place / "notes" / "one.json"
    notes.write_text(json.dumps({"a": [1, 2.5, "x"]}))
    record = place / "record.json"
    RecordDataset(filepath=str(record)).save({"a": 1.5})
    file, dataset = {
        "tensors": (
            place / "weights.safetensors",
            TensorsDataset(filepath=str(place / "weights.safetensors")),
        ),
        "table": (
            place / "history.parquet",
            ParquetDataset(filepath=str(place / "history.parquet")),
        ),
        "records": (notes, RecordsDataset(folder=str(notes.parent))),
        "record": (record, RecordDataset(filepath=str(record))),
    }[kind]
    good = file.read_bytes()

    @fuzz(40)
    @given(bytes_like(good))
    def tries(content):
        file.write_bytes(content)
        check(dataset.load, file, (DatasetError, StudyError))
        read_record(file)
        if kind in ("tensors", "record"):
            files = Files(lambda _: file)
            files.record("x"), files.arrays("x"), files.arrays("x", ["w"])

    tries()
    file.write_bytes(good)


def test_studies(folder):
    file = folder / "studies.db"
    before = search(make_search(budget=60.0), Storage(f"sqlite:///{file}"))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    good = file.read_bytes()
    number = iter(range(10**9))

    @fuzz(12)
    @given(DAMAGE.map(lambda d: damaged(good, d)))
    def tries(content):
        other = folder / f"studies-{next(number)}.db"  # connections are kept by name
        other.write_bytes(content)
        found = check(
            lambda: search(make_search(budget=60.0), Storage(f"sqlite:///{other}")), other
        )
        if found is not None:
            columns = ["number", "x", "y", "value", "outcome"]
            pd.testing.assert_frame_equal(found[0][columns], before[0][columns])
        for left in folder.glob(f"{other.name}*"):
            left.unlink()

    tries()


# Parameters.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(tree, path=()):
    if isinstance(tree, dict) and path:
        yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*path, key))
    else:
        yield path


def test_parameters():
    good = committed_parameters("smoke")

    @fuzz(80)
    @given(st.sampled_from(sorted(places(good), key=str)), JSON)
    def tries(path, value):
        given_parameters = json.loads(json.dumps(good))
        *above, last = path
        inner = given_parameters
        for key in above:
            inner = inner[key]
        inner[last] = value
        for fault in find_faults(given_parameters, classes=False):
            assert fault.path[0] == path[0] or fault.message
            assert "\n" not in fault.message

    tries()


def test_files_of_parameters(folder):
    for env in ("base", "local"):
        (folder / "conf" / env).mkdir(parents=True)
    file = folder / "conf" / "base" / "parameters_training.yml"
    good = Path(__file__).parents[2].joinpath("conf/base/parameters_training.yml").read_bytes()

    @fuzz(50)
    @given(
        st.one_of(
            bytes_like(good),
            st.sampled_from(
                [
                    b"training: !!python/object/apply:os.system ['touch executed']",
                    b"training: !!python/name:os.system",
                    b"? [a]: b",
                    b"training: ${oc.env:HOME}",
                    b"training: ${eval:1}",
                ]
            ),
        )
    )
    def tries(content):
        file.write_bytes(content)
        loader = ConfigurationLoader(folder / "conf", **LOADER_ARGUMENTS)
        said = None
        try:
            assert isinstance(loader["parameters"], dict)
        except StudyError as error:
            said = str(error)
        assert said is None or "(parameters) cannot be read; nothing was run" in said

    tries()
    assert not Path("executed").exists()
    assert yaml.safe_load(good)
