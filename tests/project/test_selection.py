"""Studies of a part of the grid: their nodes, and their own reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from kedro.pipeline import Pipeline
from PIL import Image
from sklearn.datasets import load_digits

from adaptive_opt.cli import with_own_pipeline
from adaptive_opt.evidence.schema import read_verdict
from adaptive_opt.pipeline_registry import register_pipelines
from adaptive_opt.pipelines.selection import StudyPipeline
from adaptive_opt.study import UPWARDS

from .conftest import copy_of_the_project, kedro


@pytest.fixture(scope="module")
def pipelines():
    return register_pipelines()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A copy for these tests: runs on other data and other parameters are told apart, but a
    finished run of the default study would not be left."""
    with copy_of_the_project(tmp_path_factory) as folder:
        yield folder


def chosen(pipelines, *tags, name="__default__"):
    """Filter a pipeline as Kedro's session does."""
    return (Pipeline([]) + pipelines[name]).filter(tags=list(tags))


def cells(pipeline):
    names = (node.name.split(".") for node in pipeline.nodes)
    return {tuple(n[1:3]) for n in names if n[0] == "training" and n[-1] == "train"}


def test_a_task_is_a_study_of_its_own(pipelines):
    part = chosen(pipelines, "transformer")
    assert {task for task, _ in cells(part)} == {"transformer"}
    assert len(cells(part)) == len(
        {a for t, a in cells(pipelines["__default__"]) if t == "transformer"}
    )
    names = {node.name for node in part.nodes}
    assert "analysis.only_transformer_verdict.report" in names
    assert "data.transformer.load" in names
    assert not [n for n in names if "resnet18" in n or "rr_cond" in n]
    outside = {i for i in part.inputs() if not i.startswith("params:") and "folder" not in i}
    assert outside == {"tuning_storage"}  # the only other input


def test_arms_of_a_task_are_chosen_by_their_cells(pipelines):
    part = chosen(pipelines, "resnet18.adam", "resnet18.ssdh")
    assert cells(part) == {("resnet18", "adam"), ("resnet18", "ssdh")}
    names = {node.name for node in part.nodes}
    assert "analysis.only_resnet18_adam_resnet18_ssdh_verdict.report" in names


def test_arms_on_all_tasks_and_halves(pipelines):
    assert {arm for _, arm in cells(chosen(pipelines, "adam", "ssdh"))} == {"adam", "ssdh"}
    half = cells(chosen(pipelines, "rahimi_recht"))
    assert {task for task, _ in half} == {"rr_cond29", "rr_cond15099"}


def test_outputs_of_a_part_are_not_those_of_the_whole(pipelines):
    whole = {o for o in pipelines["__default__"].all_outputs() if o.startswith("analysis.")}
    for tags in (["transformer"], ["rahimi_recht"], ["adam", "ssdh"]):
        part = {o for o in chosen(pipelines, *tags).all_outputs() if o.startswith("analysis.")}
        assert not part & whole


def test_an_environment_with_a_pipeline_of_its_name_runs_it(pipelines):
    assert with_own_pipeline({"env": "evening"}, pipelines)["pipelines"] == ("evening",)
    asked = {"env": "evening", "pipelines": ("data",)}
    assert with_own_pipeline(asked, pipelines) == asked
    assert "pipelines" not in with_own_pipeline({"env": "smoke"}, pipelines)
    found = cells(pipelines["evening"])
    assert cells(pipelines["__default__"]) < found
    assert {a for t, a in found if t == "resnet18"} >= {"adamw", "nadam", "ssdh_constant"}
    assert {a for t, a in found if t == "rr_cond29"} >= {"ssdh_exact", "sadh_exact"}
    assert ("resnet18", "sadh_constant") not in found
    (node,) = [
        n
        for n in chosen(pipelines, "transformer", name="evening").nodes
        if n.name == "analysis.only_transformer_verdict.judge"
    ]
    assert node.func.args[0] == "kedro run --env=evening --tags=transformer"


def test_only_the_ladder_goes_upwards(pipelines):
    """The default study and that of an evening stay as short as they are."""
    upwards = {arm.name for arm in UPWARDS}
    for name in ("__default__", "evening", "zoo"):
        assert not {arm for _, arm in cells(pipelines[name])} & upwards
        assert not [n for n in pipelines[name].nodes if "frontier" in n.name]
    found = cells(pipelines["ladder"])
    assert {a for t, a in found if t == "rr_cond29_mse"} >= {"sadh_whole", "ssdh_period_1"}
    assert ("resnet18", "sadh_whole") not in found
    assert ("resnet18", "ssdh_empirical_fisher") not in found
    assert ("rr_cond29", "ssdh_batch_4") not in found
    assert {a for t, a in found if t == "resnet18"} >= {"shampoo", "soap", "adahessian", "muon"}
    assert ("rr_cond29", "shampoo") not in found
    part = chosen(pipelines, "rr_cond29", name="ladder")
    (node,) = [n for n in part.nodes if n.name.endswith("draw_frontier")]
    assert "analysis.ladder_only_rr_cond29_verdict.frontier_figure" in node.outputs
    (report,) = [n for n in part.nodes if n.name.endswith("verdict.report")]
    assert "analysis.ladder_only_rr_cond29_verdict.frontier_figure" in report.inputs


def test_the_report_of_a_part_names_its_command(pipelines):
    (node,) = [
        n for n in chosen(pipelines, "transformer").nodes if n.name.endswith("verdict.judge")
    ]
    assert node.func.args[0] == "kedro run --tags=transformer"
    (node,) = [
        n
        for n in chosen(pipelines, "resnet18", name="ladder").nodes
        if n.name.endswith("verdict.judge")
    ]
    assert node.func.args[0] == "kedro run --pipelines=ladder --tags=resnet18"
    assert node.name == "analysis.ladder_only_resnet18_verdict.judge"


def test_other_filters_and_sums_are_those_of_kedro(pipelines):
    whole = pipelines["__default__"]
    assert isinstance(Pipeline([]) + whole, StudyPipeline)
    both = pipelines["data"] + whole
    assert not isinstance(both, StudyPipeline)
    one = whole.filter(node_names=["data.resnet18.load"])
    assert [n.name for n in one.nodes] == ["data.resnet18.load"]
    with pytest.raises(ValueError, match="no nodes"):
        whole.filter(tags=["nonsense"])
    many = [f"resnet18.{arm}" for arm in ("sgdm", "adam", "sophia", "sadh", "ssdh", "ssvp")]
    (node,) = [n for n in chosen(pipelines, *many).nodes if n.name.endswith("verdict.judge")]
    assert len(node.name) < 60


def verdict_of(project, study):
    folder = project / "data" / "08_reporting" / "smoke" / study
    verdict = read_verdict(json.loads((folder / "verdict.json").read_text(encoding="utf-8")))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="matrix"' in page
    with Image.open(folder / "loss_by_length.png") as picture:
        assert min(picture.size) > 300
    return verdict


def test_a_task_on_text_of_ones_own_ends_with_its_report(own, tmp_path):
    stream = np.random.default_rng(0)
    words = [f"w{i}" for i in range(150)]
    for name, lines in (("train", 4000), ("valid", 600), ("test", 600)):
        text = "\n".join(" ".join(stream.choice(words, 9)) for _ in range(lines))
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    source = f"data.transformer.source=files,data.transformer.path={tmp_path}"
    before = {p for p in (own / "data").rglob("*") if p.is_file()}
    done = kedro(own, "run", "--env=smoke", "--tags=transformer", f"--params={source}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data/08_reporting/smoke/only_transformer_verdict/report.html" in done.stdout
    new = {p for p in (own / "data").rglob("*") if p.is_file()} - before
    assert not [p for p in new if "resnet18" in str(p) or "rr_cond" in str(p)]
    verdict = verdict_of(own, "only_transformer_verdict")
    assert [t.task for t in verdict.tasks] == ["transformer"]
    assert verdict.provenance["commands"] == ["kedro run --tags=transformer --env=smoke"]


def test_two_arms_on_a_folder_of_images_end_with_their_report(own, tmp_path):
    digits = load_digits()
    for split, chosen_rows in (("train", range(400)), ("test", range(400, 600))):
        for i in chosen_rows:
            folder = tmp_path / split / str(digits.target[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 15).astype("uint8")).save(folder / f"{i}.png")
    source = f"data.resnet18.source=folder,data.resnet18.path={tmp_path}"
    tags = "--tags=resnet18.adam,resnet18.ssdh"
    done = kedro(own, "run", "--env=smoke", tags, f"--params={source}")
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = verdict_of(own, "only_resnet18_adam_resnet18_ssdh_verdict")
    (task,) = verdict.tasks
    assert {a.arm for a in task.arms} == {"adam", "ssdh"}
    assert task.reference == "adam"
    assert task.missing == []


def test_an_arm_alone_is_told_what_is_missing(own):
    done = kedro(own, "run", "--env=smoke", "--tags=rr_cond29.ssdh")
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = verdict_of(own, "only_rr_cond29_ssdh_verdict")
    assert "nothing to compare with" in verdict.tasks[0].missing[0]
    assert verdict.answer.startswith("No verdict")


def test_an_arm_that_fails_does_not_stop_the_others(own):
    """Every trial of an arm diverges: it has no run, and the others have a verdict."""
    space = "tuning.spaces.corrected.rr_cond29.first-order.lr"
    params = f"{space}.low=1e9,{space}.high=1e10"
    tags = "--tags=rr_cond29.sgdm,rr_cond29.ssdh,rr_cond29.sadh"
    done = kedro(own, "run", "--env=smoke", tags, f"--params={params}")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "Failed, and left out: 1 of the arms." in done.stderr
    assert "rr_cond29.sgdm: no search found a configuration: no trial completed" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    verdict = verdict_of(own, "only_rr_cond29_sadh_rr_cond29_sgdm_rr_cond29_ssdh_verdict")
    arms = {a.arm: a for a in verdict.tasks[0].arms}
    assert "no trial completed" in arms["sgdm"].failed
    assert arms["ssdh"].failed == ""
    assert arms["ssdh"].final
