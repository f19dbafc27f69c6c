"""Write docs/licences.md: the licence of every package that an installation brings with it.

    python docs/build_licences.py

The names are those that the packages give themselves, as installed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

DOCS = Path(__file__).parent
EXTRAS = ("", "frameworks", "postgresql", "ray", "s3", "zoo")
"""What runs: development tools and notebooks are not part of it."""


def installed(name: str) -> Distribution | None:
    """What is known of a package; None: it is not here."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def needed(package: str, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Packages that another asks for on this machine, with the extras that it asks for."""
    found = installed(package)
    for line in (found.requires or []) if found else []:
        requirement = Requirement(line)
        marks = [{"extra": extra} for extra in extras | {""}]
        if requirement.marker is None or any(requirement.marker.evaluate(m) for m in marks):
            yield canonical(requirement.name), frozenset(requirement.extras)


def canonical(name: str) -> str:
    """A package's name as indexes have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure() -> list[str]:
    """Every package that comes with this one, by name."""
    todo, seen = [("adaptive-opt", frozenset(EXTRAS))], set[tuple[str, frozenset[str]]]()
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            todo += needed(*place)
    names = {name for name, _ in seen} - {"adaptive-opt"}
    return sorted(name for name in names if installed(name))


def licence(name: str) -> str:
    """What a package says of itself: its expression, else its classifiers, else its text."""
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
    """Licences by package."""
    return {name: licence(name) for name in closure()}


def page() -> str:
    """The page."""
    found = rows()
    table = "\n".join(f"| {name} | {said} |" for name, said in found.items())
    return f"""# Licences

This project is under the MIT licence, see `LICENSE`. It contains no code of others; installing it brings these
{len(found)} packages with it, on Linux with Python 3.11 and the extras `frameworks`, `postgresql`, `ray`, `s3` and `zoo`, each under the licence that it names
itself. `python docs/build_licences.py` lists them anew.

| package | licence |
| --- | --- |
{table}
"""


if __name__ == "__main__":
    (DOCS / "licences.md").write_text(page(), encoding="utf-8")
