"""Run Kedro's commands without the seconds that a new process spends on imports.

One process imports what the commands need; each command is run in a fork of it, which has
nothing of the commands before: no catalog, no session, no connection.

    python -m tests.project.warm PROJECT

reads commands, a JSON record a line, and answers each with the exit status.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

FORKS = hasattr(os, "fork")
MODULES = (
    *("kedro.framework.cli.cli", "kedro.framework.session", "kedro.runner", "kedro_mlflow"),
    *("kedro_mlflow.framework.cli.cli", "mlflow"),
    *("kedro_viz.integrations.kedro.hooks", "kedro_viz.integrations.kedro.run_hooks"),
    *("matplotlib.backends.backend_agg", "optuna", "optuna.visualization", "pandas", "plotly"),
    *("scipy.stats", "sklearn.ensemble", "sqlalchemy", "statsmodels.api", "torch", "torch._dynamo"),
    *("adaptive_opt.settings", "adaptive_opt.pipeline_registry", "adaptive_opt.cli"),
    *("adaptive_opt.engine.network", "adaptive_opt.engine.rahimi_recht", "adaptive_opt.search.arm"),
    *("adaptive_opt.io.datasets", "adaptive_opt.io.runners.local_runner", "adaptive_opt.io.runs"),
    *("adaptive_opt.evidence.verdict", "adaptive_opt.plots.page", "adaptive_opt.plots.tuning"),
)


class WarmKedro:
    """Runs the commands of one project; the process with all imports starts at the first.

    Args:
        project: its folder.
        scratch: an empty folder.
    """

    def __init__(self, project, scratch):
        self.project, self.scratch = project, scratch
        self.server = None

    def __call__(self, *args, **environment):
        """Return what ``subprocess.run(["kedro", *args])`` would."""
        if self.server is None:
            path = os.pathsep.join([str(self.project / "src"), str(Path(__file__).parents[2])])
            self.server = subprocess.Popen(
                [sys.executable, "-m", "tests.project.warm"],
                cwd=self.project, env=_environment(PYTHONPATH=path), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        files = [self.scratch / name for name in ("stdout", "stderr")]
        order = {"args": args, "environment": environment, "files": [str(f) for f in files]}
        print(json.dumps(order), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        out, err = (f.read_text(encoding="utf-8") for f in files)
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    def close(self):
        if self.server is not None:
            self.server.stdin.close()
            self.server.wait()


def run_kedro(project, *args, **environment):
    """Run one command in a new process."""
    command = [str(Path(sys.executable).with_name("kedro")), *args]
    return subprocess.run(
        command, cwd=project, env=_environment(PYTHONPATH="", **environment),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def _environment(**changed):
    return {**os.environ, "COLUMNS": "500", **changed}


def _serve():
    import importlib

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of imports must not mix with answers
    for name in MODULES:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            _run(order)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(order):
    from kedro.framework.cli.cli import main

    for number, name in enumerate(order["files"], start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(order["environment"])
    sys.argv = ["kedro", *order["args"]]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
