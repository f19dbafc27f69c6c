"""The pages for users in a headless Chromium, which can reach only this machine.

Pictures of them are left in ``build/screenshots``.
"""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from adaptive_opt.io.tracking.hooks import RUNS_PAGE
from tests.conftest import PROJECT, find_chromium
from tests.project.conftest import KEDRO

PIPELINES = {"data", "rr_synthesis", "tuning", "training", "analysis"}
LAYERS = ["03_primary", "05_model_input", "06_models", "07_model_output", "08_reporting"]
FIGURE = "analysis.rahimi_recht.median_loss_figure"
WAIT = 120  # seconds, for elements that should appear in a few


@pytest.fixture(scope="module")
def browser():
    reason = "not installed: pip install '.[dev]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    chromium = find_chromium()
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


class Visit:
    """A page, its requests to other hosts, and its errors."""

    def __init__(self, browser):
        self.page = browser.new_page(viewport={"width": 1400, "height": 900})
        self.page.set_default_timeout(1000 * WAIT)
        self.asked, self.complaints = [], []
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text)
        )

    def _note(self, request):
        if not request.url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
            self.asked.append(request.url)

    def picture(self, name):
        folder = PROJECT / "build" / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(500)  # for animations
        self.page.screenshot(path=folder / f"{name}.png")

    def node(self, name):
        return self.page.locator(f'.pipeline-node[data-node-fullname="{name}"]')

    def open(self, name):
        """Click a node of kedro-viz, also outside the window."""
        self.node(name).wait_for(state="attached")
        self.node(name).dispatch_event("click")

    def nodes(self):
        found = self.page.locator(".pipeline-node")
        return set(found.evaluate_all("nodes => nodes.map(node => node.dataset.nodeFullname)"))


@pytest.fixture
def visit(browser):
    made = Visit(browser)
    yield made
    made.page.close()


@contextlib.contextmanager
def serving(folder, command, answers="/"):
    """Run a server on a free port, ``{port}`` in its command, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": "", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    process = subprocess.Popen(
        [part.format(port=port) for part in command], cwd=folder, env=env, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + WAIT
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url + answers, timeout=WAIT).close()  # noqa: S310
                break
            assert process.poll() is None, f"{command} ended"
            assert time.monotonic() < until, f"{command} does not answer"
            time.sleep(0.2)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def show_figure(visit):
    """Open a figure of the analysis in kedro-viz and see it drawn."""
    for name in ("analysis", "analysis.rahimi_recht", FIGURE):
        visit.open(name)
    lines = visit.page.locator(".pipeline-metadata .scatterlayer path.js-line")
    lines.first.wait_for(state="attached")
    assert lines.count() >= 2 * 6


def test_kedro_viz_opens_pipeline_by_pipeline(smoke, visit):
    command = [*KEDRO, "viz", "run", "--env=smoke", "--no-browser", "--port={port}"]
    with serving(smoke[0], command, "/api/main") as url:
        visit.page.goto(url)
        visit.node("analysis").wait_for(state="attached")
        visit.picture("kedro_viz")
        assert visit.nodes() == PIPELINES
        layers = visit.page.locator(".pipeline-layer-name").all_inner_texts()
        assert layers == LAYERS
        visit.open("training")
        visit.node("training").wait_for(state="detached")
        tasks = {f"training.{t}" for t in ("rr_cond29", "rr_cond15099", "resnet18", "transformer")}
        assert visit.nodes() == PIPELINES - {"training"} | tasks
        visit.open("training.rr_cond29")
        visit.open("training.rr_cond29.adam")
        visit.node("training.rr_cond29.adam.history").wait_for(state="attached")
        visit.picture("kedro_viz_training")
        visit.open("training.rr_cond29.adam.history")
        panel = visit.page.locator(".pipeline-metadata")
        panel.locator("table >> text=train_loss").wait_for(state="attached")
        assert "data/07_model_output/smoke/rr_cond29/adam/history.parquet" in panel.inner_text()
        visit.open("train")
        panel.locator("text=src/adaptive_opt/pipelines/training/nodes.py").wait_for()
        assert panel.locator("text=Show Code").count() == 1
        show_figure(visit)
        visit.picture("kedro_viz_figure")
    assert visit.asked == []
    assert visit.complaints == []


@pytest.fixture(scope="module")
def site(smoke, tmp_path_factory):
    """The folder of the static site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-X", "importtime", "-m", "kedro", "viz", "build"]
    done = subprocess.run(
        [*command, "--env=smoke", f"--into={folder}"], cwd=smoke[0], capture_output=True,
        text=True, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| kedro_viz" in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.endswith("| torch")]
    return folder


def test_everything_can_be_looked_at(site):
    """A preview of every table, figure, record and report; the source of every node."""
    graph = json.loads((site / "api" / "main").read_bytes())
    told = {
        n["id"]: json.loads((site / "api" / "nodes" / n["id"]).read_bytes()) for n in graph["nodes"]
    }
    datasets = [told[n["id"]] for n in graph["nodes"] if n["type"] == "data"]
    files = [d for d in datasets if d["type"].startswith("io.datasets.")]
    tables = [d for d in files if not d["type"].endswith("StudyStorageDataset")]
    assert len(tables) > 450
    assert [d["filepath"] for d in tables if not d["preview"]] == []
    assert {d["preview_type"].removesuffix("Preview") for d in tables} == {
        "HTML", "Image", "JSON", "Plotly", "Table"
    }  # fmt: skip
    assert all(told[n["id"]]["code"] for n in graph["nodes"] if n["type"] == "task")
    assert graph["layers"] == LAYERS
    layer = {n["id"]: LAYERS.index(n["layer"]) for n in graph["nodes"] if n.get("layer")}
    joined = [(e["source"], e["target"]) for e in graph["edges"]]
    assert [e for e in joined if {*e} <= {*layer} and layer[e[0]] > layer[e[1]]] == []


def test_the_static_site_says_nothing_of_the_machine(smoke, visit, site):
    texts = {p: p.read_bytes() for p in site.rglob("*") if p.is_file() and "assets" not in p.parts}
    assert len(texts) > 700
    for place in {smoke[0], Path.home(), Path(sys.prefix), PROJECT}:
        named = [path for path, text in texts.items() if f"{place}/".encode() in text]
        assert named == [], place
    with serving(site, [sys.executable, "-m", "http.server", "{port}", "--bind=127.0.0.1"]) as url:
        visit.page.goto(url)
        visit.node("analysis").wait_for(state="attached")
        assert visit.nodes() == PIPELINES
        show_figure(visit)
        visit.picture("kedro_viz_site")
    assert visit.asked == []
    assert visit.complaints == []


def test_mlflow_lists_the_runs_and_its_curves_grow(smoke, visit, tmp_path):
    from mlflow import MlflowClient

    # A copy, because the runs logged here are not of the study.
    with sqlite3.connect(smoke[0] / "mlflow.db") as made, sqlite3.connect(tmp_path / "db") as copy:
        made.backup(copy)
    store = f"sqlite:///{tmp_path / 'db'}"
    command = [str(Path(sys.executable).with_name("mlflow")), "ui", "--host=127.0.0.1"]
    command += ["--port={port}", "--workers=1", f"--backend-store-uri={store}"]
    with serving(tmp_path, command, "/health") as url:
        client = MlflowClient(url)
        experiment = client.get_experiment_by_name("adaptive_opt").experiment_id
        only_parents = "attributes.status = 'FINISHED'"
        found = client.search_runs([experiment], only_parents, order_by=["start_time ASC"])
        parent = next(r for r in found if "mlflow.parentRunId" not in r.data.tags)
        tags = {"mlflow.parentRunId": parent.info.run_id}
        child = client.create_run(experiment, run_name="live", tags=tags).info.run_id
        for step in range(5):
            client.log_metric(child, "train_loss", 1 / (step + 1), step=step)

        visit.page.clock.install()
        line = visit.page.locator(".js-plotly-plot .scatterlayer path.js-line")
        page = RUNS_PAGE.format(experiment)  # as kedro run and make mlflow print it
        assert f"http://127.0.0.1:5000/{page}" in (PROJECT / "Makefile").read_text("utf-8")
        visit.page.goto(f"{url}/{page}")
        visit.page.locator(f'a[href*="{child}"]').first.wait_for()  # the newest, which is a child
        line.first.wait_for(state="attached")
        visit.picture("mlflow_runs")
        visit.page.goto(f"{url}/#/experiments/{experiment}/runs/{child}/model-metrics")
        visit.page.reload()
        line.first.wait_for(state="attached")
        drawn = "() => document.querySelector('.js-plotly-plot').data[0].x.length"
        assert visit.page.evaluate(drawn) == 5
        client.log_metric(child, "train_loss", 1 / 6, step=5)
        visit.page.clock.fast_forward(60_000)  # the page reloads every half minute
        visit.page.wait_for_function(f"({drawn})() == 6")
        visit.picture("mlflow_curve")
        client.set_terminated(child)
    assert visit.asked == []


def test_the_report_opens_without_a_network(smoke, visit):
    """Every figure is drawn, without a request to a host and without an error."""
    file = smoke[0] / "data" / "08_reporting" / "smoke" / "report.html"
    visit.page.goto(file.as_uri())
    visit.page.wait_for_load_state()
    drawn = file.read_text(encoding="utf-8").count('Plotly.newPlot("figure-')
    assert drawn == 13
    assert visit.page.locator(".plot-container").count() == drawn
    visit.picture("report")
    assert visit.asked == []
    assert visit.complaints == []
