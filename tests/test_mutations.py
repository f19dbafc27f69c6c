"""Every mutation of ``mutate.py`` replaces text that exists exactly once."""

from __future__ import annotations

import pytest

from tests.conftest import PROJECT
from tests.mutate import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m[0])
def test_mutated_text_occurs_once(mutation):
    _, file, old, new, tests = mutation
    text = (PROJECT / "src" / "adaptive_opt" / file).read_text(encoding="utf-8")
    assert text.count(old) == 1
    assert old != new
    assert (PROJECT / "tests" / tests).exists()
