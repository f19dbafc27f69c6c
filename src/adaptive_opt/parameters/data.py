"""The parameters of data sets: where images and text come from and how they are split.

Relative paths are relative to the project's folder, whatever the working directory.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from adaptive_opt.files import PROJECT

__all__ = ["RAW", "ImageDataParameters", "TextDataParameters"]

RAW = PROJECT / "data" / "01_raw"
"""Where downloads are kept."""

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]  # what scikit-learn takes


class _DataParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    path: str | None = None

    def digest(self) -> str:
        """Identifies the parameters, hexadecimal; kept with the data that they made."""
        return hashlib.blake2b(self.model_dump_json().encode(), digest_size=16).hexdigest()

    @property
    def location(self) -> Path | None:
        """``path``, absolute."""
        return None if self.path is None else PROJECT / Path(self.path).expanduser()


class ImageDataParameters(_DataParameters):
    """``data.<task>`` of a task with images.

    Attributes:
        source: ``digits`` (comes with scikit-learn), ``cifar10`` or ``cifar100``
            (downloaded), ``folder`` (image files, a folder a class) or ``npz`` (arrays).
        path: for ``folder`` and ``npz``.
        image_size: height and width to resize to; None: as they are.
        validation_share: share of the training images held out, the same of every class.
        test_share: share of the images that become the test set where the source has none.
        seed: of both splits.
    """

    source: Literal["digits", "cifar10", "cifar100", "folder", "npz"]
    image_size: Count | None = None
    validation_share: Share = 0.1
    test_share: Share = 0.2
    seed: Seed = 0


class TextDataParameters(_DataParameters):
    """``data.<task>`` of a task with text.

    Attributes:
        source: ``python_docs`` (comes with Python), ``penn_treebank`` (downloaded) or
            ``files``.
        path: for ``files``: a folder with ``train.txt``, ``valid.txt`` and ``test.txt``.
        tokenizer: ``whitespace``, or ``basic_english``: lower case, punctuation apart.
        max_vocabulary: number of words known, ``<unk>`` and ``<eos>`` among them; None: no
            limit.
        min_count: a word is known if the training text has it this often.
        seed: of the split of ``python_docs``; the other sources come split.
    """

    source: Literal["python_docs", "penn_treebank", "files"]
    tokenizer: Literal["whitespace", "basic_english"] = "whitespace"
    max_vocabulary: Annotated[int, Field(ge=3, strict=True)] | None = None
    min_count: Count = 1
    seed: Seed = 0
