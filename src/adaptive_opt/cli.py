"""The project's ``kedro run``: a sentence instead of a traceback where the user can help."""

from __future__ import annotations

import difflib
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from adaptive_opt.errors import StudyError


@click.group(name="adaptive_opt")
def cli() -> None:
    """Commands of this project."""


def _run(**options: Any) -> Any:
    try:
        _check_tags(options["tags"])
        if kedro_run.callback is None:
            raise RuntimeError("kedro's run command has no callback")
        return kedro_run.callback(**options)
    except StudyError as error:
        raise click.ClickException(str(error)) from error


def _check_tags(tags: list[str]) -> None:
    from adaptive_opt.io.hooks import known_tags

    for tag in tags:
        if tag not in known_tags():
            close = difflib.get_close_matches(tag, known_tags(), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known_tags())}"
            raise StudyError(f"no task, arm or kind is called {tag!r}; {hint}")


cli.add_command(click.Command("run", params=kedro_run.params, callback=_run, help=kedro_run.help))
