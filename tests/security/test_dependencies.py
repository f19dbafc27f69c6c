"""What is installed beside the project: known vulnerabilities, and licences."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.conftest import PROJECT, script


def audit(tmp_path, *requirements):
    file = tmp_path / "requirements.txt"
    file.write_text("\n".join(requirements))
    command = [sys.executable, "-m", "pip_audit", "--strict", "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--timeout", "5", "--requirement", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def listed_on(page):
    """Licences by package."""
    rows = re.findall(r"^\| (.*) \| (.*) \|$", page, re.M)
    return {name: licence for licence, names in rows for name in names.split(", ")}


def test_no_known_vulnerability(tmp_path):
    """Where the database can be asked: it must know those of a package that is known for them."""
    pytest.importorskip("pip_audit", reason="not installed: pip install '.[dev]'")
    code, said = audit(tmp_path, "requests==2.0.0")
    if not re.search(r"CVE-|PYSEC-|GHSA-", said):
        pytest.skip(
            "no database of vulnerabilities can be asked from here; run make audit elsewhere"
        )
    assert code == 1
    frozen = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    lines = subprocess.run(frozen, capture_output=True, text=True, check=True).stdout.split("\n")
    code, said = audit(tmp_path, *[line for line in lines if "==" in line])
    assert code == 0, said


def test_the_licences_of_all_dependencies_are_listed():
    """Those that the project names itself, and what they say now; of the rest versions differ."""
    page = (PROJECT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = listed_on(page)
    made = script("docs", "build_licences")
    try:
        version("adaptive_opt")
    except PackageNotFoundError:
        pytest.skip("the project is not installed, and with it not known what it needs")
    direct = {
        n for n, _ in made.needed("adaptive-opt", frozenset(made.EXTRAS)) if made.installed(n)
    }
    assert len(direct) > 20
    # An old installation is no reason to fail: what is named in pyproject.toml counts.
    named = (PROJECT / "pyproject.toml").read_text(encoding="utf-8").lower()
    assert {n for n in direct if n.partition("[")[0] in named} <= {*listed, "adaptive-opt"}
    for name in direct & {*listed}:
        assert listed[name] == made.licence(name), name


def test_no_dependency_forbids_what_its_licence_here_allows():
    page = (PROJECT / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = listed_on(page)
    assert len(listed) > 100
    viral = {n for n, said in listed.items() if re.search(r"(?<!L)GPL|AGPL|GNU General", said)}
    assert {n for n in viral if "Artistic" not in listed[n]} == set()  # one has a choice there
