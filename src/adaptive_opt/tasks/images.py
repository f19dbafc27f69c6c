"""Labelled images, split into training, validation and test sets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters.data import ImageDataParameters

from .fingerprint import as_hex, as_tensor, fingerprint
from .image_sources import ImageArrays, read_cifar, read_digits, read_folder, read_npz

__all__ = ["ImageData", "check_image_source", "load_images", "summarise_images"]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ImageData:
    """Images of one shape with their labels.

    Attributes:
        x_train, x_valid, x_test: pixels, ``[N, C, H, W]``, uint8.
        y_train, y_valid, y_test: labels ``0 … classes − 1``, ``[N]``, int64.
        mean, std: of each channel of the training images, ``[C]``, float32, for pixels in [0, 1].
        identity: the digest; computed if empty.
    """

    x_train: Tensor
    y_train: Tensor
    x_valid: Tensor
    y_valid: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor
    std: Tensor
    identity: str = ""

    def __post_init__(self) -> None:
        if not self.identity:
            object.__setattr__(self, "identity", fingerprint(self._parts()))

    @property
    def classes(self) -> int:
        """Number of classes; each has at least one training image."""
        return int(self.y_train.max()) + 1

    def digest(self) -> str:
        """Hash of all tensors, 32 hexadecimal digits."""
        return self.identity

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name, with ``digest`` (uint8, ``[16]``) and ``classes`` (their number)."""
        known = {"digest": as_tensor(self.identity), "classes": torch.tensor(self.classes)}
        return {**self._parts(), **known}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> ImageData:
        """Inverse of :meth:`to_tensors`; reads the digest, does not compute it."""
        parts = {f.name: tensors[f.name] for f in fields(cls) if f.name != "identity"}
        return cls(**parts, identity=as_hex(tensors["digest"]))

    def _parts(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "identity"}


def check_image_source(parameters: ImageDataParameters) -> None:
    """Check the path of a source without reading any images.

    Raises:
        StudyError: ``path`` is missing or does not exist, or the source has no use for it.
    """
    source, location = parameters.source, parameters.location
    if source not in ("folder", "npz"):
        if location is not None:
            raise StudyError(
                f"path is set, but source {source!r} does not use it; set source to 'folder' or "
                "'npz', or path to null"
            )
        return
    wanted = "a folder of images" if source == "folder" else "an .npz file"
    if location is None:
        raise StudyError(f"source is {source!r}, so path must name {wanted}")
    if not (location.is_dir() if source == "folder" else location.is_file()):
        raise StudyError(f"{location} does not exist or is not {wanted}; correct path")


def load_images(parameters: ImageDataParameters, raw: Path) -> tuple[ImageData, list[str]]:
    """Read the images of a source and split them.

    The validation set is drawn from the training set, as is the test set if the source has none.
    All splits have the same class proportions. The same seed gives the same split.

    Args:
        parameters: source, splits and seed.
        raw: folder for downloads.

    Returns:
        The data, and the name of each class.

    Raises:
        StudyError: the source cannot be read, its arrays do not fit together, or it has too few
            images.
    """
    check_image_source(parameters)
    arrays = _read_source(parameters, raw)
    x, y = arrays.x_train, arrays.y_train
    _check_images(arrays.name, "train", x, y)
    _check_labels(arrays.name, y)
    if arrays.test is None:
        kept, taken = _split(arrays.name, y, "test_share", parameters)
        (x_test, y_test), (x, y) = (x[taken], y[taken]), (x[kept], y[kept])
    else:
        x_test, y_test = arrays.test
        _check_test(arrays)
    if parameters.image_size is not None:
        x, x_test = (resize(part, parameters.image_size) for part in (x, x_test))
    kept, taken = _split(arrays.name, y, "validation_share", parameters)
    x_train = _channels_first(x[kept])
    mean, std = _channel_statistics(arrays.name, x_train)
    data = ImageData(
        x_train,
        torch.from_numpy(y[kept]),
        _channels_first(x[taken]),
        torch.from_numpy(y[taken]),
        _channels_first(x_test),
        torch.from_numpy(y_test),
        mean,
        std,
    )
    return data, arrays.classes


def resize(x: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize images ``[N, height, width, C]`` to ``size`` × ``size`` pixels, with antialiasing.

    Example:
        >>> resize(np.full((1, 4, 6, 3), 7, np.uint8), 2).shape
        (1, 2, 2, 3)
    """
    if x.shape[1:3] == (size, size):
        return x
    parts = torch.from_numpy(x).movedim(-1, 1).split(4096)
    chunks = [interpolate(p, (size, size), mode="bilinear", antialias=True) for p in parts]
    squares: NDArray[np.uint8] = torch.cat(chunks).movedim(1, -1).numpy()
    return squares


def _read_source(parameters: ImageDataParameters, raw: Path) -> ImageArrays:
    if parameters.source == "digits":
        return read_digits()
    if parameters.source in ("cifar10", "cifar100"):
        return read_cifar(parameters.source, raw)
    location = parameters.location
    assert location is not None  # noqa: S101  check_image_source
    if parameters.source == "folder":
        return read_folder(location, parameters.image_size)
    return read_npz(location)


def _check_images(name: str, split: str, x: NDArray[Any], y: NDArray[Any]) -> None:
    if len(x) != len(y):
        raise StudyError(
            f"{name}: x_{split} has {len(x)} images but y_{split} {len(y)} labels; "
            "give each image one label"
        )
    if x.size == 0:
        raise StudyError(f"{name}: the {split} split is empty; give it images")


def _check_labels(name: str, y: NDArray[Any]) -> None:
    labels = np.unique(y)
    if len(labels) < 2:
        raise StudyError(f"{name} has only one class; classification needs at least two")
    if labels[0] != 0 or labels[-1] != len(labels) - 1:
        raise StudyError(
            f"{name}: labels out of range: y_train has {len(labels)} classes, numbered from "
            f"{labels[0]} to {labels[-1]}; number them 0 … {len(labels) - 1}"
        )


def _check_test(arrays: ImageArrays) -> None:
    assert arrays.test is not None  # noqa: S101  the caller checks
    x, y = arrays.test
    _check_images(arrays.name, "test", x, y)
    if x.shape[1:] != arrays.x_train.shape[1:]:
        sizes = [list(a.shape[1:]) for a in (x, arrays.x_train)]
        raise StudyError(
            f"{arrays.name}: test images are {sizes[0]} (height, width, channels) but training "
            f"images {sizes[1]}; make the shapes equal"
        )
    foreign = np.setdiff1d(y, arrays.y_train)
    if len(foreign):
        raise StudyError(
            f"{arrays.name}: labels out of range: y_test has {foreign[0]}, which y_train lacks; "
            "add training images of this class or remove its test images"
        )


def _split(
    name: str, y: NDArray[Any], key: str, parameters: ImageDataParameters
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions of images to keep and to split off, each in the order of the source."""
    from sklearn.model_selection import train_test_split

    share = getattr(parameters, key)
    try:
        kept, taken = train_test_split(
            np.arange(len(y)), test_size=share, stratify=y, random_state=parameters.seed
        )
        if len(np.unique(y[kept])) != len(np.unique(y)):
            raise ValueError("a class would have no training image")
    except ValueError as error:
        raise StudyError(
            f"{name}: {key} {share:g} cannot be split off {len(y)} images ({error}); "
            f"give every class more images or change {key}"
        ) from error
    return np.sort(kept), np.sort(taken)


def _channels_first(x: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _channel_statistics(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, for pixels in [0, 1].

    Integer sums are exact in any order. Chunks avoid an int64 copy of all images.
    """
    total = torch.zeros(x.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for chunk in x.split(1024):
        wide = chunk.to(torch.int64)
        total += wide.sum((0, 2, 3))
        squares += (wide * wide).sum((0, 2, 3))
    count = x.numel() // x.shape[1]
    mean = total.double() / count
    variance = squares.double() / count - mean**2
    constant = (x.amin((0, 2, 3)) == x.amax((0, 2, 3))).nonzero()
    if len(constant):
        raise StudyError(
            f"{name}: channel {int(constant[0])} is the same in all training images, so it "
            "cannot be normalised; leave it out"
        )
    return (mean / 255).float(), (variance.sqrt() / 255).float()


def summarise_images(data: ImageData, classes: list[str]) -> list[dict[str, Any]]:
    """Table of sizes, class counts and channel statistics.

    Args:
        data: the images.
        classes: name of each class.

    Returns:
        Rows with ``split``, ``quantity`` and ``value``.
    """
    channels, height, width = data.x_train.shape[1:]
    rows: list[tuple[str, str, Any]] = [
        ("all", "digest", data.digest()),
        ("all", "classes", data.classes),
        ("all", "channels", channels),
        ("all", "height", height),
        ("all", "width", width),
    ]
    for split in SPLITS:
        labels = getattr(data, f"y_{split}")
        counts = torch.bincount(labels, minlength=data.classes).tolist()
        rows.append((split, "images", len(labels)))
        rows += [(split, f"class {c}", n) for c, n in zip(classes, counts, strict=True)]
    for i in range(channels):
        rows.append(("train", f"channel {i} mean", round(float(data.mean[i]), 6)))
        rows.append(("train", f"channel {i} standard deviation", round(float(data.std[i]), 6)))
    return [dict(zip(("split", "quantity", "value"), row, strict=True)) for row in rows]
