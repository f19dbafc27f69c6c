"""The project's ``kedro run``: a sentence instead of a traceback where the user can help."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.project import pipelines
from kedro.io import DatasetError
from kedro_viz.launchers.cli.main import viz

from adaptive_opt.errors import StudyError
from adaptive_opt.io.hooks import known_tags


@click.group(name="adaptive_opt")
def cli() -> None:
    """Commands of this project."""


def _run(**options: Any) -> Any:
    if kedro_run.callback is None:
        raise RuntimeError("kedro's run command has no callback")
    try:
        _check("task, arm, kind or half", options["tags"], known_tags())
        asked = [p for p in (options["pipeline"], *options["pipelines"]) if p]
        _check("pipeline", asked, sorted(pipelines))
        return kedro_run.callback(**options)
    except (StudyError, DatasetError) as error:
        raise click.ClickException(str(error)) from error


def _check(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise StudyError(f"no {what} is called {name!r}; {hint}")


run = click.Command("run", params=kedro_run.params, callback=_run, help=kedro_run.help)
cli.add_command(run)

# kedro-viz's commands are global, which a project cannot define anew. Its `deploy` would publish
# the paths of this machine.
viz.lazy_subcommands = {"run": "adaptive_opt.io.viz.run", "build": "adaptive_opt.io.viz.build"}
