"""The optimizers in somebody else's code, from a wheel, in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile

import pytest

from tests.conftest import PROJECT


def run(*command, **options):
    # Kedro's command line, where a test used it, has put this project's src there.
    given = {"env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}} | options
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, **given
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(PROJECT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", folder, source),
    )
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel):
    """Of an environment with the wheel and what this one has beside the project, no Kedro."""
    folder = wheel.parent / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    found = folder / "bin" / "python"
    run(*(sys.executable, "-m", "pip", "--python", found), "install", "--no-deps", "--quiet", wheel)
    site = run(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(f"{site}/packages.pth", "w", encoding="utf-8") as file:
        file.write(sysconfig.get_path("purelib") + "\n")
    for package in ("kedro", "pandas", "pydantic"):  # imported, they would be an error
        with open(f"{site}/{package}.py", "w", encoding="utf-8") as file:
            file.write("raise ImportError('not here')\n")
    return found


def test_the_wheel_has_types_and_nothing_but_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "adaptive_opt/py.typed" in names
    assert "adaptive_opt/plots/templates/report.html.j2" in names
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"adaptive_opt"}


def test_the_example_of_the_page_trains_a_network_of_torchvision(python, tmp_path):
    page = (PROJECT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", page, re.MULTILINE)
    (example,) = [textwrap.dedent(b) for b in blocks if "torchvision" in b]
    assert len(example.split("\n")) < 16
    script = tmp_path / "example.py"
    watched = example.replace("optimizer.step()", "optimizer.step(); print(loss.item())")
    head = "import torch; torch.set_num_threads(1); torch.manual_seed(0)\n"
    tail = "print(optimizer.hvp_count, adaptive_opt.__file__)\n"
    script.write_text(f"{head}{watched}\nimport adaptive_opt\n{tail}", encoding="utf-8")
    *losses, last = run(python, script, env={"PATH": ""}).split("\n")[:-1]
    products, file = last.split(" ", 1)
    assert file.startswith(str(python.parents[1]))
    assert int(products) == len(losses) // 10
    assert float(losses[-1]) < 0.1 * float(losses[0])
