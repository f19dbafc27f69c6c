"""The notebooks run in a copy of the project at the scale smoke."""

import ast
import asyncio
import base64
import io
import json
import os
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

from adaptive_opt.errors import StudyError
from adaptive_opt.io import load_runs
from adaptive_opt.plots.intervals import VERDICT_COLOURS
from adaptive_opt.study import default_arms, tasks_of
from tests.conftest import PROJECT, script
from tests.project.conftest import kedro

NAMES = ("rahimi_recht", "networks", "your_own_optimizer")
FIGURES = {"rahimi_recht": 16, "networks": 14, "your_own_optimizer": 2}
KERNEL = "kedro_adaptive_opt"
LOGIC = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.Try)
LOGIC += (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.BinOp, ast.Compare)


def refresh():
    pytest.importorskip("nbclient", reason="not installed: pip install '.[dev]'")
    pytest.importorskip("ipykernel", reason="not installed: pip install '.[dev]'")
    return script("notebooks", "refresh")


@pytest.fixture(scope="module")
def executed(smoke, tmp_path_factory):
    """Execute all three at once, one in the kernel of ``kedro jupyter lab``."""
    project, execute = smoke[0], refresh().execute
    conf = {p: p.read_bytes() for p in (project / "conf").rglob("*") if p.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(tmp_path_factory.mktemp("jupyter")))
        made = kedro(project, "jupyter", "setup")
        assert made.returncode == 0, made.stdout + made.stderr
        env = {**os.environ, "KEDRO_ENV": "smoke", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

        async def everything():
            return await asyncio.gather(
                *(
                    execute(
                        project / "notebooks" / f"{name}.ipynb",
                        KERNEL if name == "networks" else "python3",
                        env=env,
                    )
                    for name in NAMES
                )
            )

        notebooks = dict(zip(NAMES, asyncio.run(everything()), strict=True))
    assert {p: p.read_bytes() for p in conf} == conf
    return notebooks


def outputs(notebook, kind):
    """Return the outputs of one type, in order."""
    shown = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    found = [o["data"][kind] for o in shown if kind in o.get("data", {})]
    return ["".join(f) if isinstance(f, list) else f for f in found]


def table(html):
    """Return the cells of a table, one list per row."""
    rows = re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_drawn(executed, name):
    pictures = outputs(executed[name], "image/png")
    assert len(pictures) == FIGURES[name]
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert min(image.size) > 200
            assert len(image.convert("L").getcolors(256)) > 15


@pytest.mark.parametrize("half", ["rahimi_recht", "networks"])
def test_tables_are_those_of_the_pipeline(executed, smoke, half):
    folder = smoke[0] / "data" / "08_reporting" / "smoke" / half
    expected = pd.read_csv(folder / "time_to_target.csv")
    tables = [table(html) for html in outputs(executed[half], "text/html")]
    (shown,) = [rows for rows in tables if rows and "median_of_all" in rows[0]]
    columns = [shown[0].index(c) for c in ("task", "arm", "never")]
    assert [[row[i] for i in columns] for row in shown[1:]] == [
        [r.task, r.arm, str(r.never)] for r in expected.itertuples()
    ]
    assert {row[columns[1]] for row in shown[1:]} == {*default_arms()}


@pytest.mark.parametrize(("half", "task"), [("rahimi_recht", "Rahimi"), ("networks", "ResNet")])
def test_the_verdict_is_that_of_the_half(executed, half, task):
    text = "\n".join(outputs(executed[half], "text/markdown"))
    assert re.search(r"on [0-2] of 2 tasks", text)
    assert f"## {task}" in text
    assert ("ResNet" in text) == (half == "networks")
    assert "| SSDH, permuted | SSDH, one a tensor |" in text
    assert "undecided" in text


def test_an_optimizer_of_ones_own_is_tuned_and_judged(executed, smoke):
    project, notebook = smoke[0], executed["your_own_optimizer"]
    said = "\n".join(outputs(notebook, "text/markdown"))
    for task in tasks_of("rahimi_recht"):
        words = "|".join(VERDICT_COLOURS)
        assert re.search(
            rf"- {task.label}: Custom against \w+: \*\*({words})\*\*, speed-up [<>≤≥\d]", said
        )
        searched = project / "data/06_models/smoke" / task.name / "custom/best.json"
        best = json.loads(searched.read_text(encoding="utf-8"))
        assert best["source"] == "search"
        assert {*best["values"]} == {"lr", "beta2"}
        run = project / "data/07_model_output/smoke" / task.name / "custom/summary.json"
        summary = json.loads(run.read_text(encoding="utf-8"))
        assert summary["configuration"]["optimizer"] == "signed_momentum.SignedMomentum"
        for study, used in zip(best["studies"], summary["hyperparameters"], strict=True):
            assert study["values"].items() <= used.items()
    page = project / "data/08_reporting/smoke/custom_verdict/report.html"
    assert "Custom" in page.read_text(encoding="utf-8")
    printed = json.dumps(notebook["cells"])
    assert "rr_cond29, sgdm: finished before" in printed  # it was not trained again
    assert "rr_cond29, custom: finished before" not in printed


def test_what_was_not_trained_is_said(caplog):
    there = {"training.rr_cond29.adam.history"}
    catalog = SimpleNamespace(exists=there.__contains__, load=str.upper)
    tasks = tasks_of("rahimi_recht")[:1]
    assert load_runs(catalog, tasks, ["sgdm", "adam"]) == ["TRAINING.RR_COND29.ADAM.HISTORY"]
    assert "left out: training.rr_cond29.sgdm.history" in caplog.text
    with pytest.raises(StudyError, match=r"nothing has been trained .*rr_cond29\.sgdm"):
        load_runs(catalog, tasks, ["sgdm"])


def committed(name):
    return json.loads((PROJECT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


def code(notebook):
    """Return the code of the executed cells without magics."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.startswith("%%writefile"):
            yield "\n".join(line for line in source.split("\n") if not line.startswith("%"))


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_hold_no_logic(name):
    """Notebooks load, call and show; their only class is the reader's own optimizer."""
    files = sum("%%writefile" in "".join(c["source"]) for c in committed(name)["cells"])
    assert files == (name == "your_own_optimizer")
    known = ("plots", "evidence", "parameters", "io", "study")
    for source in code(committed(name)):
        tree = ast.parse(source)
        found = [type(n).__name__ for n in ast.walk(tree) if isinstance(n, LOGIC)]
        assert found == [], source
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module != "IPython.display":
                assert node.module.startswith(tuple(f"adaptive_opt.{k}" for k in known))
            if isinstance(node, ast.Import):
                assert {a.name for a in node.names} <= {"logging", "os", "sys"}


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_there_and_small(name):
    notebook = committed(name)
    assert len(outputs(notebook, "image/png")) == FIGURES[name]
    assert outputs(notebook, "text/html")
    assert any(word in "".join(outputs(notebook, "text/markdown")) for word in VERDICT_COLOURS)
    shown = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert not [o for o in shown if o["output_type"] == "error"]
    assert not outputs(notebook, "application/vnd.plotly.v1+json")
    module = refresh()
    assert module.faults(module.nbformat.from_dict(notebook)) == []


def test_paths_and_large_outputs_are_refused():
    module = refresh()
    new = module.nbformat.v4
    assert module.faults(new.new_notebook(cells=[new.new_markdown_cell("on /data/07/x")])) == []
    cells = [new.new_markdown_cell("/home/me/x"), new.new_markdown_cell("x" * 1_000_000)]
    assert len(module.faults(new.new_notebook(cells=cells))) == 2
