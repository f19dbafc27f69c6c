"""Shared fixtures. Data that cannot be shipped is looked for, and its tests are skipped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parents[1]


def script(folder, name):
    """A program of the project that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items):
    """Tests that share what is dear to make go to one process, and it has them first.

    So do those of Ray, one after the other: they count, and kill, its processes by their names.
    Tests marked ``gpu`` are skipped without one.
    """
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))
        shared = {"project", "ray"} & {*getattr(item, "fixturenames", ())}
        group = "project" if shared else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: PROJECT / "tests" / "project" not in item.path.parents)


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are tiny; threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with the published Rahimi–Recht functions."""
    default = PROJECT.parent / "shared" / "reference"
    folder = Path(os.environ.get("ADAPTIVE_OPT_REFERENCE", default))
    if not (folder / "rahimi_recht_cond29.npz").is_file():
        pytest.skip("the published functions are not here; set ADAPTIVE_OPT_REFERENCE to them")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with copies of CIFAR-10 and the Penn Treebank."""
    default = PROJECT.parent / "shared" / "data"
    folder = Path(os.environ.get("ADAPTIVE_OPT_DATA", default))
    if not (folder / "ptb.tar.xz").is_file():
        pytest.skip("the real data are not here; set ADAPTIVE_OPT_DATA to their folder")
    return folder


def install_from_debian(package):
    """Where apt-get may."""
    apt = shutil.which("apt-get")
    if apt and os.geteuid() == 0:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run(
                [apt, "install", "-y", "-qq", "--no-install-recommends", package,
                 "-o", "DPkg::Lock::Timeout=300"],  # another process of these tests may be at it
                capture_output=True, check=False, timeout=600,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )  # fmt: skip


def find_chromium():
    """Its program; where there is none and Debian's can be installed, that one; else a skip."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((p for p in map(shutil.which, names) if p), None)
    if found is None:
        install_from_debian("chromium")
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("Chromium is not installed, and apt-get cannot install it here")
    return found
