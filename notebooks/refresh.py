"""Execute the notebooks and keep their outputs.

    python notebooks/refresh.py                       # all of them, in place
    python notebooks/refresh.py networks.ipynb        # one
    KEDRO_ENV=paper python notebooks/refresh.py …     # from the results of another scale

What is of one machine or one moment is left out: times, versions, paths.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
LARGEST = 1_000_000
"""Bytes of a notebook that is to be read on the web."""

MACHINE = re.compile(r"/(?:home|root|tmp|work|mnt|srv|var|Users)/\w|[A-Z]:\\\\Users")
"""Paths that say on whose machine something was made."""


async def execute(file: Path, kernel: str = "python3", **start: Any) -> nbformat.NotebookNode:
    """A notebook with the outputs of its cells, executed in its own folder.

    Args:
        file: the notebook.
        kernel: by name.
        **start: how the kernel is started, such as ``env``.
    """
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name=kernel,
        record_timing=False,
        timeout=900,
        resources={"metadata": {"path": str(file.parent)}},
    )
    await client.async_execute(**start)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Why the outputs should not be kept."""
    text = nbformat.writes(notebook)
    outputs = re.sub(r'"image/png": "[^"]*"', "", text)
    found = [f"the path of a machine: {m.group()}…" for m in MACHINE.finditer(outputs)]
    if len(text.encode()) > LARGEST:
        found.append(f"{len(text.encode()):,} bytes, more than {LARGEST:,}")
    return found


def main() -> None:
    """Execute those named on the command line, or all."""
    files = [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))
    for file in files:
        notebook = asyncio.run(execute(file))
        if found := faults(notebook):
            sys.exit(f"{file.name} was left as it is: {'; '.join(found)}")
        nbformat.write(notebook, file)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
