"""Write docs/licences.md: the licence of every package that an installation brings.

    python docs/build_licences.py

Licences are named as the installed packages name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

DOCS = Path(__file__).parent
EXTRAS = ("", "frameworks", "postgresql", "ray", "s3", "zoo")
"""Extras to list; those of development and notebooks are left out."""


def installed(name: str) -> Distribution | None:
    """Return the metadata of an installed package, else None."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def needed(package: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the packages and extras that a package requires on this machine."""
    found = installed(package)
    for line in (found.requires or []) if found else []:
        requirement = Requirement(line)
        marks = [{"extra": extra} for extra in extras | {""}]
        if requirement.marker is None or any(requirement.marker.evaluate(m) for m in marks):
            yield canonical(requirement.name), frozenset(requirement.extras)


def canonical(name: str) -> str:
    """Normalise a package's name as indexes do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure() -> list[str]:
    """List the names of all packages that this project requires, directly or not."""
    todo, seen = [("adaptive-opt", frozenset(EXTRAS))], set[tuple[str, frozenset[str]]]()
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            todo += needed(*place)
    names = {name for name, _ in seen} - {"adaptive-opt"}
    return sorted(name for name in names if installed(name))


def licence(name: str) -> str:
    """Return a package's licence: its expression, else its classifiers, else its text."""
    found = installed(name)
    if found is None:
        return "not installed"
    about = found.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    classifiers = about.get_all("Classifier") or []
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]
    named = [n.removesuffix(" License") for n in named if n != "OSI Approved"]
    if named:
        return ", ".join(sorted(set(named)))
    first = (about.get("License") or "").strip().split("\n")[0]
    return first if 0 < len(first) < 60 else "see its files"


def rows() -> dict[str, str]:
    """Return licences by package."""
    return {name: licence(name) for name in closure()}


def page() -> str:
    """Write the page."""
    found = rows()
    packages: dict[str, list[str]] = {}
    for name, said in found.items():
        packages.setdefault(said, []).append(name)
    table = "\n".join(
        f"| {said} | {', '.join(names)} |"
        for said, names in sorted(packages.items(), key=lambda item: (-len(item[1]), item[0]))
    )
    return f"""# Licences

You will see the licence of every package that an installation brings. This project is under the MIT licence, see `LICENSE`, and
contains no code of others. These are the {len(found)} packages on Linux with Python 3.11 and the extras `frameworks`, `postgresql`,
`ray`, `s3` and `zoo`, with the licences that they name themselves. `python docs/build_licences.py` lists them again.

| licence | packages |
| --- | --- |
{table}
"""


if __name__ == "__main__":
    (DOCS / "licences.md").write_text(page(), encoding="utf-8")
