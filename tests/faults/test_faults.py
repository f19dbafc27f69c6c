"""A few faults of the harness; ``make faults`` causes all of them."""

import json
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.faults.study import without_clocks

KINDS = "kill_process,fill_disk,flip_bits"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are killed as on Linux")
def test_some_faults_change_no_result(tmp_path):
    """After a kill, a full disk or damage, running again gives undisturbed results."""
    record = tmp_path / "faults.json"
    command = [sys.executable, "tests/faults/harness.py", "--faults=3", "--seed=21"]
    command += [f"--kinds={KINDS}", f"--json={record}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    faults = json.loads(record.read_text("utf-8"))["faults"]
    assert len(faults) == 3
    assert {f["kind"] for f in faults} == {*KINDS.split(",")}
    assert {f["outcome"] for f in faults} <= {"same", "named", "skipped"}


def test_the_record_has_no_result_lost_and_none_that_differs_without_a_word():
    record = json.loads((PROJECT / "docs" / "results" / "faults.json").read_text("utf-8"))
    assert [f for f in record["faults"] if f["outcome"] in ("silent", "lost")] == []


def test_clocks_are_all_that_is_left_out():
    told = {"arms": [{"clock": "iteration", "ratio": 1}, {"clock": "device_seconds", "ratio": 2}]}
    told |= {"seconds": 3, "device_seconds": 4, "loss": [0.1]}
    assert without_clocks(told) == {
        "arms": [{"clock": "iteration", "ratio": 1}],
        "loss": [0.1],
    }
