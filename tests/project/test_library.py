"""The optimizers in a user's code, from a wheel in a new environment."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import kedro
import pytest

from tests.conftest import PROJECT


def run(*command, **options):
    # Kedro's command line may have put this project's src there.
    given = {"env": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}} | options
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, **given
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that ``kedro package`` makes, with the configuration beside it."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(PROJECT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copytree(PROJECT / "conf", source / "conf")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    run(*build, cwd=source)
    run("tar", "--exclude=local/*.yml", "-czf", "dist/conf-adaptive_opt.tar.gz", "conf", cwd=source)
    (made,) = source.glob("dist/*.whl")
    return made


def environment(wheel, name):
    """The Python of an environment with the wheel and all packages of this one."""
    folder = wheel.parents[2] / name
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    found = folder / "bin" / "python"
    run(*(sys.executable, "-m", "pip", "--python", found), "install", "--no-deps", "--quiet", wheel)
    packages = Path(kedro.__file__).parents[1]
    site = run(found, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "packages.pth").write_text(f"{packages}\n", encoding="utf-8")
    return found, Path(site)


@pytest.fixture(scope="module")
def python(wheel):
    """The variables of an environment without Kedro."""
    found, site = environment(wheel, "library")
    for package in ("kedro", "pandas", "pydantic"):  # importing one is an error
        (site / f"{package}.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    return found


def test_the_wheel_writes_into_the_working_directory(wheel, tmp_path):
    found, site = environment(wheel, "study")
    before = {p for p in site.parent.rglob("*") if p.suffix != ".pyc"}
    conf = wheel.with_name("conf-adaptive_opt.tar.gz")
    run(
        *(found, "-m", "adaptive_opt", "--env=smoke", f"--conf-source={conf}"),
        "--namespaces=rr_synthesis.rr_cond29,tuning.rr_cond29.ssdh,training.rr_cond29.ssdh",
        cwd=tmp_path,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "mlflow.db", "mlflow_artifacts"]
    made = tmp_path / "data"
    assert (made / "06_models" / "smoke" / "studies.db").is_file()
    assert (made / "07_model_output" / "smoke" / "rr_cond29" / "ssdh" / "summary.json").is_file()
    after = {p for p in site.parent.rglob("*") if p.suffix != ".pyc"}
    assert {p.name for p in after - before} <= {"__pycache__"}


def test_the_wheel_has_types_and_nothing_but_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "adaptive_opt/py.typed" in names
    assert "adaptive_opt/plots/templates/report.html.j2" in names
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"adaptive_opt"}


def test_the_example_of_the_page_trains_a_network_of_torchvision(python, tmp_path):
    page = (PROJECT / "docs" / "howto" / "your_training_loop.md").read_text(encoding="utf-8")
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
