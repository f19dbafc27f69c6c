"""Reading, splitting and checking images of every source."""

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_digits

from adaptive_opt.errors import StudyError
from adaptive_opt.files import PROJECT
from adaptive_opt.io.datasets import CSVDataset, JSONDataset, TensorsDataset
from adaptive_opt.parameters.data import ImageDataParameters
from adaptive_opt.pipelines.data import create_pipeline
from adaptive_opt.study import Task
from adaptive_opt.tasks.images import ImageData, check_image_source, load_images, summarise_images


def load(raw, source, **given):
    return load_images(ImageDataParameters(source=source, **given), raw)


def counts(labels):
    return torch.bincount(labels).tolist()


def test_digits_are_split_by_class_and_keep_their_pixels(tmp_path):
    data, classes = load(tmp_path, "digits", validation_share=0.1, test_share=0.2)
    assert classes == [str(i) for i in range(10)]
    assert [len(y) for y in (data.y_train, data.y_valid, data.y_test)] == [1293, 144, 360]
    assert data.x_train.shape == (1293, 1, 8, 8)
    assert data.x_train.dtype == torch.uint8
    parts = [(data.x_train, data.y_train), (data.x_valid, data.y_valid), (data.x_test, data.y_test)]
    for _, y in parts:
        share = np.array(counts(y)) / len(y)
        assert share == pytest.approx(np.bincount(load_digits().target) / 1797, abs=0.01)
    # Every image is in exactly one split, with its own label; the pixel value 16 becomes 255.
    found = sorted((x.numpy().tobytes(), int(y)) for xs, ys in parts for x, y in zip(xs, ys))  # noqa: B905
    wanted = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert found == sorted(
        (x.tobytes(), int(y)) for x, y in zip(wanted, load_digits().target, strict=True)
    )
    assert wanted.max() == 255


def test_seed_determines_the_split(tmp_path):
    first, again, other = (load(tmp_path, "digits", seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(first.x_valid, again.x_valid)
    assert first.digest() == again.digest() != other.digest()
    assert not torch.equal(first.y_test, other.y_test)


def test_mean_and_deviation_are_those_of_the_training_images(tmp_path, npz):
    data, _ = load(tmp_path, "npz", path=npz())
    pixels = data.x_train.double() / 255
    torch.testing.assert_close(data.mean.double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    deviation = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(data.std.double(), deviation, rtol=1e-6, atol=0)


def test_tensors_round_trip_and_keep_the_stored_digest(tmp_path):
    data, _ = load(tmp_path, "digits")
    tensors = data.to_tensors()
    assert tensors["digest"].shape == (16,)
    assert bytes(tensors["digest"].tolist()).hex() == data.digest()
    assert int(tensors["classes"]) == 10
    again = ImageData.from_tensors(tensors)
    assert again.digest() == data.digest()
    assert all(torch.equal(t, tensors[name]) for name, t in again.to_tensors().items())
    tensors["digest"] = torch.arange(16, dtype=torch.uint8)
    assert ImageData.from_tensors(tensors).digest() == bytes(range(16)).hex()


@pytest.mark.parametrize("name", ["x_train", "y_valid", "x_test", "std"])
def test_digest_depends_on_every_tensor(tmp_path, name):
    data, _ = load(tmp_path, "digits")
    parts = {n: t for n, t in data.to_tensors().items() if n not in ("digest", "classes")}
    parts[name] = parts[name].clone()
    parts[name].view(-1)[0] += 1
    assert ImageData(**parts).digest() != data.digest()


def test_summary_has_counts_and_channel_statistics(tmp_path):
    data, classes = load(tmp_path, "digits")
    rows = {(r["split"], r["quantity"]): r["value"] for r in summarise_images(data, classes)}
    assert rows["train", "images"] == 1293
    assert rows["test", "class 3"] == 37
    assert sum(rows["valid", f"class {i}"] for i in range(10)) == rows["valid", "images"] == 144
    assert rows["train", "channel 0 mean"] == pytest.approx(float(data.mean), abs=1e-6)
    assert rows["all", "digest"] == data.digest()


@pytest.fixture
def npz(tmp_path):
    """Function that writes 60 + 20 random images of 3 classes; ``None`` omits an array."""

    def write(**change):
        rng = np.random.default_rng(0)
        arrays = {
            "x_train": rng.integers(0, 256, (60, 5, 4, 3), dtype=np.uint8),
            "y_train": np.arange(60) % 3,
            "x_test": rng.integers(0, 256, (20, 5, 4, 3), dtype=np.uint8),
            "y_test": np.arange(20) % 3,
            **change,
        }
        path = tmp_path / "images.npz"
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        return str(path)

    return write


def test_npz_is_split_with_channels_first(tmp_path, npz):
    path = npz()
    data, classes = load(tmp_path, "npz", path=path, validation_share=0.2)
    assert classes == ["0", "1", "2"]
    assert (data.x_train.shape, data.x_valid.shape) == ((48, 3, 5, 4), (12, 3, 5, 4))
    assert counts(data.y_train) == [16, 16, 16]
    assert counts(data.y_valid) == [4, 4, 4]
    x_test = np.load(path)["x_test"]
    assert np.array_equal(data.x_test.numpy(), x_test.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
def test_other_dtypes_give_the_same_pixels(tmp_path, npz, dtype):
    path = npz()
    wanted = load(tmp_path, "npz", path=path)[0]
    arrays = dict(np.load(path))
    scale = 255 if np.issubdtype(dtype, np.floating) else 1
    other = npz(**{k: (arrays[k] / scale).astype(dtype) for k in ("x_train", "x_test")})
    assert load(tmp_path, "npz", path=other)[0].digest() == wanted.digest()


def test_grey_images_need_no_channel_axis(tmp_path, npz):
    path = npz()
    arrays = dict(np.load(path))
    flat = npz(**{k: arrays[k][..., 0] for k in ("x_train", "x_test")})
    data, _ = load(tmp_path, "npz", path=flat)
    assert data.x_train.shape == (54, 1, 5, 4)
    assert np.array_equal(data.x_test[:, 0].numpy(), arrays["x_test"][..., 0])


X, Y = np.zeros((60, 5, 4, 3), np.uint8), np.arange(60) % 3


def with_pixel(value):
    x = np.full((60, 5, 4), 0.5)
    x[7, 1, 2] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": None}, "no array x_test"),
        ({"y_train": None}, "no array y_train"),
        ({"x_train": np.zeros((60, 20), np.uint8)}, r"x_train has shape \[60, 20\]"),
        ({"x_train": np.zeros((60, 3, 5, 4), np.uint8)}, "1 or 3 channels"),
        ({"x_test": np.zeros((20, 5, 5, 3), np.uint8)}, r"test images are \[5, 5, 3\]"),
        ({"x_test": np.zeros((20, 5, 4), np.uint8)}, r"test images are \[5, 4, 1\]"),
        ({"y_train": Y[:-1]}, "60 images but y_train 59 labels"),
        ({"y_test": np.arange(19) % 3}, "20 images but y_test 19 labels"),
        ({"x_train": with_pixel(np.nan)}, "NaN or infinite pixels"),
        ({"x_train": with_pixel(np.inf)}, "NaN or infinite pixels"),
        ({"x_train": with_pixel(1.5)}, "from 0.5 to 1.5; scale it"),
        ({"x_train": with_pixel(-0.1)}, "from -0.1 to 0.5; scale it"),
        ({"x_train": X.astype(int) + 256}, "from 256 to 256; scale it"),
        ({"x_train": X.astype(bool)}, "integers or floats, not bool"),
        ({"x_train": X.astype(object)}, "values that are not numbers"),
        ({"y_train": Y / 2}, "y_train must be integers, not float64"),
        ({"y_train": Y[:, None]}, r"y_train has shape \[60, 1\]"),
        ({"y_train": Y - 1}, "labels out of range.* from -1 to 1"),
        ({"y_train": Y + 1}, "labels out of range.* from 1 to 3"),
        ({"y_train": Y * 10**12}, "labels out of range.*number them 0 … 2"),
        ({"y_test": np.full(20, 7)}, "labels out of range: y_test has 7"),
        ({"y_train": Y * 0}, "only one class"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "the test split is empty"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "the train split is empty"),
        ({"x_train": X[:3], "y_train": Y[:3]}, "validation_share 0.1 cannot be split off 3"),
        ({"x_train": X}, "channel 0 is the same in all training images"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, npz, change, message):
    path = npz(**change)
    with pytest.raises(StudyError, match=message) as error:
        load(tmp_path, "npz", path=path)
    assert path in str(error.value)


def test_every_class_needs_a_training_image(tmp_path, npz):
    y = np.r_[np.arange(58) % 2, 2, 2]
    with pytest.raises(StudyError, match="no training image"):
        load(tmp_path, "npz", path=npz(y_train=y), validation_share=0.95)


def test_garbage_and_truncation_are_refused(tmp_path, npz):
    path = tmp_path / npz()
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for content in (b"", b"nonsense" * 99, good[: len(good) // 2], good[:-40], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(StudyError, match="damaged"):
            load(tmp_path, "npz", path=str(path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "npz"}, "path must name an .npz file"),
        ({"source": "folder"}, "path must name a folder"),
        ({"source": "npz", "path": "data/nowhere.npz"}, "data/nowhere.npz does not exist"),
        ({"source": "folder", "path": "pyproject.toml"}, "is not a folder of images"),
        ({"source": "npz", "path": "conf"}, "is not an .npz file"),
        ({"source": "digits", "path": "conf"}, "path is set, but source 'digits' does not use it"),
    ],
)
def test_bad_paths_are_refused_before_reading(tmp_path, given, message):
    with pytest.raises(StudyError, match=message):
        check_image_source(ImageDataParameters(**given))
    with pytest.raises(StudyError, match=message):
        load(tmp_path, **given)


def test_relative_paths_start_at_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ImageDataParameters(source="npz", path="a.npz").location == PROJECT / "a.npz"
    assert ImageDataParameters(source="npz", path="/a.npz").location.as_posix() == "/a.npz"
    assert (PROJECT / "pyproject.toml").is_file()


@pytest.mark.parametrize(
    "given",
    [
        {"source": "mnist"},
        {"sauce": "digits"},
        {"validation_share": 0},
        {"test_share": 1.0},
        {"seed": -1},
        {"image_size": 0},
    ],
)
def test_invalid_parameters_are_refused(given):
    with pytest.raises(ValidationError):
        ImageDataParameters(**{"source": "digits", **given})


@pytest.fixture
def folder(tmp_path):
    """Images of two classes, the second brighter: 10 per class for training, 3 for test."""

    def write(root, n=10, size=(4, 6)):
        for i, name in enumerate(("cat", "dog")):
            (root / name).mkdir(parents=True)
            for j in range(n):
                pixels = np.full((*size, 3), 100 * i, np.uint8)
                pixels[0, 0] = (j, 2 * j, 3 * j)
                Image.fromarray(pixels).save(root / name / f"{j}.png")
        return root

    write(tmp_path / "pets" / "train")
    write(tmp_path / "pets" / "test", 3)
    return tmp_path / "pets"


def test_a_folder_with_a_test_set(tmp_path, folder):
    (folder / "valid" / "bird").mkdir(parents=True)
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    Image.new("L", (6, 4), 9).save(folder / "test" / "dog" / "grey.png")
    data, classes = load(tmp_path, "folder", path=str(folder))
    assert classes == ["cat", "dog"]
    assert data.x_train.shape == (18, 3, 4, 6)
    assert (len(data.y_valid), counts(data.y_test)) == (2, [3, 4])
    bright = data.x_train[:, :, 1:].float().mean((1, 2, 3))
    assert torch.equal(bright, 100.0 * data.y_train)
    assert data.x_test[2, :, 0, 0].tolist() == [2, 4, 6]


@pytest.mark.parametrize("inner", ["train", "."])
def test_a_folder_without_a_test_set(tmp_path, folder, inner):
    (folder / "test").rename(tmp_path / "elsewhere")
    data, classes = load(tmp_path, "folder", path=str(folder / inner), test_share=0.3)
    assert classes == ["cat", "dog"]
    assert (counts(data.y_test), len(data.y_valid), len(data.y_train)) == ([3, 3], 2, 12)


def test_files_of_different_shapes_need_image_size(tmp_path, folder):
    Image.new("RGB", (50, 30), (7, 8, 9)).save(folder / "train" / "dog" / "wide.png")
    with pytest.raises(StudyError, match=r"wide\.png has 50×30 pixels, but others have 6×4"):
        load(tmp_path, "folder", path=str(folder))
    data, _ = load(tmp_path, "folder", path=str(folder), image_size=5)
    assert data.x_train.shape[1:] == data.x_test.shape[1:] == (3, 5, 5)


def test_arrays_are_resized_like_files(tmp_path):
    """Pillow resizes files; pixels of both differ by at most 1."""
    whole, _ = load(tmp_path, "digits")
    half, _ = load(tmp_path, "digits", image_size=4)
    assert half.x_train.shape == (*whole.x_train.shape[:2], 4, 4)
    assert half.x_train.dtype == torch.uint8
    assert torch.equal(half.y_test, whole.y_test)
    for image, found in zip(whole.x_test[:20], half.x_test, strict=False):
        pillow = Image.fromarray(image[0].numpy()).resize((4, 4), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(pillow).astype(int) - found[0].numpy().astype(int)).max() <= 1


def test_bad_folders_are_refused(tmp_path, folder):
    def refused(message):
        with pytest.raises(StudyError, match=message):
            load(tmp_path, "folder", path=str(folder))

    (folder / "test" / "eel").mkdir()
    refused("test has a class 'eel' that train lacks")
    (folder / "test" / "eel").rmdir()
    (folder / "train" / "ant").mkdir()
    refused("ant has no image files")
    (folder / "train" / "ant").rmdir()
    valid = folder / "train" / "cat" / "3.png"
    good = valid.read_bytes()
    for content in (b"", b"no image", good[:50]):
        valid.write_bytes(content)
        refused(r"3\.png is damaged")
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(valid)
    refused(r"3\.png is damaged or has an unsupported format .*more than 8 bits")
    valid.write_bytes(good)
    Image.new("RGB", (9, 4)).save(folder / "test" / "cat" / "z.png")
    refused(r"z\.png has 9×4 pixels")
    for file in (folder / "test").glob("*/*"):
        file.unlink()
    refused("the test split is empty")
    with pytest.raises(StudyError, match="has no folders train/<class> or <class>"):
        load(tmp_path, "folder", path=str(folder / "train" / "cat"))


def test_the_pipeline_saves_data_classes_and_summary(tmp_path, monkeypatch):
    tasks = [Task("pictures", "Pictures", "images")]
    monkeypatch.setattr("adaptive_opt.pipelines.data.pipeline.tasks_of", lambda *_: tasks)
    pipeline = create_pipeline()
    assert {"pictures", "sgdm", "ladder"} <= pipeline.nodes[0].tags
    catalog = DataCatalog(
        {
            "params:data": MemoryDataset({"pictures": {"source": "digits"}}),
            "data.pictures.tensors": TensorsDataset(filepath=str(tmp_path / "d.safetensors")),
            "data.pictures.classes": JSONDataset(filepath=str(tmp_path / "c.json")),
            "data.pictures.summary": CSVDataset(
                filepath=str(tmp_path / "s.csv"), save_args={"index": False}
            ),
        }
    )
    SequentialRunner().run(pipeline, catalog)
    data = ImageData.from_tensors(catalog.load("data.pictures.tensors"))
    assert data.digest() == load(tmp_path, "digits")[0].digest()
    assert catalog.load("data.pictures.classes") == [str(i) for i in range(10)]
    assert "train,images,1293\n" in (tmp_path / "s.csv").read_text()
    assert list(pd.read_csv(tmp_path / "s.csv").columns) == ["split", "quantity", "value"]
