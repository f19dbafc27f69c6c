"""Nodes of ``data``; torch is imported where it is used (see CONTRIBUTING)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from adaptive_opt.parameters.data import RAW, ImageDataParameters, TextDataParameters


def load_images(task: str, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Load and split a task's images; return named tensors and the names of the classes."""
    from adaptive_opt.tasks.images import load_images

    parameters = ImageDataParameters(**given[task])
    data, classes = load_images(parameters, RAW)
    return {**data.to_tensors(), **_parameter_digest(parameters)}, classes


def load_text(task: str, given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Load a task's text; return token ids of each split as named tensors, and the vocabulary."""
    from adaptive_opt.tasks.text import load_text

    parameters = TextDataParameters(**given[task])
    data = load_text(parameters, RAW)
    return {**data.to_tensors(), **_parameter_digest(parameters)}, data.vocabulary


def summarise_images(tensors: dict[str, Any], classes: list[str]) -> pd.DataFrame:
    """Return a table of split sizes, class counts and channel statistics."""
    from adaptive_opt.tasks.images import ImageData, summarise_images

    return _table(summarise_images(ImageData.from_tensors(tensors), classes))


def summarise_text(tensors: dict[str, Any]) -> pd.DataFrame:
    """Return a table of split sizes, vocabulary size and rate of unknown words."""
    from adaptive_opt.tasks.text import TextData, summarise_text

    return _table(summarise_text(TextData.from_tensors(tensors)))


def _parameter_digest(parameters: ImageDataParameters | TextDataParameters) -> dict[str, Any]:
    from adaptive_opt.tasks.fingerprint import as_tensor

    return {"parameters": as_tensor(parameters.digest())}


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, dtype=object)  # keeps counts as integers next to shares
