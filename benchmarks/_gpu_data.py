"""Data for a session on a GPU, without a download.

The published data if they exist, else random data of the same sizes. A run on random data has the
same cost, but its losses mean nothing; the record says so.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters.data import PROJECT, RAW, ImageDataParameters, TextDataParameters
from adaptive_opt.tasks.images import ImageData, load_images
from adaptive_opt.tasks.text import TextData, load_text

__all__ = ["load", "parameters"]

PIXELS, IMAGES, WORDS, CLASSES = 32, (45_000, 5_000, 10_000), 10_000, 10
TOKENS = {"train": 929_589, "valid": 73_760, "test": 82_430}
"""Sizes of CIFAR-10 with a tenth for validation, and of the Penn Treebank."""


def parameters(name: str, scale: str) -> dict[str, Any]:
    """Read a section of the parameters of ``conf/base``, overridden by ``conf/<scale>``."""
    conf = PROJECT / "conf"
    text = (conf / f"base/parameters_{name}.yml").read_text(encoding="utf-8")
    section: dict[str, Any] = yaml.safe_load(text)[name]
    if scale != "base":
        over = yaml.safe_load((conf / f"{scale}/parameters.yml").read_text(encoding="utf-8"))
        section = _merged(section, over.get(name, {}))
    return section


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {k: _merged(base[k], v) for k, v in over.items()
            if isinstance(v, Mapping) and isinstance(base.get(k), Mapping)}  # fmt: skip
    return {**base, **over, **both}


def load(task: str, scale: str, work: Path) -> tuple[ImageData | TextData, str]:
    """Load the data of a task, with a sentence that describes them.

    Args:
        task: ``resnet18`` or ``transformer``.
        scale: whose parameters say what is learnt.
        work: folder for what is unpacked.
    """
    given = parameters("data", scale)[task]
    if scale != "paper":
        made = _images(given, RAW) if task == "resnet18" else _text(given, RAW)
        return made, f"the data of conf/{scale}: {given['source']}"
    if task == "transformer":
        raw = _unpacked_text(work)
        if (raw / "penn_treebank" / "ptb.train.txt").is_file():
            return _text(given, raw), "Penn Treebank"
        return _random_text(), "random words in the sizes of the Penn Treebank, which is not here"
    try:
        if (RAW / "cifar-10-batches-py").is_dir():
            return _images(given, RAW), "CIFAR-10"
    except StudyError as error:
        print(f"CIFAR-10 cannot be read: {error}")
    packed = _copies() / "cifar10_q75_jpegpack.npz"
    if packed.is_file():
        arrays = _unpacked_images(packed, work)
        given = {**given, "source": "npz", "path": str(arrays), "validation_share": 0.1}
        return _images(given, RAW), "CIFAR-10, a copy compressed by JPEG"
    return _random_images(), "random images in the sizes of CIFAR-10, which is not here"


def _images(given: Mapping[str, Any], raw: Path) -> ImageData:
    return load_images(ImageDataParameters(**given), raw)[0]


def _text(given: Mapping[str, Any], raw: Path) -> TextData:
    return load_text(TextDataParameters(**given), raw)


def _copies() -> Path:
    """Return the folder of copies that the tests of real data also read."""
    beside = [PROJECT / "shared" / "data", PROJECT.parent / "shared" / "data"]
    found = next((p for p in beside if p.is_dir()), beside[0])
    return Path(os.environ.get("ADAPTIVE_OPT_DATA", found))


def _unpacked_text(work: Path) -> Path:
    """Find a folder of downloads with the Penn Treebank."""
    archive = _copies() / "ptb.tar.xz"
    if (RAW / "penn_treebank" / "ptb.train.txt").is_file() or not archive.is_file():
        return RAW
    with tarfile.open(archive) as members:
        for member in (m for m in members if m.isfile() and m.name.endswith(".txt")):
            target = work / "penn_treebank" / Path(member.name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = members.extractfile(member)
            if content is not None:
                target.write_bytes(content.read())
    return work


def _unpacked_images(packed: Path, work: Path) -> Path:
    """Read the arrays of a copy whose images are JPEG files without their common header."""
    path = work / "cifar10.npz"
    if path.is_file():
        return path
    from PIL import Image

    stored = np.load(packed)
    header = stored["header"].tobytes()
    arrays = {}
    for split in ("train", "test"):
        body = stored[f"{split}_bytes"].tobytes()
        ends = np.cumsum(stored[f"{split}_len"].astype(np.int64))
        files = (header + body[a:b] for a, b in zip(np.r_[0, ends[:-1]], ends, strict=True))
        images = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
        arrays[f"x_{split}"], arrays[f"y_{split}"] = np.stack(images), stored[f"y_{split}"]
    work.mkdir(parents=True, exist_ok=True)
    partial = work / f".cifar10.{os.getpid()}.npz"
    np.savez(partial, **arrays)
    partial.replace(path)
    return path


def _random_images() -> ImageData:
    stream = torch.Generator().manual_seed(0)
    splits: list[torch.Tensor] = []
    for n in IMAGES:
        pixels = torch.randint(256, (n, 3, PIXELS, PIXELS), dtype=torch.uint8, generator=stream)
        splits += [pixels, torch.randint(CLASSES, (n,), generator=stream)]
    return ImageData(*splits, torch.full((3,), 0.5), torch.full((3,), 0.29))


def _random_text() -> TextData:
    stream = torch.Generator().manual_seed(0)
    frequency = 1 / torch.arange(1, WORDS + 1, dtype=torch.float64)
    splits = [
        torch.multinomial(frequency, n, replacement=True, generator=stream) for n in TOKENS.values()
    ]
    return TextData(*splits, vocabulary_size=WORDS, sha256="00" * 32)
