"""Part of ``gpu_session.py``: runs the tests marked ``gpu`` and saves each outcome at once."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from _gpu_record import write_json


class Outcomes:
    """Pytest plugin that saves the outcome of every test as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest for set-up, call and tear-down of each test."""
        if report.when == "call" or report.outcome != "passed":
            said = str(report.longrepr or "").strip().splitlines()
            outcome = {"outcome": report.outcome, "seconds": round(report.duration, 3)}
            self.found[report.nodeid] = outcome | ({"said": said[-1]} if said else {})
            write_json(self.path, self.found)


def main() -> None:
    """Command line, for ``gpu_session.py``."""
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("--outcomes", required=True, type=Path)
    line.add_argument("--passed", type=json.loads, default=[], help="tests to leave out, as JSON")
    options = line.parse_args()
    left_out = [word for test in options.passed for word in ("--deselect", test)]
    # Only the files that have any: others need packages that a machine with a GPU may lack.
    files = [
        str(path)
        for path in sorted(Path("tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    given = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--no-header", *left_out, *files]
    raise SystemExit(pytest.main(given, plugins=[Outcomes(options.outcomes)]))


if __name__ == "__main__":
    main()
