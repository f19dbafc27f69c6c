"""One ``kedro run`` from the side of the process that trains: a folder, a sender, a last word."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import adaptive_opt
from adaptive_opt.files import changed_at
from adaptive_opt.parameters.models import TrackingParameters

from .spool import Record, Spool, milliseconds
from .training import ENVIRONMENT

__all__ = ["UNSENT", "Destination", "TrackedRun"]

logger = logging.getLogger(__name__)

UNSENT = "mlflow_unsent"
"""Folder in the project with what MLflow has not taken yet."""

KEPT_RUNS = 20
"""Runs that wait to be sent; those before them are given up."""

STARTS_WITHIN = 60.0
"""Seconds a sender is given to find out whether MLflow can be reached, a new database made."""


class Destination:
    """Where runs are recorded.

    Args:
        uri: of a tracking server or a database.
        experiment: its name.
        project: the project's folder, where artifacts are kept if no server does, and records
            until they are sent.
    """

    def __init__(self, uri: str, experiment: str, project: Path) -> None:
        self.uri, self.experiment = uri, experiment
        self.artifacts = project / "mlflow_artifacts"
        self.unsent = project / UNSENT


class TrackedRun:
    """A run that is being recorded.

    Args:
        to: where.
        name: of the run.
        settings: see :class:`~adaptive_opt.parameters.models.TrackingParameters`.
        tags, params: of the run.
        inherited: tags that its children have, too.
    """

    def __init__(
        self,
        to: Destination,
        name: str,
        settings: TrackingParameters,
        tags: dict[str, str],
        params: dict[str, str],
        inherited: dict[str, str],
    ) -> None:
        self._to, self._settings = to, settings
        self._begun = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._begun))
        self._spool = Spool(to.unsent / f"{stamp}-{uuid.uuid4().hex[:8]}")
        self._give_up_oldest()
        run: Record = {"name": name, "time": milliseconds(), "tags": tags, "params": params}
        self._spool.open(run | {"inherited": inherited})
        self._sender = self._start()
        told = {"folder": str(self._spool.folder), **settings.model_dump()}
        os.environ[ENVIRONMENT] = json.dumps(told)

    def _start(self) -> subprocess.Popen[bytes]:
        source = str(Path(adaptive_opt.__file__).parents[1])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        environment |= {"MLFLOW_TRACKING_URI": self._to.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "adaptive_opt.io.tracking.sender"]
        command += [str(self._spool.folder), "--process", str(os.getpid())]
        command += ["--experiment", self._to.experiment]
        command += ["--artifacts", str(self._to.artifacts)]
        with (self._spool.folder / "sender.log").open("wb") as log:
            return subprocess.Popen(  # noqa: S603
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # what the terminal interrupts is the training alone
            )

    def _give_up_oldest(self) -> None:
        left = sorted(f for f in self._to.unsent.glob("*") if Spool(f).left)
        for folder in left[:-KEPT_RUNS]:
            logger.warning("%s is given up: %d newer runs wait for MLflow", folder.name, KEPT_RUNS)
            Spool(folder).remove()

    def wrote(self, path: Path) -> bool:
        """Whether a file is of this run."""
        return changed_at(path) >= self._begun

    def close(self, status: str, files: list[tuple[str, str, float]]) -> str | None:
        """End the run; what has to be said of it, if anything.

        Args:
            status: ``FINISHED``, ``FAILED`` or ``KILLED``.
            files: of each the path, the folder among the artifacts and when it was written.
        """
        os.environ.pop(ENVIRONMENT, None)
        seconds = round(time.time() - self._begun, 3)
        record: Record = {"status": status, "time": milliseconds(), "files": files}
        self._spool.close({**record, "metrics": {"seconds": seconds}})
        try:
            self._wait()
        finally:
            if self._sender.poll() is None:
                self._sender.kill()
                self._sender.wait()
        return self._last_word()

    def _wait(self) -> None:
        """For the sender, with a limit: one for it to find MLflow, one for it to send the rest."""
        start = time.monotonic()
        while not self._spool.state() and self._sender.poll() is None:
            if time.monotonic() - start > STARTS_WITHIN:
                return
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._sender.wait(self._settings.wait_seconds)

    def _excuse(self) -> str:
        if self._sender.returncode == 1:
            return f"see {self._to.unsent.name}/{self._spool.key}/sender.log"
        return "it is slow"

    def _last_word(self) -> str | None:
        from .store import without_password

        state, left = self._spool.state(), len(self._spool.waiting())
        where = without_password(self._to.uri)
        if self._spool.run() is not None:
            self._spool.leave()
            reason = state.get("reason") or self._excuse()
            return (
                f"MLflow at {where} has not taken {left} records of this run ({reason}); "
                f"they wait in {self._to.unsent.name} and are sent with the next run"
            )
        self._spool.remove()
        with contextlib.suppress(OSError):  # others wait there
            self._to.unsent.rmdir()
        if refused := state.get("refused"):
            return f"MLflow at {where} refused {len(refused)} records of this run: {refused[0]}"
        return None
