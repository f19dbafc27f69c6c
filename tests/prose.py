"""Check the words of the documentation: ``python tests/prose.py``, part of ``make lint``.

Prints ``file:line: phrase: what to write instead`` for each banned phrase and each sentence of
more than :data:`LONGEST` words, and ends with exit code 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

CHECKED = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "docs/*.py"),
    *("src/**/*.py", "conf/**/*.yml"),
)
"""Files to check."""

LONGEST = 25
"""Words of a sentence of a Markdown page."""

BANNED = {
    r"is (?:told|said|asked) (?:of|in|by|how|what)": "say who does what",
    r"(?:are|is) asked of": "name the caller: X calls Y",
    r"for want of": "because there is no",
    r"whatever|whichever|whoever": "any, or name the cases",
    r"of which": "begin a new sentence",
    r"is (?:there|gone|away)\b": "exists, is deleted, is down",
    r"(?:goes|going|gone) on with": "continues",
    r"taken for (?:dead|absent|sound)": "counts as",
    r"made anew|trained anew|searched anew|drawn anew": "made again",
    r"put on record": "recorded",
    r"holds? nothing up": "does not block",
    r"what is asked|what it is told": "name the thing",
    r"word for word(?!,)|by its own words": "verbatim",
    r"in earnest": "really, or leave it out",
    r"one's own": "your own",
    r"is no more\b|has gone there": "say what happens",
    r"told (?:in|to) (?:a sentence|seconds|the hundredth)": "reported",
    r"(?:refused|said|named) (?:in|with) (?:a|one) sentence": "an error says",
    r"broken off": "interrupted",
    r"does likewise|; likewise": "say it again, or: the same",
    r"tells of\b": "reports",
    r"takes? up again|is taken up": "continues",
}
"""Phrases, as regular expressions, and what to write instead."""


def main() -> int:
    """Print what to mend; the number of places, at most 1."""
    found = [line for file in files() for line in check(file)]
    print("\n".join(found) or "prose: nothing to mend")
    return min(1, len(found))


def files() -> list[Path]:
    """List the files to check."""
    return sorted({path for pattern in CHECKED for path in PROJECT.glob(pattern)})


def check(file: Path, name: str | None = None) -> Iterator[str]:
    """Yield a line for each banned phrase, and on pages for each sentence that is too long."""
    name = name or file.relative_to(PROJECT).as_posix()
    text = file.read_text(encoding="utf-8")
    for pattern, instead in BANNED.items():
        flexible = pattern.replace(" ", r"\s+")
        for match in re.finditer(rf"\b(?:{flexible})", text, re.I):
            number = text.count("\n", 0, match.start()) + 1
            said = " ".join(match[0].split())
            yield f"{name}:{number}: {said!r}: {instead}"
    if file.suffix == ".md":
        for number, sentence in sentences(text):
            words = len(re.findall(r"[^\W\d_][\w’'-]*", sentence))
            if words > LONGEST:
                yield f"{name}:{number}: {words} words, at most {LONGEST}: {sentence[:60]}…"


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a page's paragraphs and lists, with the line each begins in.

    A semicolon or a colon ends a sentence, too. Code blocks, tables, headings, pictures and
    formulae are left out. Code counts as one word, brackets and addresses of links as none.
    """
    text = re.sub(r"^```.*?^```", blank, text, flags=re.M | re.S)
    text = re.sub(r"^(?: {4,}|\||#|!\[|<).*", blank, text, flags=re.M)
    text = re.sub(r"`[^`]*`", lambda m: "x" + blank(m)[1:], text)
    text = re.sub(r"\]\([^)]*\)", blank, text)
    text = re.sub(r"\([^()]*\)", blank, text)
    for part in re.finditer(r"(?:(?!\n\n|\n\s*[-*] |\n\s*\d+\. ).)+", text, re.S):
        for match in re.finditer(r".+?(?:[.:;?!](?=\s)|\Z)", part[0], re.S):
            sentence = match[0].strip()
            start = part.start() + match.start() + len(match[0]) - len(match[0].lstrip())
            if sentence:
                yield text.count("\n", 0, start) + 1, " ".join(sentence.split())


def blank(match: re.Match[str]) -> str:
    """Keep the lines and the length of what is left out."""
    return re.sub(r"[^\n]", " ", match[0])


if __name__ == "__main__":
    sys.exit(main())
