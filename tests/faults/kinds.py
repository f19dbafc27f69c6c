"""Kinds of faults: each function causes one fault and returns what happened.

Each takes the study and a random generator and returns ``(detail, outcome, said)``. Outcomes:

- ``same``: running again gives the results of an undisturbed run;
- ``named``: an error names the damaged file, and without that file the results are the same;
- ``silent``, a failure: the results differ without an error;
- ``lost``, a failure: the results cannot be made again.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

MARK = "ADAPTIVE_OPT_FAULT"
"""Environment variable that marks the processes of a run."""

SENTENCE = re.compile(r"Error: (.*)")


def sentence(said):
    """Return the error of a command."""
    found = SENTENCE.findall(said)
    return found[-1].strip() if found else said.strip()[-2000:]


def again(study, code=0, said="", **options):
    """Run again after a fault; return the outcome and the error."""
    if code > 0 and "Traceback" in said:
        return "lost", f"a traceback: {said[said.index('Traceback') :][:2000]}"
    first = sentence(said) if code > 0 else ""
    code, said = study.run(**options)
    if code == 0:
        wrong = study.differences()
        return ("silent", "; ".join(wrong)) if wrong else ("same", first)
    return "lost", f"exit {code}: {sentence(said)}"


def strike_at(study, process, moment, strike):
    """Call a function after some seconds of a command, if the command still runs."""
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        strike(process)
    return study.wait(process)


def children(process):
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(p) for p in found.read_text().split()] if found.exists() else []


def kill_process(study, rng, length):
    """Kill the command and all of its processes with SIGKILL."""
    study.empty()
    times = rng.choice([1, 1, 2])
    moments = [rng.uniform(0.0, length) for _ in range(times)]
    for moment in moments:
        process = study.start()
        strike_at(study, process, moment, lambda p: os.killpg(p, signal.SIGKILL))
    return f"after {', '.join(f'{m:.2f}' for m in moments)} s", *again(study)


def interrupt_process(study, rng, length):
    """Interrupt the command with SIGTERM or Ctrl-C."""
    study.empty()
    moment, sign = rng.uniform(0.0, length), rng.choice([signal.SIGINT, signal.SIGTERM])
    process = study.start()
    code, said = strike_at(study, process, moment, lambda p: os.kill(p, sign))
    return f"{sign.name} after {moment:.2f} s", *again(study, min(code, 0), said)


def kill_worker(study, rng, length):
    """Kill one worker process with SIGKILL."""
    study.empty()
    moment, which = rng.uniform(0.0, length), rng.random()
    process = study.start("--runner-params=workers=2")

    def strike(parent):
        crew = children(parent)
        if crew:
            os.kill(crew[int(which * len(crew))], signal.SIGKILL)

    code, said = strike_at(study, process, moment, strike)
    if code > 0 and "its process died (SIGKILL)" not in said:
        return f"after {moment:.2f} s", "lost", f"not said what died: {sentence(said)}"
    return f"after {moment:.2f} s", *again(study, code, said)


def kill_ray_worker(study, rng, length):
    """Kill a Ray worker with SIGKILL; Ray must restart its node."""
    if find_spec("ray") is None:
        raise Unavailable("Ray is not installed")
    del length
    ray = ["--runner=adaptive_opt.io.RayRunner"]
    length = study.length_of(*ray)
    study.empty()
    moment, which = rng.uniform(0.2, 1.0) * length, rng.random()
    mark = f"{study.folder} {rng.random()}"
    process = study.start(*ray, environment={MARK: mark})
    killed = []

    def strike(_):
        crew = ray_workers(mark)
        at_work = [p for p, name in crew if name != "ray::IDLE"] or [p for p, _ in crew]
        if at_work:
            killed.append(at_work[int(which * len(at_work))])
            os.kill(killed[0], signal.SIGKILL)

    code, said = strike_at(study, process, moment, strike)
    detail = f"after {moment:.2f} s" if killed else f"none was there after {moment:.2f} s"
    if code:
        return detail, "lost", f"exit {code}: {sentence(said)}"
    if wrong := study.differences():
        return detail, "silent", "; ".join(wrong)
    return detail, *again(study)


def ray_workers(mark):
    """Return the worker processes of a marked Ray, each with the name of its task.

    Not its agents: without them Ray takes the machine for dead.
    """
    found = []
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda f: int(f.name)):
        with contextlib.suppress(OSError):
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
            marked = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if name.startswith("ray::") and not name.endswith("Agent") and marked:
                found.append((int(folder.name), name.split()[0]))
    return found


def fill_disk(study, rng, length):
    """Fill the disk with the results, then make room again."""
    del length
    study.empty()
    whole = sum(p.stat().st_size for p in study.golden.rglob("*") if p.is_file())
    room = int(rng.uniform(0.05, 1.1) * whole)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(study.data)]
    subprocess.run(mount, check=True)
    try:
        code, said = study.run()
        if code > 0 and not re.search(r"(?i)no space left|disk is full|file too large", said):
            return f"{room:,} bytes", "lost", f"not said that it is full: {sentence(said)}"
        more = ["mount", "-o", "remount,size=256m", str(study.data)]
        subprocess.run(more, check=True)
        return f"{room:,} bytes", *again(study, code, said)
    finally:
        subprocess.run(["umount", str(study.data)], check=True)


def no_file_grows(study, rng, length):
    """Limit the size of files, as a quota does."""
    del length
    import resource

    study.empty()
    limit = int(10 ** rng.uniform(2.5, 5.3))

    def patch():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    code, said = study.run(patch=patch)
    return f"{limit:,} bytes a file", *again(study, code, said)


def _truncate(content, rng):
    return content[: int(rng.random() * len(content))]


def _flip(content, rng):
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _broken_off(study, rng, length):
    """Return a killed run, which has checkpoints and half of the results."""
    study.empty()
    process = study.start()
    strike_at(
        study, process, rng.uniform(0.3, 1.0) * length, lambda p: os.killpg(p, signal.SIGKILL)
    )


def _damage(study, rng, length, damage):
    """Damage one file of a finished or interrupted run, then run again."""
    broken = rng.random() < 0.4
    if broken:
        _broken_off(study, rng, length)
    else:
        study.finished()
    files = study.artifacts()
    if not files:
        return "nothing was there yet", *again(study)
    checkpoints = [f for f in files if f.name == "checkpoint.pt"]
    file = rng.choice(checkpoints if checkpoints and rng.random() < 0.5 else files)
    file.write_bytes(damage(file.read_bytes(), rng))
    named = file.relative_to(study.data)
    detail = f"{named}, {'interrupted' if broken else 'finished'}"
    if not broken and rng.random() < 0.5:  # run a part that reads the other results
        code, said = study.run("--tags=sgdm,ssdh", "--namespaces=training,analysis.verdict")
        detail += ", then a part"
        wrong = study.differences("verdict.json") if code == 0 else []
        if wrong:
            return detail, "silent", "; ".join(wrong)
        if code and str(named) not in said:
            return detail, "lost", f"the file is not named: {sentence(said)}"
    return detail, *_after_damage(study, file, named)


def _after_damage(study, file, named):
    code, said = study.run()
    if code == 0:
        wrong = study.differences()
        return ("silent", "; ".join(wrong)) if wrong else ("same", "")
    if "Traceback" in said or file.name.removesuffix("-wal").removesuffix("-shm") not in said:
        return "lost", f"the file is not named: {sentence(said)}"
    first = sentence(said)
    beside = file.with_name(file.name.removesuffix("-wal").removesuffix("-shm"))
    for left in beside.parent.glob(f"{beside.name}*"):  # as the error says
        left.unlink()
    outcome, said = again(study)
    return ("named", first) if outcome == "same" else (outcome, said)


def truncate(study, rng, length):
    """Truncate a file."""
    return _damage(study, rng, length, _truncate)


def flip_bits(study, rng, length):
    """Flip one or several bits of a file."""
    return _damage(study, rng, length, _flip)


def diverge(study, rng, length):
    """Make the loss of one seed NaN; the other seeds must not change."""
    del length
    study.empty()
    task, arm = "rr_cond29", rng.choice(["sgdm", "ssdh"])
    member, iteration = rng.randrange(2), rng.randrange(20, 250)

    def patch():
        import torch

        from adaptive_opt.tasks import rahimi_recht

        original = rahimi_recht.RahimiRecht.loss_and_gradient
        calls = iter(range(10**9))

        def poisoned(self, weights, batch, *rest, **named):
            losses, gradients = original(self, weights, batch, *rest, **named)
            if self.members == 2 and next(calls) == iteration:
                gradients = [g.clone() for g in gradients]
                for g in gradients:
                    g[member] = torch.nan
            return losses, gradients

        rahimi_recht.RahimiRecht.loss_and_gradient = poisoned

    import json

    import pandas as pd

    name = f"07_model_output/smoke/{task}/{arm}"
    study.finished()
    shutil.rmtree(study.data / name)
    code, said = study.run(f"--nodes=training.{task}.{arm}.train", patch=patch)
    detail = f"{task}, {arm}, seed {member}, at iteration {iteration}"
    if code:
        return detail, "lost", sentence(said)
    summary = json.loads((study.data / name / "summary.json").read_text("utf-8"))
    histories = [pd.read_parquet(f / name / "history.parquet") for f in (study.data, study.golden)]
    sound, before = (h[h["seed"] != member].drop(columns="device_seconds") for h in histories)
    if summary["diverged_at"][member] is None:
        return detail, "silent", "the divergence is not on record"
    if not sound.reset_index(drop=True).equals(before.reset_index(drop=True)):
        return detail, "silent", "another seed's history differs"
    code, said = study.run()  # the verdict on a run with a seed that diverged
    if code:
        return detail, "lost", f"exit {code}: {sentence(said)}"
    return detail, *again(study, training__resume="false")


class Servers:
    """A PostgreSQL server and an MLflow server, each started at its first use."""

    def __init__(self, scratch):
        self.scratch = scratch
        self._postgresql, self._databases = None, 0

    def database(self):
        """Return the URL of a new database."""
        if self._postgresql is None:
            self._postgresql = _postgresql(self.scratch / "postgresql")
        self.start()
        import psycopg

        self._databases += 1
        name = f"faults{self._databases}_{os.getpid()}"
        with psycopg.connect(self._postgresql.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._postgresql.url.rsplit("/", 1)[0] + f"/{name}"

    def start(self):
        self._postgresql.start()

    def kill(self):
        self._postgresql.kill()

    def close(self):
        if self._postgresql is not None:
            self._postgresql.kill()


class _postgresql:  # noqa: N801
    def __init__(self, folder):
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not programs:
            raise Unavailable("PostgreSQL is not installed")
        self.programs, self.folder = programs[-1].parent, folder
        folder.mkdir()
        self.as_user = []
        if os.geteuid() == 0:
            self.as_user = ["runuser", "-u", "postgres", "--"]
            for parent in [folder, *folder.parents]:
                if len(parent.parts) > 2:
                    parent.chmod(parent.stat().st_mode | 0o755)
            shutil.chown(folder, "postgres")
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.port = bound.getsockname()[1]
        self.url = f"postgresql://tuner@127.0.0.1:{self.port}/postgres"
        self._do("initdb", "-D", folder / "data", "-U", "tuner", "--auth=trust")

    def _do(self, program, *arguments, check=True):
        command = [*self.as_user, str(self.programs / program), *map(str, arguments)]
        return subprocess.run(command, check=check, capture_output=True, cwd="/").returncode

    def start(self):
        if self._do("pg_ctl", "-D", self.folder / "data", "status", check=False) == 0:
            return
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        log = self.folder / "log"
        self._do("pg_ctl", "-D", self.folder / "data", "-w", "-l", log, "-o", options, "start")

    def kill(self):
        self._do("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop", check=False)


class Unavailable(Exception):  # noqa: N818
    """A kind of fault is impossible on this machine."""


def kill_database(study, rng, length, servers):
    """Kill the PostgreSQL server of the studies, then restart it."""
    study.empty()
    url = servers.database()
    environment = {"ADAPTIVE_OPT_TUNING_STORAGE": url}
    moment = rng.uniform(0.2, 0.8) * length  # searches are in the middle
    process = study.start(environment=environment)
    code, said = strike_at(study, process, moment, lambda _: servers.kill())
    detail = f"after {moment:.2f} s"
    if code > 0 and "127.0.0.1" not in sentence(said):
        return detail, "lost", f"the database is not named: {sentence(said)}"
    servers.start()
    return detail, *again(study, code, said, environment=environment)


def kill_tracker(study, rng, length):
    """Kill the MLflow server during a run, and do not restart it."""
    study.empty()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    command += ["--workers=1", f"--backend-store-uri=sqlite:///{study.folder}/mlflow.db"]
    server = subprocess.Popen(
        command, cwd=study.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    try:
        for _ in range(1200):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        settings = {"tracking__enabled": "true", "tracking__wait_seconds": "1"}
        environment = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        moment = rng.uniform(0.0, 1.2) * length
        process = study.start(environment=environment, **settings)
        strike = lambda _: os.killpg(server.pid, signal.SIGKILL)  # noqa: E731
        code, said = strike_at(study, process, moment, strike)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    if code:
        return f"after {moment:.2f} s", "lost", sentence(said)
    wrong = study.differences()
    if wrong:
        return f"after {moment:.2f} s", "silent", "; ".join(wrong)
    return f"after {moment:.2f} s", *again(study)
