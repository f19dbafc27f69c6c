"""Execute the notebooks and save them with their outputs.

    python notebooks/refresh.py                       # all notebooks, in place
    python notebooks/refresh.py networks.ipynb        # one
    KEDRO_ENV=paper python notebooks/refresh.py …     # with the results of another scale

A notebook with paths of this machine or above the size limit is not saved.
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
"""Largest size of a committed notebook, in bytes."""

MACHINE = re.compile(r"/(?:home|root|tmp|work|mnt|srv|var|Users)/\w|[A-Z]:\\\\Users")
"""Absolute paths that reveal the machine."""


async def execute(file: Path, kernel: str = "python3", **start: Any) -> nbformat.NotebookNode:
    """Execute a notebook in its own folder and return it with its outputs.

    Args:
        file: path of the notebook.
        kernel: name of the Jupyter kernel.
        **start: arguments for starting the kernel, such as ``env``.
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
    """Reasons why a notebook must not be saved; empty if there are none."""
    text = nbformat.writes(notebook)
    outputs = re.sub(r'"image/png": "[^"]*"', "", text)
    found = [
        f"an output has a path of this machine: {m.group()}…" for m in MACHINE.finditer(outputs)
    ]
    if len(text.encode()) > LARGEST:
        found.append(f"{len(text.encode()):,} bytes, more than {LARGEST:,}")
    return found


def main() -> None:
    """Execute the notebooks named on the command line, or all."""
    files = [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))
    for file in files:
        notebook = asyncio.run(execute(file))
        if found := faults(notebook):
            sys.exit(f"{file.name} was not saved: {'; '.join(found)}")
        nbformat.write(notebook, file)
        print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
