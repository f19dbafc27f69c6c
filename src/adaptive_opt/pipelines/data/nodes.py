"""Nodes of ``data``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from adaptive_opt.parameters.data import RAW, ImageDataParameters, TextDataParameters


def load_images(task: str, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A task's images, split, as named tensors, and the names of their classes."""
    from adaptive_opt.tasks.images import load_images

    parameters = ImageDataParameters(**given[task])
    data, classes = load_images(parameters, RAW)
    return {**data.to_tensors(), **_made_with(parameters)}, classes


def load_text(task: str, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A task's text as streams of numbered words, as named tensors, and the words."""
    from adaptive_opt.tasks.text import load_text

    parameters = TextDataParameters(**given[task])
    data = load_text(parameters, RAW)
    return {**data.to_tensors(), **_made_with(parameters)}, data.vocabulary


def summarise_images(tensors: dict[str, Any], classes: list[str]) -> pd.DataFrame:
    """Sizes of splits and classes, and the channels' statistics."""
    from adaptive_opt.tasks.images import ImageData, summarise_images

    return _table(summarise_images(ImageData.from_tensors(tensors), classes))


def summarise_text(tensors: dict[str, Any]) -> pd.DataFrame:
    """Sizes of splits and vocabulary, and how much of the text is unknown."""
    from adaptive_opt.tasks.text import TextData, summarise_text

    return _table(summarise_text(TextData.from_tensors(tensors)))


def _made_with(parameters: ImageDataParameters | TextDataParameters) -> dict[str, Any]:
    from adaptive_opt.tasks.fingerprint import as_tensor

    return {"parameters": as_tensor(parameters.digest())}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, dtype=object)  # else a count becomes 1257.0 beside a share
