"""The state of the grid, read from files that searches and runs leave."""

import copy
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kedro.config import OmegaConfigLoader
from safetensors.numpy import save_file

from adaptive_opt.engine.provenance import identify_run
from adaptive_opt.io.status.grid import Files, Survey
from adaptive_opt.io.status.outcome import OutcomeHooks, where_results_are
from adaptive_opt.io.status.report import as_record, as_text
from adaptive_opt.parameters import TuningParameters, search_space, studies_of
from adaptive_opt.search.identity import study_name, study_seed, trial_identity
from adaptive_opt.search.spaces import Space
from adaptive_opt.settings import CONFIG_LOADER_ARGS
from adaptive_opt.tasks.digest import data_digest
from tests.conftest import PROJECT
from tests.project.test_parameters import put

TASK = "rr_cond29"
FUNCTION = {"A": np.eye(3), "X": np.ones((1000, 3)), "W1": np.ones((4, 3)), "W2": np.ones((3, 4))}

FIRST_PART_DONE = {"done": [{"share": 1.0, "seeds": [0, 1]}], "state": {"iteration": 80}}
"""State of a run that has finished two seeds at full length, and not yet at a quarter of it."""


class Study:
    """The smoke study in an empty folder, with the given results."""

    def __init__(self, folder, parameters):
        self.parameters = parameters
        self.files = Files(lambda name: folder / name)
        self.storage = SimpleNamespace(absent=True)
        save_file(FUNCTION, folder / f"rr_synthesis.{TASK}.function")
        self.data = data_digest(TASK, FUNCTION)

    def search(self, arm, **changed):
        """Write the files of a finished search."""
        tuning = TuningParameters(**self.parameters["tuning"])
        arms = self.parameters["arms"][TASK]
        space = Space.from_parameters(search_space(TASK, arm, tuning, arms))
        plan = tuning.tasks[TASK]
        made_of = trial_identity(TASK, arm, self.data, self.parameters, plan, space)
        values = dict.fromkeys(space, 0.1)
        studies = [
            {
                "study": study_name(
                    "smoke", TASK, arm, made_of, space, plan, study_seed(tuning.seed, number)
                ),
                "values": values, "found": True, "failed": "", "widened": 0,
                "space": space.describe(),
            }
            for number in range(tuning.studies)
        ]  # fmt: skip
        best = {
            "task": TASK, "arm": arm, "source": "search", "made_of": made_of, "values": values,
            "studies": studies, "trials": {"complete": 3, "failed": 1}, "budget": 160.0,
            "spent": 160.0, "budget_units": plan.budget, "seconds": 4.0,
        }  # fmt: skip
        self._write(f"tuning.{TASK}.{arm}.best", {**best, **changed})

    def identity(self, arm):
        best = self.files.record(f"tuning.{TASK}.{arm}.best")
        return identify_run(TASK, arm, self.data, self.parameters, studies_of(best))

    def train(self, arm, **changed):
        """Write the files of a finished run."""
        summary = {
            "seeds": [0, 1], "diverged_at": [None, None], "iterations": 320, "seconds": 10.0,
            **self.identity(arm).record(),
        }  # fmt: skip
        self._write(f"training.{TASK}.{arm}.summary", {**summary, **changed})
        for part in ("history", "weights", "snapshots", "lengths"):
            self.files.path(f"training.{TASK}.{arm}.{part}").touch()

    def checkpoint(self, arm, state, age):
        folder = self.files.path(f"training.{TASK}.{arm}.folder")
        folder.mkdir(exist_ok=True)
        torch.save({"digest": self.identity(arm).digest, "state": state}, folder / "checkpoint.pt")
        os.utime(folder / "checkpoint.pt", times=(time.time() - age,) * 2)

    def look(self, *arms):
        asked = {(TASK, arm): {"search", "training"} for arm in arms}
        cells = Survey(asked, self.parameters, self.files, self.storage).cells
        record = as_record(cells, self.parameters)
        json.dumps(record)
        return record, as_text(record, "kedro run --env=smoke")

    def _write(self, name, record):
        self.files.path(name).write_text(json.dumps(record), encoding="utf-8")


@pytest.fixture(scope="module")
def parameters():
    return OmegaConfigLoader(str(PROJECT / "conf"), env="smoke", **CONFIG_LOADER_ARGS)["parameters"]


@pytest.fixture
def study(tmp_path, parameters):
    return Study(tmp_path, copy.deepcopy(parameters))


def states(record):
    return [(c["search"]["state"], c["training"]["state"]) for c in record["cells"]]


def test_where_nothing_was_run_it_says_so(study):
    record, text = study.look("ssdh", "sgdm")
    assert states(record) == [("missing", "missing")] * 2
    assert text.startswith("Nothing was run yet at the scale smoke; start with")
    assert text.endswith("kedro run --env=smoke")


@pytest.mark.parametrize("part", ["history", "weights", "snapshots", "lengths"])
def test_a_run_without_one_of_its_files_is_missing(study, part):
    study.search("ssdh")
    study.train("ssdh")
    study.files.path(f"training.{TASK}.ssdh.{part}").unlink()
    assert states(study.look("ssdh")[0]) == [("done", "missing")]


def test_finished_and_missing_cells_and_the_time_that_is_left(study):
    study.search("ssdh")
    study.train("ssdh", diverged_at=[None, 17])
    study.search("sgdm", spent=80.0)
    record, text = study.look("ssdh", "sadh", "sgdm", "adam")
    assert states(record) == [("done", "done"), ("missing",) * 2, ("done", "missing"),
                              ("missing",) * 2]  # fmt: skip
    left = [cell["seconds_left"] for cell in record["cells"]]
    # SADH: as SSDH. SGDM: training as SSDH. Adam: also a search as SGDM's, which spent half.
    assert left == [0.0, 14.0, 10.0, 18.0]
    assert record["seconds_left"] == 42.0
    assert "diverged: seed 1" in text
    assert "1 of 4 trials failed" in text
    assert "4 searches: 2 done, 2 missing." in text
    assert "About 42 s of work left" in text


def test_a_stale_run_is_told_with_what_has_changed(study):
    put(study.parameters, f"tuning.tasks.{TASK}.horizon", "run")
    study.search("ssdh")
    study.train("ssdh")
    put(study.parameters, "training.log_every", 7)
    put(study.parameters, f"tasks.{TASK}.epochs", 80)
    record, text = study.look("ssdh")
    # The schedule of a trial spans the whole run, so its length matters to both.
    assert states(record) == [("stale", "stale")]
    assert "epochs: 40, now 80" in text
    study.search("ssdh")
    record, _ = study.look("ssdh")
    (cell,) = record["cells"]
    assert cell["search"]["state"] == "done"
    assert cell["training"]["why"] == "epochs: 40, now 80, log_every: 10, now 7"
    assert cell["seconds_left"] == 20.0  # twice the epochs of the finished run


def test_a_code_change_or_other_data_make_stale(study):
    study.search("ssdh")
    record = study.identity("ssdh").record()
    made_by = {**record["made_by"], "code": "of another day"}
    study.train("ssdh", made_by=made_by, digest="of another day")
    record, _ = study.look("ssdh")
    assert record["cells"][0]["training"]["why"] == "code"
    report = {"made_with": {"seed": 1}}
    study._write(f"rr_synthesis.{TASK}.report", report)
    record, _ = study.look("ssdh")
    assert record["cells"][0]["training"]["why"] == f"rr_synthesis.{TASK}"


def test_a_larger_budget_makes_a_part_of_a_search(study):
    study.search("ssdh")
    study.train("ssdh")
    put(study.parameters, f"tuning.tasks.{TASK}.budget", 16)
    record, text = study.look("ssdh")
    assert states(record) == [("partly", "stale")]
    assert record["cells"][0]["search"]["share"] == 0.25
    assert "stale (its search)" in text


@pytest.mark.parametrize(
    ("state", "age", "said"),
    [
        (
            {"state": {"iteration": 240}, "hessians": torch.zeros(2)},
            5,
            "running (at iteration 240 after 0 finished parts)",
        ),
        (FIRST_PART_DONE, 9e3, "at iteration 80 after 1 finished parts"),
    ],
)
def test_a_checkpoint_tells_of_a_run_under_way(study, state, age, said):
    study.search("ssdh")
    study.checkpoint("ssdh", state, age)
    record, text = study.look("ssdh")
    assert states(record) == [("done", "running" if age < 60 else "interrupted")]
    assert said in text
    share = 0.0 if age < 60 else 2 * 1.0 / (2 * (1.0 + 0.25))
    assert record["cells"][0]["training"]["share"] == share
    put(study.parameters, "training.log_every", 7)
    assert states(study.look("ssdh")[0]) == [
        ("done", "missing")
    ]  # the checkpoint is of another run


def test_results_are_told_by_kind_and_folder(tmp_path):
    base = tmp_path / "data/08_reporting/base"
    made = {
        "yours": base / "yours.bin",
        "analysis.verdict.page": base / "report.html",
        "analysis.verdict.ladder_figure_png": base / "verdict/ladder.png",
        "tuning.search.best_of_n_figure_png": base / "search/best_of_n.png",
        "tuning.search.best_of_n_figure": base / "search/best_of_n.plotly.json",
        "tuning.search.search": base / "search/search.csv",
        "training.rr_cond29.ssdh.summary": tmp_path / "data/07_model_output/base/rr/summary.json",
        "training.rr_cond29.ssdh.history": tmp_path / "data/07_model_output/base/rr/h.parquet",
    }
    lines = where_results_are(made, tmp_path, "http://127.0.0.1:5000").splitlines()
    assert [line.split(maxsplit=1) for line in lines[2:]] == [
        ["report", "data/08_reporting/base/report.html"],
        ["figures", "2 in data/08_reporting/base: search, verdict"],
        ["tables", "data/08_reporting/base/search/search.csv"],
        ["runs", "data/07_model_output/base/rr"],
        ["MLflow", "http://127.0.0.1:5000"],
    ]


def test_only_what_a_run_made_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adaptive_opt.io.status.outcome.PROJECT", tmp_path)
    old, new = "analysis.networks.costs", "analysis.networks.outcomes"
    for name in (old, new):
        (tmp_path / f"{name}.csv").touch()
    os.utime(tmp_path / f"{old}.csv", times=(time.time() - 60,) * 2)
    catalog = SimpleNamespace(
        get=lambda name: SimpleNamespace(_filepath=tmp_path / f"{name}.csv")
    )  # an attribute of Kedro's datasets
    pipeline = SimpleNamespace(all_outputs=lambda: {old, new, "none.of.these"})
    hooks = OutcomeHooks()
    hooks.before_pipeline_run()
    hooks.after_pipeline_run(pipeline, catalog)
    assert f"tables    {new}.csv" in capsys.readouterr().out
    hooks.on_node_error(SimpleNamespace(name="analysis.networks.report"))
    hooks.on_pipeline_error()
    said = capsys.readouterr().err
    assert "Failed in analysis.networks.report." in said
    assert "Finished results are kept. To continue, run" in said
