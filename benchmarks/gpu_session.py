"""Run a session on a GPU: the most valuable steps first, within a time limit.

    python benchmarks/gpu_session.py --minutes 12      (or: make gpu MINUTES=12)

The steps, in this order:

1. every test marked ``gpu``;
2. the cost of a step of every optimizer at the published sizes: eager, as CUDA graphs, compiled;
3. the Transformer at the published size: the published arms with one seed, then with more;
4. the same for ResNet-18, for 30 epochs, then for 128;
5. the environment ``evening`` of the study, if ``conf/evening`` exists.

Each step runs in a process of its own with a limit on its time. Its record goes to
``docs/results/gpu/`` at once: one JSON file for each session and step, and for each training run.
A later session skips finished steps, and tests that have passed with the same code. An interrupted
training run continues from its checkpoint, if the folder ``--work`` still exists.
``python docs/build_gpu.py`` makes a page of all records.

Nothing is downloaded. If CIFAR-10 or the Penn Treebank is missing, random data of the same sizes
replace it, and the record says so.

Exit codes: 0: no step failed, or torch sees no GPU; 1: a step failed. ``--rehearse`` runs
everything at tiny sizes on the CPU, with records in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from _gpu_record import Records, device_of

PROJECT = Path(__file__).parents[1]
HERE = PROJECT / "benchmarks"
ARMS = ("sgdm", "adam", "sophia", "sadh", "ssdh", "ssvp")
GRACE = 20.0
"""Seconds that a process may take beyond its limit before it is killed."""

NO_GPU = (
    "torch sees no GPU here, so there is nothing to do; run this on a machine with one, or try it "
    "with --rehearse"
)


@dataclass(frozen=True)
class Step:
    """A step of a session.

    Attributes:
        name: of its record; of training runs the beginning of their records' names.
        run: does it within so many seconds and writes the records; returns whether it went well.
        least: seconds below which it is not begun.
        limit: seconds at most.
    """

    name: str
    run: Callable[[float], bool]
    least: float
    limit: float = float("inf")


class Session:
    """The parts that all steps share.

    Args:
        records: to write to.
        work: folder for checkpoints and half-done figures.
        rehearse: tiny sizes, on the CPU.
    """

    def __init__(self, records: Records, work: Path, *, rehearse: bool) -> None:
        self.records, self.work, self.rehearse = records, work, rehearse
        self.device = device_of()
        work.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[Step]:
        """List the steps in order of their value."""
        made = [Step("tests", self.tests, 20, 240)]
        for mode, limit in (("eager", 120), ("graphs", 60), ("compiled", 180)):
            made.append(Step(f"cost/{mode}", self._cost(mode), 15, limit))
        lengths = [("transformer", 64), ("resnet18", 30), ("resnet18", 128)]
        if self.rehearse:
            lengths = [("transformer", 1), ("resnet18", 1)]
        for task, epochs in lengths:
            made.append(Step(f"train/{task}/{epochs}", self._training(task, epochs), 20))
        return [*made, Step("evening", self.evening, 60)]

    def finished(self) -> set[str]:
        """List the steps to skip; tests of other code are repeated."""
        tested = any(r["state"] == "done" for r in self._records_of_tests())
        return self.records.finished() - ({"tests"} if not tested else set())

    def _records_of_tests(self) -> list[dict[str, Any]]:
        """List the records of the present code."""
        code = self.device["code"]
        found = [r for r in self.records.all() if r["step"] == "tests"]
        return [r for r in found if r["device"]["code"] == code]

    # Each kind of step.

    def tests(self, seconds: float) -> bool:
        """Run the tests marked ``gpu`` that have not passed in an earlier session."""
        passed = {
            test
            for record in self._records_of_tests()
            for test, found in record["figures"].get("tests", {}).items()
            if found["outcome"] == "passed"
        }
        path = self.work / f"tests_{self.records.session}.json"
        given = ["--outcomes", str(path), "--passed", json.dumps(sorted(passed))]
        ended = self._process(["_gpu_tests.py", *given], seconds)
        outcomes = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        counts = {
            kind: sum(o["outcome"] == kind for o in outcomes.values())
            for kind in ("passed", "failed", "skipped")
        }
        figures = {"counts": counts, "tests": outcomes}
        if ended.in_time and ended.code == 0:
            state, reason = "done", ""
        elif not ended.in_time:
            state, reason = "partial", "time ran out"
        else:
            names = [n for n, o in outcomes.items() if o["outcome"] == "failed"]
            state = "failed"
            reason = f"{len(names)} tests failed: {', '.join(names)}" if names else ended.said
        self._write("tests", state, ended, reason, figures)
        return state != "failed"

    def _cost(self, mode: str) -> Callable[[float], bool]:
        name = f"cost/{mode}"

        def run(seconds: float) -> bool:
            if mode == "graphs" and self.device["type"] != "cuda":
                reason = "CUDA graphs need a GPU"
                self.records.write(name, "skipped", seconds=0, reason=reason, device=self.device)
                return True
            path = self.work / f"cost-{mode}_{self.records.session}.json"
            given = ["--json", str(path), "--mode", mode, "--task", "transformer", "resnet18"]
            given += ["--parts", "steps", *(["memory", "update"] if mode == "eager" else [])]
            if mode == "compiled":  # each contender is compiled by itself, which takes long
                given += ["--contenders", "Sophia-k10", "SADH-k10", "SSDH-k10", "SSVP-k10"]
            if self.rehearse:
                given += ["--small", "--device=cpu", "--batch=4", "--streams=4", "--rounds=1"]
                given += ["--repetitions=2", "--contenders", "SSDH-k10", "--parts", "steps"]
                given += ["--backend", "eager"]
            ended = self._process(["step_overhead.py", *given], seconds)
            figures = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            return self._simple(name, ended, figures)

        return run

    def _training(self, task: str, epochs: int) -> Callable[[float], bool]:
        def run(seconds: float) -> bool:
            arms, seeds = (("adam", "ssdh"), 1) if self.rehearse else (ARMS, 4)
            scale, device = ("smoke", "cpu") if self.rehearse else ("paper", "cuda")
            given = [
                *("--task", task, "--epochs", str(epochs), "--seeds", str(seeds)),
                *("--arms", json.dumps(arms), "--scale", scale, "--device", device),
                *("--session", self.records.session, "--records", str(self.records.folder)),
                *("--seconds", str(seconds), "--work", str(self.work)),
            ]
            name = f"train/{task}/{epochs}"
            ended = self._process(["_gpu_train.py", *given], seconds)
            mine = [
                r
                for r in self.records.all()
                if r["session"] == self.records.session and r["step"].startswith(f"{name}/")
            ]
            if (ended.in_time and ended.code != 0) or not (ended.in_time or mine):
                return self._simple(name, ended, {})  # else each run has its record
            return all(r["state"] != "failed" for r in mine)

        return run

    def evening(self, seconds: float) -> bool:
        """Run the study at the scale ``evening``."""
        if not (PROJECT / "conf" / "evening").is_dir():
            reason = "conf/evening does not exist"
            self.records.write("evening", "skipped", seconds=0, reason=reason, device=self.device)
            return True
        given = ["-m", "kedro", "run", "--env=evening", "--params=training.device=cuda"]
        if self.rehearse:
            given = ["-m", "kedro", "adaptive", "status", "--env=evening"]
        return self._simple("evening", self._process(given, seconds), {})

    # Processes.

    def _process(self, words: Sequence[str], seconds: float) -> Ended:
        """Run a Python program; stop it and its children soon after its limit."""
        program = list(words) if words[0] == "-m" else [str(HERE / words[0]), *words[1:]]
        search = [str(PROJECT / "src"), str(PROJECT), os.environ.get("PYTHONPATH", "")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in search if p)}
        if self.rehearse:
            env |= {"OMP_NUM_THREADS": "1"}
        begun, log = time.monotonic(), self.work / "last_step.log"
        with log.open("w", encoding="utf-8") as out:
            child = subprocess.Popen(  # noqa: S603  our own programs
                [sys.executable, *program], cwd=PROJECT, env=env, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = child.wait(seconds + GRACE)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _kill_group(child)
        text = log.read_text(encoding="utf-8", errors="replace")
        print(text, end="", flush=True)
        said = next((x for x in reversed(text.splitlines()) if x.strip()), "it said nothing")
        return Ended(code, said.strip(), time.monotonic() - begun)

    def _simple(self, name: str, ended: Ended, figures: dict[str, Any]) -> bool:
        """Write the record of a step."""
        if not ended.in_time:
            self._write(name, "partial", ended, "time ran out", figures)
            return True
        well = ended.code == 0
        self._write(name, "done" if well else "failed", ended, "" if well else ended.said, figures)
        return well

    def _write(
        self, name: str, state: str, ended: Ended, reason: str, figures: dict[str, Any]
    ) -> None:
        self.records.write(
            name, state, seconds=ended.seconds, reason=reason, device=self.device, figures=figures
        )


@dataclass(frozen=True)
class Ended:
    """The end of a process.

    Attributes:
        code: None: it was killed at its limit.
        said: its last line.
        seconds: that it took.
    """

    code: int | None
    said: str
    seconds: float

    @property
    def in_time(self) -> bool:
        """Whether it ended before its limit."""
        return self.code is not None


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all are gone
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run(session: Session, seconds: float) -> int:
    """Run all steps that have time; return the exit code."""
    deadline, well = time.monotonic() + seconds, True
    finished = session.finished()
    for step in session.steps():
        if step.name in finished:
            print(f"== {step.name}: finished in an earlier session", flush=True)
            continue
        left = deadline - time.monotonic() - GRACE
        if left < step.least:
            print(f"== {step.name}: {max(0, left):.0f} s are left, too few", flush=True)
            continue
        print(f"== {step.name}: at most {min(left, step.limit):.0f} s", flush=True)
        well = step.run(min(left, step.limit)) and well
    print(f"records are in {session.records.folder}; python docs/build_gpu.py makes the page")
    return 0 if well else 1


def main() -> int:
    """Command line."""
    line = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument(
        "--minutes", type=float, default=12, help="minutes of the whole session; default 12"
    )
    default = PROJECT / "docs" / "results" / "gpu"
    line.add_argument("--records", type=Path, default=default, help="folder for records")
    line.add_argument(
        "--work", type=Path, default=PROJECT / "build" / "gpu", help="folder for checkpoints"
    )
    line.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    options = line.parse_args()
    if options.minutes <= 0:
        line.error("--minutes must be above 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # children end, too
    name = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H%M%SZ")
    if options.rehearse:
        with tempfile.TemporaryDirectory() as folder:
            records = options.records if options.records != default else Path(folder, "records")
            session = Session(Records(records, name), Path(folder, "work"), rehearse=True)
            return run(session, 60 * options.minutes)
    if device_of()["type"] != "cuda":
        print(NO_GPU)
        return 0
    session = Session(Records(options.records, name), options.work, rehearse=False)
    return run(session, 60 * options.minutes)


if __name__ == "__main__":
    sys.exit(main())
