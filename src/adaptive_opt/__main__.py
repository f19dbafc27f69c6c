"""``python -m adaptive_opt``: the same as ``kedro run``."""

from __future__ import annotations

from pathlib import Path

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main() -> None:
    """Run the study with the options of ``kedro run``."""
    package = Path(__file__).parent.name
    configure_project(package)
    find_run_command(package)()


if __name__ == "__main__":
    main()
