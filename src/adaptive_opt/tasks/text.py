"""Text as streams of word numbers, split into training, validation and test sets."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adaptive_opt.errors import StudyError
from adaptive_opt.parameters.data import TextDataParameters

from .fingerprint import as_hex, as_tensor, fingerprint
from .text_sources import SPLITS, TextParts, read_files, read_penn_treebank, read_python_docs

__all__ = ["TextData", "check_text_source", "load_text", "split_words", "summarise_text"]

UNKNOWN, END = "<unk>", "<eos>"
SPECIAL = [UNKNOWN, END]
"""First words of every vocabulary; their positions are their numbers."""


@dataclass(frozen=True)
class TextData:
    """Streams of word numbers, and their vocabulary.

    Attributes:
        train, valid, test: word numbers, ``[N]``, int64.
        vocabulary_size: number of different words, including ``<unk>`` (0) and ``<eos>`` (1).
        sha256: of the source, hexadecimal.
        vocabulary: words in the order of their numbers; empty if only tensors were loaded.
        identity: the digest; computed if empty.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary_size: int
    sha256: str
    vocabulary: list[str] = field(default_factory=list, repr=False)
    identity: str = ""

    def __post_init__(self) -> None:
        if not self.identity:
            identity = fingerprint(self._streams(), self.vocabulary)
            object.__setattr__(self, "identity", identity)

    def digest(self) -> str:
        """Hash of streams and vocabulary, 32 hexadecimal digits."""
        return self.identity

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name.

        The streams, ``vocabulary_size``, ``digest`` (uint8, ``[16]``) and ``source``, the SHA-256
        of the source (uint8, ``[32]``).
        """
        return {
            **self._streams(),
            "vocabulary_size": torch.tensor(self.vocabulary_size),
            "digest": as_tensor(self.identity),
            "source": as_tensor(self.sha256),
        }

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], vocabulary: list[str] | None = None
    ) -> TextData:
        """Inverse of :meth:`to_tensors`; reads the digest, does not compute it."""
        return cls(
            train=tensors["train"],
            valid=tensors["valid"],
            test=tensors["test"],
            vocabulary_size=int(tensors["vocabulary_size"]),
            sha256=as_hex(tensors["source"]),
            vocabulary=vocabulary or [],
            identity=as_hex(tensors["digest"]),
        )

    def _streams(self) -> dict[str, Tensor]:
        return {split: getattr(self, split) for split in SPLITS}


def check_text_source(parameters: TextDataParameters) -> None:
    """Check the path of a source without reading any text.

    Raises:
        StudyError: ``path`` is missing or does not exist, or the source has no use for it.
    """
    source, location = parameters.source, parameters.location
    if source != "files":
        if location is not None:
            raise StudyError(
                f"path is set, but source {source!r} does not use it; set source to 'files', or "
                "path to null"
            )
    elif location is None:
        raise StudyError("source is 'files', so path must name a folder of text files")
    elif not location.is_dir():
        raise StudyError(f"{location} does not exist or is not a folder; correct path")


def load_text(parameters: TextDataParameters, raw: Path) -> TextData:
    """Read the text of a source as streams of word numbers.

    Every line ends with ``<eos>``; lines without words are skipped. The vocabulary comes from the
    training text: ``<unk>``, ``<eos>``, then words by decreasing frequency, ties in alphabetical
    order. All other words are ``<unk>``, as is a ``<unk>`` in the text.

    Args:
        parameters: source, tokenizer and limits of the vocabulary.
        raw: folder for downloads.

    Raises:
        StudyError: the source cannot be read, a split is empty, or no word is frequent enough.
    """
    check_text_source(parameters)
    parts = _read_source(parameters, raw)
    vocabulary = _build_vocabulary(parts, parameters)
    numbers = {word: i for i, word in enumerate(vocabulary)}
    streams = {}
    for split in SPLITS:
        words = split_words(parts.text[split], parameters.tokenizer)
        stream = np.fromiter((numbers.get(word, 0) for word in words), dtype=np.int64)
        if not len(stream):
            raise StudyError(f"{parts.name}: the {split} split is empty; give it text")
        streams[split] = torch.from_numpy(stream)
    return TextData(
        train=streams["train"],
        valid=streams["valid"],
        test=streams["test"],
        vocabulary_size=len(vocabulary),
        sha256=parts.sha256,
        vocabulary=vocabulary,
    )


def _read_source(parameters: TextDataParameters, raw: Path) -> TextParts:
    if parameters.source == "python_docs":
        return read_python_docs(parameters.seed)
    if parameters.source == "penn_treebank":
        return read_penn_treebank(raw)
    location = parameters.location
    assert location is not None  # noqa: S101  check_text_source
    return read_files(location)


def _build_vocabulary(parts: TextParts, parameters: TextDataParameters) -> list[str]:
    counts = Counter(split_words(parts.text["train"], parameters.tokenizer))
    if not counts:
        raise StudyError(f"{parts.name}: the train split is empty; give it text")
    frequent = [
        word
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= parameters.min_count and word not in SPECIAL
    ]
    if not frequent:
        raise StudyError(
            f"{parts.name}: no word of the training text occurs {parameters.min_count} times; "
            "lower min_count"
        )
    return [*SPECIAL, *frequent][: parameters.max_vocabulary]


def split_words(text: str, tokenizer: str) -> Iterator[str]:
    r"""Split text into words, with ``<eos>`` after each line; skip lines without words.

    Args:
        text: any number of lines.
        tokenizer: ``whitespace`` splits at white space. ``basic_english`` is torchtext's: it
            converts to lower case, makes each of ``. , ( ) ! ? '`` a word, removes ``"`` and
            replaces ``; :`` and ``<br />`` by spaces.

    Example:
        >>> list(split_words("It's (not) so;  \n\nReally!", "basic_english"))[:7]
        ['it', "'", 's', '(', 'not', ')', 'so']
    """
    for line in io.StringIO(text, newline=None):
        words = (_basic_english(line) if tokenizer == "basic_english" else line).split()
        if words:
            yield from words
            yield END


_SEPARATED_MARKS: dict[str, str | int | None] = {mark: f" {mark} " for mark in ".,()!?'"}
_MARK_TABLE = str.maketrans({**_SEPARATED_MARKS, ";": " ", ":": " "})


def _basic_english(line: str) -> str:
    return line.lower().replace('"', "").replace("<br />", " ").translate(_MARK_TABLE)


def summarise_text(data: TextData) -> list[dict[str, Any]]:
    """Table of lengths and unknown words: rows with ``split``, ``quantity`` and ``value``."""
    rows: list[tuple[str, str, Any]] = [
        ("all", "digest", data.digest()),
        ("all", "sha256 of the source", data.sha256),
        ("all", "words in the vocabulary", data.vocabulary_size),
    ]
    for split in SPLITS:
        stream = getattr(data, split)
        unknown = float((stream == SPECIAL.index(UNKNOWN)).double().mean())
        rows.append((split, "words", len(stream)))
        rows.append((split, "lines", int((stream == SPECIAL.index(END)).sum())))
        rows.append((split, "share of unknown words", round(unknown, 6)))
    return [dict(zip(("split", "quantity", "value"), row, strict=True)) for row in rows]
