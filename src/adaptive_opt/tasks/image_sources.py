"""Image sources: read arrays of pixels and labels, not yet split.

Functions import scikit-learn, torchvision and PIL themselves: each source loads its library only.
"""

from __future__ import annotations

import socket
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_opt.errors import StudyError

__all__ = ["ImageArrays", "read_cifar", "read_digits", "read_folder", "read_npz"]

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

TIMEOUT = 60.0  # seconds without data after which a download fails


@dataclass(frozen=True)
class ImageArrays:
    """Pixels and labels of an image source.

    Attributes:
        name: of the source, for error messages.
        x_train, y_train: pixels ``[N, H, W, C]``, uint8, and labels ``[N]``, int64.
        test: pixels and labels of the test set; None if the source has none.
        classes: name of each label.
    """

    name: str
    x_train: Pixels
    y_train: Labels
    test: tuple[Pixels, Labels] | None
    classes: list[str]


def read_digits() -> ImageArrays:
    """The 1,797 handwritten digits of scikit-learn, 8×8, grey."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return ImageArrays("digits", x, digits.target.astype(np.int64), None, list("0123456789"))


def read_cifar(source: str, raw: Path) -> ImageArrays:
    """Read CIFAR-10 or CIFAR-100; download it if it is not in ``raw``.

    The files are pickles, which can run code: no file is opened before the checksums of all files
    match those of torchvision.

    Args:
        source: ``cifar10`` or ``cifar100``.
        raw: folder for downloads.

    Raises:
        StudyError: the archive cannot be downloaded, or it or its files are damaged.
    """
    from torchvision import datasets

    name, kind = {
        "cifar10": ("CIFAR-10", datasets.CIFAR10),
        "cifar100": ("CIFAR-100", datasets.CIFAR100),
    }[source]
    if not _is_verified(kind, raw):
        _download(name, kind, raw)
    if not _is_verified(kind, raw):
        raise StudyError(
            f"{name}: the files in {raw / kind.base_folder} are not the published ones; "
            "delete that folder and run again"
        )
    train, test = kind(raw, train=True), kind(raw, train=False)
    labels = [np.asarray(part.targets, dtype=np.int64) for part in (train, test)]
    return ImageArrays(name, train.data, labels[0], (test.data, labels[1]), list(train.classes))


def _is_verified(kind: Any, raw: Path) -> bool:
    from torchvision.datasets.utils import check_integrity

    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return all(check_integrity(raw / kind.base_folder / file, md5) for file, md5 in files)


def _download(name: str, kind: Any, raw: Path) -> None:
    from torchvision.datasets.utils import calculate_md5, download_and_extract_archive

    archive = raw / kind.filename
    try:
        with _timeout(TIMEOUT):
            download_and_extract_archive(
                kind.url, str(raw), filename=kind.filename, md5=kind.tgz_md5
            )
    except (OSError, HTTPException, RuntimeError, EOFError, tarfile.TarError) as error:
        found = calculate_md5(archive) if archive.is_file() else None
        state = f"is damaged (its md5 is {found})" if found else "is missing"
        raise StudyError(
            f"{name}: {archive} {state} and cannot be downloaded ({error}); put "
            f"{kind.url} there (md5 {kind.tgz_md5}), or set source to npz and path to a "
            "file with the images as arrays"
        ) from error


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Set a timeout for libraries without one; otherwise a silent server blocks for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_folder(path: Path, image_size: int | None) -> ImageArrays:
    """Read image files as RGB, from one folder per class.

    Args:
        path: a folder with ``train/<class>/*`` and optionally ``test/<class>/*`` (all else is
            ignored), or with ``<class>/*``.
        image_size: height and width to resize to, without keeping the aspect ratio; None: all
            images must have the same shape.

    Raises:
        StudyError: there is no class or image, a class has no training images, a file is damaged,
            or shapes differ.
    """
    name = f"image folder {path}"
    # A class may be named "train": only a folder with subfolders is the training set.
    train = path / "train" if _class_folders(path / "train") else path
    classes = _class_folders(train)
    if not classes:
        raise StudyError(f"{name} has no folders train/<class> or <class>; make one for each class")
    x, y = _read_images(train, classes, image_size, None)
    empty = sorted(set(range(len(classes))) - set(y.tolist()))
    if empty:
        raise StudyError(
            f"{name}: {train / classes[empty[0]]} has no image files; add some or remove it"
        )
    test = path / "test"
    if train == path or not test.is_dir():
        return ImageArrays(name, x, y, None, classes)
    foreign = [c for c in _class_folders(test) if c not in classes]
    if foreign:
        raise StudyError(
            f"{name}: test has a class {foreign[0]!r} that train lacks; add it there or remove it"
        )
    return ImageArrays(name, x, y, _read_images(test, classes, image_size, x.shape[1:]), classes)


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _read_images(
    folder: Path, classes: list[str], image_size: int | None, shape: tuple[int, ...] | None
) -> tuple[Pixels, Labels]:
    """Pixels and labels of a folder; all images must have ``shape``, or that of the first."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    labels = {c: i for i, c in enumerate(classes)}
    files = make_dataset(str(folder), labels, extensions=IMG_EXTENSIONS, allow_empty=True)
    images = []
    for file, _ in files:
        image = _read_image(Path(file), image_size)
        shape = shape or image.shape
        if image.shape != shape:
            wanted, found = (f"{s[1]}×{s[0]}" for s in (shape, image.shape))
            raise StudyError(
                f"image file {file} has {found} pixels, but others have {wanted}; "
                "set image_size to resize all"
            )
        images.append(image)
    pixels = np.stack(images) if images else np.zeros((0, *(shape or (0, 0, 3))), np.uint8)
    return pixels, np.array([label for _, label in files], dtype=np.int64)


def _read_image(path: Path, image_size: int | None) -> Pixels:
    from PIL import Image

    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits per channel, mode {file.mode}")
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StudyError(
            f"image file {path} is damaged or has an unsupported format ({error}); "
            "replace or remove it"
        ) from error
    if image_size is not None:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)


def read_npz(path: Path) -> ImageArrays:
    """Read images from arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``.

    Args:
        path: an ``.npz`` file; x ``[N, H, W]`` or ``[N, H, W, C]`` with 1 or 3 channels,
            integers 0 … 255 or floats in [0, 1]; y ``[N]``, integers.

    Raises:
        StudyError: the file is damaged, lacks an array, or an array has another form.
    """
    name = f"image file {path}"
    keys = ("x_train", "y_train", "x_test", "y_test")
    if not zipfile.is_zipfile(path):
        raise StudyError(f"{name} is damaged or not an .npz file; make it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in keys if key in file.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("an entry is not an array")
    except Exception as error:  # zipfile, zlib and numpy raise many types
        raise StudyError(
            f"{name} is damaged or has values that are not numbers ({error}); "
            "make it again with numpy.savez"
        ) from error
    for key in keys:
        if key not in arrays:
            raise StudyError(f"{name} has no array {key}; it needs {', '.join(keys)}")
    x_train, x_test = (_pixels(name, key, arrays[key]) for key in ("x_train", "x_test"))
    y_train, y_test = (_labels(name, key, arrays[key]) for key in ("y_train", "y_test"))
    classes = [str(c) for c in range(len(np.unique(y_train)))]
    return ImageArrays(name, x_train, y_train, (x_test, y_test), classes)


def _pixels(name: str, key: str, x: NDArray[Any]) -> Pixels:
    channels = 1 if x.ndim == 3 else x.shape[-1] if x.ndim == 4 else 0
    if channels not in (1, 3):
        raise StudyError(
            f"{name}: {key} has shape {list(x.shape)}; it must be [N, H, W] or [N, H, W, C] "
            "with 1 or 3 channels"
        )
    if x.dtype.kind not in "iuf":
        raise StudyError(f"{name}: {key} must be integers or floats, not {x.dtype}")
    if x.dtype != np.uint8 and x.size:
        top = 1 if x.dtype.kind == "f" else 255
        low, high = x.min(), x.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise StudyError(f"{name}: {key} has NaN or infinite pixels; replace them")
        if low < 0 or high > top:
            raise StudyError(
                f"{name}: {key} ranges from {low:g} to {high:g}; scale it to floats in [0, 1] "
                "or integers 0 … 255"
            )
        x = x if top == 255 else np.rint(x * 255)
    return x.astype(np.uint8, copy=False).reshape(*x.shape[:3], channels)


def _labels(name: str, key: str, y: NDArray[Any]) -> Labels:
    if y.ndim != 1:
        raise StudyError(f"{name}: {key} has shape {list(y.shape)}; it must be [N]")
    if y.dtype.kind not in "iu":
        raise StudyError(f"{name}: {key} must be integers, not {y.dtype}; number the classes")
    return y.astype(np.int64)
