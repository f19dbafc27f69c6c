"""Schemas of the parameters ``data``: sources and splits of images and text.

Relative paths start at the project's folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adaptive_opt.files import PROJECT
from adaptive_opt.study import get_task

__all__ = ["RAW", "ImageDataParameters", "TextDataParameters", "data_parameters"]

RAW = PROJECT / "data" / "01_raw"
"""Folder of downloads."""

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]  # range of scikit-learn


class _DataParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    path: str | None = None

    def digest(self) -> str:
        """Return a hexadecimal digest of the parameters, stored with the data."""
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=16).hexdigest()

    @property
    def location(self) -> Path | None:
        """``path`` as an absolute path; None if there is none."""
        return None if self.path is None else PROJECT / Path(self.path).expanduser()


class ImageDataParameters(_DataParameters):
    """``data.<task>`` of an image task.

    Attributes:
        source: ``digits`` (part of scikit-learn), ``cifar10`` or ``cifar100`` (downloaded),
            ``folder`` (image files, one folder a class) or ``npz`` (arrays).
        path: file or folder, for ``folder`` and ``npz``.
        image_size: images are resized to this height and width, in pixels; None: not resized.
        validation_share: share of the training images of each class used for validation.
        test_share: share of the images used for testing, if the source has no test set.
        seed: seed of both splits.
    """

    source: Literal["digits", "cifar10", "cifar100", "folder", "npz"]
    image_size: Count | None = None
    validation_share: Share = 0.1
    test_share: Share = 0.2
    seed: Seed = 0


class TextDataParameters(_DataParameters):
    """``data.<task>`` of a text task.

    Attributes:
        source: ``python_docs`` (part of Python), ``penn_treebank`` (downloaded) or ``files``.
        path: for ``files``: a folder with ``train.txt``, ``valid.txt`` and ``test.txt``.
        tokenizer: ``whitespace``, or ``basic_english``: lower case, punctuation split off or
            removed.
        max_vocabulary: maximum size of the vocabulary, including ``<unk>`` and ``<eos>``; None:
            no limit.
        min_count: minimum number of occurrences of a word in the training text.
        seed: seed of the split of ``python_docs``; the other sources are already split.
    """

    source: Literal["python_docs", "penn_treebank", "files"]
    tokenizer: Literal["whitespace", "basic_english"] = "whitespace"
    max_vocabulary: Annotated[int, Field(ge=3, strict=True)] | None = None
    min_count: Count = 1
    seed: Seed = 0


DATA_MODELS: dict[str, type[ImageDataParameters] | type[TextDataParameters]] = {
    "images": ImageDataParameters,
    "text": TextDataParameters,
}
"""Schemas by family of the task."""


def data_parameters(task: str, section: dict[str, Any]) -> ImageDataParameters | TextDataParameters:
    """Return a task's entry of the section ``data``."""
    return DATA_MODELS[get_task(task).family](**section[task])
