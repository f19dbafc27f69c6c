"""Undocumented interfaces of other packages are used in one module, within tested versions."""

import ast
import re

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from adaptive_opt.errors import StudyError
from adaptive_opt.io import private_interfaces
from tests.conftest import PROJECT

tomllib = pytest.importorskip("tomllib", reason="it is in Python 3.11 and later")
SOURCE = PROJECT / "src" / "adaptive_opt"
ALLOWED = {
    "io/private_interfaces.py",
    # To be moved: kedro-mlflow documents its configuration file, not the class that reads it.
    "io/tracking/hooks.py",
    # Not of Kedro or Ray: tables of Optuna's database, the base class of curvlinops' operators.
    "search/batches.py",
    "curvature/operators.py",
}
UNDOCUMENTED = re.compile(r"kedro_viz\.|kedro_mlflow\.config|(?!adaptive_opt)\w+(\.\w+)*\._[a-z]")
"""kedro-viz documents its commands and no module."""


def imports(text):
    """Dotted names of everything that a module imports, relative imports left out."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private_imports(text):
    return [name for name in imports(text) if UNDOCUMENTED.match(name)]


def test_private_names_are_imported_in_one_module():
    found = {}
    for file in SOURCE.rglob("*.py"):
        if names := private_imports(file.read_text(encoding="utf-8")):
            found[file.relative_to(SOURCE).as_posix()] = names
    assert "io/private_interfaces.py" in found
    assert {name: found[name] for name in found.keys() - ALLOWED} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from kedro.framework.hooks.manager import _create_hook_manager",
        "from kedro_viz.data_access import data_access_manager",
        "import kedro_viz.server",
        "def f():\n    from ray._private import services",
    ],
)
def test_a_private_import_is_found(line):
    assert private_imports(line)


@pytest.mark.parametrize(
    "line",
    ["import kedro_viz", "from kedro.runner import Task", "from .base import _x", "import _thread"],
)
def test_other_imports_are_not(line):
    assert private_imports(line) == []


def test_the_bounds_are_those_of_the_package():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["ray"]
    required = {Requirement(line).name: Requirement(line).specifier for line in lines}
    for package, bounds in private_interfaces.REQUIREMENTS.items():
        assert required[package] == SpecifierSet(bounds), package
        assert {clause.operator for clause in SpecifierSet(bounds)} == {">=", "<"}, package


def test_the_installed_versions_are_within_the_bounds():
    private_interfaces.check_versions()


def test_another_version_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(private_interfaces, "version", lambda _: "0.1")
    said = r"kedro 0.1 is installed, and .* works with >=1.7,<1.8: pip install 'kedro>=1.7,<1.8'"
    with pytest.raises(StudyError, match=said):
        private_interfaces.check_versions()


def test_a_package_that_is_not_installed_is_not_checked(monkeypatch):
    def missing(package):
        raise private_interfaces.PackageNotFoundError(package)

    monkeypatch.setattr(private_interfaces, "version", missing)
    private_interfaces.check_versions()
