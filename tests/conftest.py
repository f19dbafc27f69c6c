"""Shared fixtures. Tests whose data cannot be shipped are skipped if the data are missing."""

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
    """Import a script of the project as a module."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items):
    """Group tests for pytest-xdist, run tests of commands first, skip ``gpu`` tests without a GPU.

    Tests that share the slow fixture ``project`` run in one process. So do Ray's tests, because
    they count and kill Ray's processes by name. All others have one group a file.
    """
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))
        shared = {"project", "ray"} & {*getattr(item, "fixturenames", ())}
        group = "project" if shared else item.nodeid.split("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: PROJECT / "tests" / "project" not in item.path.parents)


@pytest.fixture(autouse=True)
def _one_thread():
    """Use one thread, because more threads slow down operations on tiny tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the published Rahimi–Recht functions."""
    default = PROJECT.parent / "shared" / "reference"
    folder = Path(os.environ.get("ADAPTIVE_OPT_REFERENCE", default))
    if not (folder / "rahimi_recht_cond29.npz").is_file():
        pytest.skip("no published functions; set ADAPTIVE_OPT_REFERENCE to their folder")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of copies of CIFAR-10 and Penn Treebank."""
    default = PROJECT.parent / "shared" / "data"
    folder = Path(os.environ.get("ADAPTIVE_OPT_DATA", default))
    if not (folder / "ptb.tar.xz").is_file():
        pytest.skip("no real data; set ADAPTIVE_OPT_DATA to their folder")
    return folder


def install_from_debian(package):
    """Install a Debian package if apt-get exists and this process runs as root."""
    apt = shutil.which("apt-get")
    if apt and os.geteuid() == 0:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run(
                [apt, "install", "-y", "-qq", "--no-install-recommends", package,
                 "-o", "DPkg::Lock::Timeout=300"],  # another test process may be installing
                capture_output=True, check=False, timeout=600,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )  # fmt: skip


def find_chromium():
    """Return the path of Chromium, installed first if possible; else skip the test."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((p for p in map(shutil.which, names) if p), None)
    if path is None:
        install_from_debian("chromium")
        path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed, and apt-get cannot install it")
    return path
