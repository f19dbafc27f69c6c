"""A session on a GPU, rehearsed on the CPU: records, time limits, continuing."""

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import PROJECT
from tests.project.test_docs import builder

sys.path.insert(0, str(PROJECT / "benchmarks"))

import _gpu_train
import gpu_session
from _gpu_record import Records, device_of

DEVICE = {"name": "none", "type": "cpu", "torch": "0", "cuda": None, "code": "one"}


def session_command(*options):
    return subprocess.run(
        [sys.executable, "benchmarks/gpu_session.py", *options],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "device_of", lambda: dict(DEVICE))
    records = Records(tmp_path / "records", "2030-01-01T000000Z")
    return gpu_session.Session(records, tmp_path / "work", rehearse=True)


def states(records):
    return {r["step"]: r["state"] for r in records.all()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_ends_well(tmp_path):
    done = session_command("--records", str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (0, gpu_session.NO_GPU)
    assert list(tmp_path.iterdir()) == []


def test_the_rehearsal_goes_through_every_step_within_a_minute_of_two_cores(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = session_command("--rehearse", "--records", str(tmp_path))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stdout + done.stderr
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 2 * 60
    records = Records(tmp_path, "")
    runs = [f"train/{t}/1/{a}/0" for t in ("transformer", "resnet18") for a in ("adam", "ssdh")]
    evening = "done" if (PROJECT / "conf" / "evening").is_dir() else "skipped"
    expected = {"tests": "done", "cost/eager": "done", "cost/compiled": "done"}
    expected |= {"cost/graphs": "skipped", "evening": evening, **dict.fromkeys(runs, "done")}
    assert states(records) == expected
    for record in records.all():
        assert record["device"]["torch"] == torch.__version__
        assert record["seconds"] >= 0
        assert (record["reason"] == "") == (record["state"] == "done")
        if record["step"].startswith("train/"):
            losses = [p["valid_loss"] for p in record["figures"]["curve"] if "valid_loss" in p]
            assert losses[-1] < losses[0]
    page = builder("build_gpu").page(tmp_path)
    assert "| SSDH-k10 |" in page
    assert "- cost/graphs: skipped, CUDA graphs need a GPU" in page
    assert "| Transformer | SSDH | the data of conf/smoke: python_docs | done | 1 | 0 |" in page


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="processes are read on Linux")
def test_a_session_that_is_terminated_leaves_no_process(tmp_path):
    def named():
        """Return the processes with this folder in their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has just ended
                found += [path.parent.name] if str(tmp_path).encode() in path.read_bytes() else []
        return set(found)

    command = [sys.executable, "benchmarks/gpu_session.py", "--rehearse", "--records"]
    session = subprocess.Popen(
        [*command, str(tmp_path)], cwd=PROJECT, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    deadline = time.monotonic() + 60
    while len(named()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(named()) == 2  # the session and its step
    session.terminate()
    assert session.wait(30) == 128 + signal.SIGTERM
    assert named() == set()


def test_finished_steps_are_left_out_by_the_next_session(session, monkeypatch, capsys):
    done = []

    def step(name, well=True):
        def work(seconds):
            done.append(name)
            state, reason = ("done", "") if well else ("failed", "it broke")
            session.records.write(name, state, seconds=1, reason=reason, device=DEVICE)
            return well

        return gpu_session.Step(name, work, least=1)

    steps = [step("a"), step("b", well=False), gpu_session.Step("c", done.append, least=1e9)]
    monkeypatch.setattr(session, "steps", lambda: steps)
    assert gpu_session.run(session, 100) == 1
    assert done == ["a", "b"]
    steps[1] = step("b")
    assert gpu_session.run(session, 100) == 0
    assert done == ["a", "b", "b"]
    assert "a: finished in an earlier session" in capsys.readouterr().out


def test_tests_run_again_when_the_code_has_changed(session):
    session.records.write("tests", "done", seconds=1, device=DEVICE)
    assert session.finished() == {"tests"}
    session.device["code"] = "other"
    assert session.finished() == set()


def test_the_code_is_identified_by_its_content(tmp_path, monkeypatch):
    source = tmp_path / "src" / "a.py"
    source.parent.mkdir()
    source.write_text("x = 1")
    monkeypatch.setattr("_gpu_record.__file__", str(tmp_path / "benchmarks" / "_gpu_record.py"))
    before = device_of()["code"]
    assert device_of()["code"] == before
    source.write_text("x = 2")
    assert device_of()["code"] != before


def test_a_step_beyond_its_limit_is_killed_with_its_children(session, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "GRACE", 0)
    mark = tmp_path / "child"
    child = f"import time; time.sleep(8); open({str(mark)!r}, 'w')"
    (tmp_path / "slow.py").write_text(
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu_session, "HERE", tmp_path)
    begun = time.monotonic()
    ended = session._process(["slow.py"], 3)
    assert time.monotonic() - begun < 8
    assert not ended.in_time
    assert session._simple("slow", ended, {})
    (record,) = session.records.all()
    assert (record["state"], record["reason"]) == ("partial", "time ran out")
    time.sleep(max(0, begun + 9 - time.monotonic()))
    assert not mark.exists()


def test_a_step_that_fails_says_why(session, tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text("raise ValueError('no such thing')")
    monkeypatch.setattr(gpu_session, "HERE", tmp_path)
    assert not session._simple("bad", session._process(["bad.py"], 60), {})
    (record,) = session.records.all()
    assert (record["state"], record["reason"]) == ("failed", "ValueError: no such thing")


def training(records, work, **changes):
    given = {"task": "resnet18", "scale": "smoke", "session": records.session, "device": "cpu"}
    given |= {"records": records.folder, "work": work, "epochs": 4, "seeds": 1, "seconds": 600}
    return argparse.Namespace(**{**given, "arms": ["ssdh"], **changes})


def test_a_run_that_was_cut_off_leaves_its_history_and_goes_on(tmp_path, monkeypatch):
    """Time runs out at the second look at the clock."""
    monkeypatch.setattr(_gpu_train, "SAVE_EVERY", 0)
    monkeypatch.setattr(_gpu_train, "LOG_EVERY", 1)
    monkeypatch.setattr("adaptive_opt.engine.train.FLUSH_EVERY", 3)
    observe, looks = _gpu_train.Curve.observe, []

    def cut(curve, block):
        looks.append(block)
        if len(looks) == 3:
            curve.deadline = 0
        observe(curve, block)

    first = Records(tmp_path / "records", "1")
    with monkeypatch.context() as patch:
        patch.setattr(_gpu_train.Curve, "observe", cut)
        _gpu_train.train(training(first, tmp_path))
    (partial,) = first.all()
    assert partial["state"] == "partial"
    assert 0 < partial["figures"]["iterations"] < 24
    assert [*tmp_path.glob("*.pt")]
    _gpu_train.train(training(Records(first.folder, "2"), tmp_path))
    done = next(r for r in first.all() if r["session"] == "2")
    assert done["state"] == "done"
    assert [*tmp_path.glob("*.pt")] == []
    curve = done["figures"]["curve"]
    assert [p["iteration"] for p in curve] == list(range(done["figures"]["iterations"] + 1))
    # The earlier part is that of the first session.
    seen, again = (
        {p["iteration"]: p["train_loss"] for p in points if "train_loss" in p}
        for points in (partial["figures"]["curve"], curve)
    )
    assert len(seen) > 3
    assert {t: again[t] for t in seen} == seen
    page = builder("build_gpu").page(first.folder)
    assert "partial" not in page.split("## Training")[1]


def test_an_arm_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    run_network = _gpu_train.run_network

    def broken(*given, arm, **rest):
        if arm == "adam":
            raise RuntimeError("CUDA out of memory\nmore")
        return run_network(*given, arm=arm, **rest)

    monkeypatch.setattr(_gpu_train, "run_network", broken)
    records = Records(tmp_path / "records", "1")
    _gpu_train.train(training(records, tmp_path, arms=["adam", "sgdm"], epochs=1))
    assert states(records) == {
        "train/resnet18/1/adam/0": "failed",
        "train/resnet18/1/sgdm/0": "done",
    }
    (failed,) = [r for r in records.all() if r["state"] == "failed"]
    assert failed["reason"] == "RuntimeError: CUDA out of memory"


def test_without_the_published_data_random_ones_of_their_sizes_are_taken(tmp_path, monkeypatch):
    data = sys.modules["_gpu_data"]
    monkeypatch.setattr(data, "RAW", tmp_path)
    monkeypatch.setenv("ADAPTIVE_OPT_DATA", str(tmp_path))
    text, said = data.load("transformer", "paper", tmp_path)
    assert said == "random words in the sizes of the Penn Treebank, which is not here"
    assert (len(text.train), text.vocabulary_size) == (929_589, 10_000)
    images, said = data.load("resnet18", "paper", tmp_path)
    assert said == "random images in the sizes of CIFAR-10, which is not here"
    assert images.x_train.shape == (45_000, 3, 32, 32)


def test_the_published_data_are_read_where_they_are(real_data, tmp_path, monkeypatch):
    data = sys.modules["_gpu_data"]
    monkeypatch.setenv("ADAPTIVE_OPT_DATA", str(real_data))
    monkeypatch.setattr(data, "RAW", tmp_path / "raw")
    text, said = data.load("transformer", "paper", tmp_path)
    assert (said, len(text.train)) == ("Penn Treebank", 929_589)


def test_parameters_are_those_of_the_scale():
    sizes = sys.modules["_gpu_data"].parameters("tasks", "paper")
    assert (sizes["transformer"]["width"], sizes["resnet18"]["evaluate_every"]) == (256, 1)


def test_records_are_written_whole(tmp_path, monkeypatch):
    records = Records(tmp_path, "1")
    path = records.write("a/b", "done", seconds=1, device=DEVICE)
    assert path.name == "1_a-b.json"

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            records.write("a/b", "partial", seconds=2, reason="time ran out", device=DEVICE)
    assert json.loads(path.read_text(encoding="utf-8"))["state"] == "done"
    assert states(records) == {"a/b": "done"}
    with pytest.raises(ValueError, match="unknown state 'over'"):
        records.write("a", "over", seconds=1, device=DEVICE)


def test_the_page_says_that_there_was_no_session(tmp_path):
    made = builder("build_gpu")
    assert made.NO_SESSION in made.page(tmp_path)
