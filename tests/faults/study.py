"""A small study in its own folder: run it, interrupt it, compare its results."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas as pd

PROJECT = Path(__file__).parents[2]
SCALE = "smoke"
BEGIN = ["run", f"--env={SCALE}", "--pipelines=faults"]
SETTINGS = {
    "tracking.enabled": "false",
    "tuning.heartbeat_seconds": "1",
    "training.checkpoint_seconds": "0.02",
}
CLOCKS = {"seconds", "device_seconds", "microseconds_per_run_iteration", "break_even", "price"}

PIPELINE = '''

def register_pipelines() -> dict[str, Pipeline]:
    """Return the pipeline of the harness: two tasks, two arms, the verdict, no figures."""
    runs = runs_on(["sgdm", "ssdh"], [TASKS[0], TASKS[2]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = (
            (data.create_pipeline() + rr_synthesis.create_pipeline())
            + tuning.create_pipeline(runs)
            + training.create_pipeline(runs)
            + analysis.create_verdict_pipeline("verdict", runs)
        )
        wanted = (".search", ".train", ".calibrate_rr_cond29", ".calibrate_resnet18", ".judge")
        chosen = [n.name for n in whole.nodes if n.name.endswith(wanted)]
        chosen += ["data.resnet18.load", "rr_synthesis.rr_cond29.make"]
        made = whole.filter(node_names=chosen)
    return {"faults": made, "__default__": made}
'''


class Study:
    """A copy of the project; commands run in forks of this process, which has imported everything.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder):
        self.folder, self.data = folder, folder / "data"
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("conf", "src"):
            shutil.copytree(PROJECT / name, folder / name, ignore=ignored)
        for name in ("pyproject.toml", ".telemetry"):
            shutil.copy(PROJECT / name, folder)
        (folder / "conf" / "local").mkdir(exist_ok=True)
        self.data.mkdir()
        with (folder / "src/adaptive_opt/pipeline_registry.py").open("a") as file:
            file.write(PIPELINE)
        self.out, self.golden = folder / "output.txt", folder / "golden"
        self.seconds, self.running, self.lengths = 0.0, 0, {}

    def import_everything(self):
        """Import from the copy what each command would import."""
        import importlib

        from tests.project.warm import MODULES

        sys.path.insert(0, str(self.folder / "src"))
        for name in MODULES:
            importlib.import_module(name)
        import adaptive_opt

        if self.folder not in Path(adaptive_opt.__file__).parents:
            raise RuntimeError(f"{adaptive_opt.__file__} was imported before")

    def start(self, *arguments, patch=None, environment=None, **settings):
        """Start a command and return its process, which calls ``patch`` first."""
        given = {**SETTINGS, **{k.replace("__", "."): v for k, v in settings.items()}}
        params = ",".join(f"{k}={v}" for k, v in given.items())
        command = [*BEGIN, *arguments, f"--params={params}"]
        for name in (self.out, Path(f"{self.out}.err")):
            name.write_text("")
        child = os.fork()
        if not child:
            try:
                self._become(command, patch, environment or {})
            finally:
                os._exit(70)
        self.running = child
        return child

    def close(self):
        """End running commands if the harness is interrupted."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running, signal.SIGKILL)

    def _become(self, command, patch, environment):
        from tests.project.warm import _run

        os.setsid()
        os.chdir(self.folder)
        files = [str(self.out), f"{self.out}.err"]
        if patch is not None:
            patch()
        _run({"args": command, "files": files, "environment": {"COLUMNS": "500", **environment}})

    def wait(self, process, limit=300.0):
        """Return exit status (negative: a signal), output, and whether it has a traceback."""
        deadline = time.monotonic() + limit
        while True:
            done, status, used = os.wait4(process, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.killpg(process, signal.SIGKILL)
            time.sleep(0.01)
        self.running = 0
        self.seconds += used.ru_utime + used.ru_stime
        said = self.out.read_text("utf-8") + Path(f"{self.out}.err").read_text("utf-8")
        return os.waitstatus_to_exitcode(status), said

    def run(self, *arguments, **options):
        """Run a command to its end."""
        return self.wait(self.start(*arguments, **options))

    def length_of(self, *arguments):
        """Return the seconds of an undisturbed command with the same results, which runs once."""
        if arguments not in self.lengths:
            self.empty()
            begun = time.monotonic()
            code, said = self.run(*arguments)
            self.lengths[arguments] = time.monotonic() - begun
            if wrong := [f"exit {code}: {said}"] if code else self.differences():
                raise SystemExit(f"{' '.join(arguments)} differs undisturbed: {wrong}")
        return self.lengths[arguments]

    def empty(self):
        """Delete all results."""
        for name in ("mlflow.db", "mlflow_unsent", "mlflow_artifacts"):
            path = self.folder / name
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        for path in self.data.iterdir():
            shutil.rmtree(path)

    def keep(self):
        """Keep the present results as those of the undisturbed run."""
        shutil.copytree(self.data, self.golden)

    def finished(self):
        """Restore the results of the undisturbed run."""
        self.empty()
        shutil.copytree(self.golden, self.data, dirs_exist_ok=True)

    def differences(self, only=""):
        """Return the results that differ from the undisturbed run, and unexpected files."""
        found = []
        for path in sorted(self.golden.rglob("*")):
            name = path.relative_to(self.golden)
            if path.is_dir() or "studies.db" in path.name or only not in str(name):
                continue
            there = self.data / name
            if not there.is_file():
                found.append(f"{name} is missing")
            elif read(there) != read(path):
                found.append(f"{name} differs")
        known = {p.relative_to(self.golden) for p in self.golden.rglob("*") if p.is_file()}
        for path in self.data.rglob("*"):
            name = path.relative_to(self.data)
            if path.is_file() and name not in known and "studies.db" not in path.name and not only:
                found.append(f"{name} is left")
        return found

    def artifacts(self):
        """Return the files that a later run reads."""
        return sorted(p for p in self.data.rglob("*") if p.is_file() and p.stat().st_size)


def read(path):
    """Return the content of a file without times."""
    if path.suffix == ".json":
        return without_clocks(json.loads(path.read_text("utf-8")))
    if path.suffix == ".parquet":
        table = pd.read_parquet(path).drop(columns=["lost"], errors="ignore")
        table = table.drop(columns=[c for c in table if c in CLOCKS])
        return table.to_json(double_precision=15), [*map(str, table.dtypes)], hash_of(table)
    if path.suffix == ".csv":
        table = pd.read_csv(path)  # costs are measured in each run
        return table[table["clock"] != "device_seconds"].to_csv() if "clock" in table else None
    return path.read_bytes()


def hash_of(table):
    """Return a hash of all bits of a table's numbers."""
    return pd.util.hash_pandas_object(table, index=True).tolist()


def without_clocks(record):
    if isinstance(record, list):
        kept = [r for r in record if not (isinstance(r, dict) and r.get("clock") in CLOCKS)]
        return [without_clocks(r) for r in kept]
    if not isinstance(record, dict):
        return record
    left = {"checksum", "answer", "provenance"}  # the last two contain times
    return {k: without_clocks(v) for k, v in record.items() if k not in CLOCKS | left}
