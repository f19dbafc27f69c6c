"""Check that the results of a study survive killed processes, full disks and damaged files.

    python tests/faults/harness.py --faults 200 --seed 0 --json FILE

runs a small study at the scale smoke, causes a fault at a random moment and runs the study again.
It compares the results with those of an undisturbed run, bit for bit except for the clocks. The
exit status is 1 if a result was lost, or differs without an error. If interrupted, it continues
where it was.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults import kinds
from tests.faults.study import Study

WEIGHTS = {
    "kill_process": 6,
    "interrupt_process": 3,
    "kill_worker": 5,
    "kill_ray_worker": 3,
    "kill_database": 4,
    "kill_tracker": 2,
    "fill_disk": 4,
    "no_file_grows": 2,
    "truncate": 6,
    "flip_bits": 9,
    "diverge": 3,
}
BAD = ("silent", "lost")
OUTCOMES = ("same", "named", *BAD, "skipped")


def can_mount(folder):
    """Return why no small disk can be mounted here; empty if one can."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return "only root may mount a small disk"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return done.stderr.strip()
    subprocess.run(["umount", str(folder)], check=True)
    return ""


def plan(count, seed, chosen):
    """Return the kind of each fault by its number."""
    weights = [WEIGHTS[name] for name in chosen]
    return [random.Random(f"{seed} {i}").choices(chosen, weights)[0] for i in range(count)]  # noqa: S311


def undisturbed(study):
    """Run the study twice without a fault, check that results agree, return the seconds."""
    for first in (True, False):
        study.empty()
        begun = time.monotonic()
        code, said = study.run()
        length = time.monotonic() - begun
        if code:
            raise SystemExit(f"the undisturbed run failed:\n{said}")
        if first:
            study.keep()
        elif wrong := study.differences():
            raise SystemExit(f"two undisturbed runs differ: {wrong}")
    return length


def strike(study, servers, seed, number, kind, length):
    """Cause one fault and return its record."""
    rng = random.Random(f"{seed} {number} {kind}")  # noqa: S311
    function = getattr(kinds, kind)
    if kind == "kill_database":
        function = partial(function, servers=servers)
    before = study.seconds
    detail, outcome, said = function(study, rng, length)
    used = round(study.seconds - before, 2)
    words = said.replace(str(study.folder), "…")[: 400 if outcome not in BAD else 3000]
    return {"number": number, "kind": kind, "detail": detail, "outcome": outcome, "said": words,
            "cpu_seconds": used}  # fmt: skip


def table(faults):
    """Return a table of outcomes by kind."""
    counts = Counter((f["kind"], f["outcome"]) for f in faults)
    lines = [f"{'':<20}" + "".join(f"{o:>9}" for o in OUTCOMES)]
    for kind in [k for k in WEIGHTS if any(f["kind"] == k for f in faults)]:
        lines.append(f"{kind:<20}" + "".join(f"{counts[kind, o]:>9}" for o in OUTCOMES))
    return "\n".join(lines)


def main():
    line = argparse.ArgumentParser(description=__doc__)
    line.add_argument("--faults", type=int, default=200)
    line.add_argument("--seed", type=int, default=0)
    line.add_argument("--json", type=Path, help="the record; goes on with one that is there")
    line.add_argument("--kinds", default=",".join(WEIGHTS))
    line.add_argument("--only", type=int, help="the fault with this number, and no other")
    given = line.parse_args()
    chosen = given.kinds.split(",")
    record = {"seed": given.seed, "kinds": chosen, "faults": []}
    if given.json and given.json.exists():
        record = json.loads(given.json.read_text("utf-8"))
        if (record["seed"], record["kinds"]) != (given.seed, chosen):
            raise SystemExit(f"{given.json} is of another seed or of other kinds")
    done = {f["number"] for f in record["faults"]}
    scratch = Path(tempfile.mkdtemp(prefix="faults-"))
    servers = kinds.Servers(scratch)
    (scratch / "study").mkdir()
    study = Study(scratch / "study")
    try:
        study.import_everything()
        length = undisturbed(study)
        why = can_mount(study.data)
        for number, kind in enumerate(plan(given.faults, given.seed, chosen)):
            if number in done or given.only not in (None, number):
                continue
            if kind == "fill_disk" and why:
                fault = {"number": number, "kind": kind, "outcome": "skipped", "said": why}
            else:
                try:
                    fault = strike(study, servers, given.seed, number, kind, length)
                except kinds.Unavailable as reason:
                    fault = {"number": number, "kind": kind, "outcome": "skipped"}
                    fault["said"] = str(reason)
            record["faults"].append(fault)
            print(*(fault.get(k, "") for k in ("number", "kind", "outcome", "detail", "said")),
                  sep="  ", flush=True)  # fmt: skip
            save(record, given.json)
    finally:
        study.close()
        servers.close()
        shutil.rmtree(scratch, ignore_errors=True)
    print(table(record["faults"]))
    return int(any(f["outcome"] in BAD for f in record["faults"]))


def save(record, path):
    from importlib.metadata import version

    if path is None:
        return
    record["versions"] = {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "optuna", "kedro", "mlflow")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".tmp")
    partial_file.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    partial_file.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
