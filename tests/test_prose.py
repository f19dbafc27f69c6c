"""The check of the documentation's words finds what it should, with file and line."""

import subprocess
import sys

import pytest

from tests import prose
from tests.conftest import PROJECT

LONG = "word " * (prose.LONGEST + 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "One line.\n\nThe trial is told\nof it.\n",
            ["page.md:3: 'is told of': say who does what"],
        ),
        (f"# Title\n\nShort. {LONG.strip()}.\n", ["page.md:3: 26 words, at most 25"]),
        (f"    {LONG}\n\n| {LONG} |\n\n`{LONG}` ends.\n", []),
        ("- Half is here; " + "word " * 20 + "\n- and half.\n", []),
    ],
)
def test_places_are_found(tmp_path, text, found):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    lines = list(prose.check(page, "page.md"))
    assert len(lines) == len(found)
    assert all(line.startswith(start) for line, start in zip(lines, found, strict=True))


def test_the_program_says_whether_there_is_something_to_mend():
    done = subprocess.run(
        [sys.executable, "tests/prose.py"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "prose: nothing to mend\n")
