"""The project's commands: ``kedro run`` with sentences instead of tracebacks, and the grid."""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping, Sequence
from typing import Any

import click
import yaml
from kedro.config import MissingConfigException
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import KedroCliError
from kedro.framework.project import pipelines
from kedro.io import DatasetError
from kedro.pipeline import Pipeline
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from adaptive_opt.errors import StudyError
from adaptive_opt.io.configuration import nearest
from adaptive_opt.io.hooks import check_way, known_tags
from adaptive_opt.io.private_interfaces import check_versions, replace_viz_commands
from adaptive_opt.io.status.outcome import EXIT_FAILED_ARMS, FAILED_ARMS, how_to_go_on

FAULTS = (StudyError, DatasetError, MissingConfigException)
"""What the user can help: said as one sentence."""

RUNNERS = ("SequentialRunner", "ParallelRunner", "ThreadRunner")

DEFAULT_RUNNER = "adaptive_opt.io.StudyRunner"

LISTED = "kedro registry describe lists them"

RUN_HELP = """Make the study, or a part of it: data, searches, training, tables, figures, verdict.

What is finished is left alone until something that it depends on changes, and what was broken
off goes on: the same command again is always right. kedro adaptive status says what is left.

As many nodes are in work at a time as there are cores; --runner-params=workers=1 makes it one,
as it is on a GPU.

\b
Examples:
  kedro run                                   the default study, minutes
  kedro run --env=smoke                       the same in less than a minute, to try things
  kedro run --env=evening                     real data and longer runs; hours
  kedro run --tags=transformer                one task, with a report of its own
  kedro run --tags=resnet18.adam,resnet18.ssdh   two arms of a task, likewise
  kedro run --pipelines=tuning,training --tags=ssdh
  kedro run --params=tasks.rr_cond29.seeds=32,training.device=cpu

\b
Pipelines: data, rr_synthesis, tuning, training, analysis, and whole studies: __default__,
evening, ladder, zoo, all, fidelity, ledger. An environment with the name of a pipeline runs that.
Tags: tasks (rr_cond29, rr_cond15099, resnet18, transformer), arms (sgdm, adam, sophia, sophia_g,
sadh, ssdh, ssvp, …), one arm of a task (resnet18.adam), kinds (first-order, second-order, ladder,
zoo), halves (rahimi_recht, networks). Tags of a whole study choose a smaller one, which ends with
a report of its own.

\b
Exit code: 0; 1: an error; 3: complete, but for arms that failed (they are named last).
"""

ADAPTIVE_HELP = """Commands that look at the study and change nothing.

\b
Example:
  kedro adaptive status --env=smoke
"""

STATUS_HELP = """What of the grid is done, goes on, is broken off, stale or missing.

Reads only, and starts nothing. A run is stale that was made with other parameters, data or code
than there are now; what has changed is named. How long the rest takes is estimated from what was
finished on the same tasks; – where nothing was. A run shows as running once it has written its
first checkpoint (training.checkpoint_seconds).

\b
Examples:
  kedro adaptive status
  kedro adaptive status --env=paper --tags=resnet18
  kedro adaptive status --pipelines=ladder --json
"""


class _Command(click.Command):
    """One that says a malformed option in a sentence too."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except KedroCliError as error:
            raise click.UsageError(error.message) from error
        except KeyError as error:
            raise click.UsageError(f"--config: the file needs a section {error}") from error
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            said = getattr(error, "problem", None) or str(error).split("\n")[0]
            raise click.UsageError(
                f"--params cannot be read ({said}); write key.inner=value,other=value"
            ) from error


def _options(*names: str) -> list[click.Parameter]:
    """Options of ``kedro run`` by name, all without one."""
    return [p for p in kedro_run.params if not names or p.name in names]


def _run(**options: Any) -> Any:
    if kedro_run.callback is None:
        raise RuntimeError("kedro's run command has no callback")
    try:
        check_versions()
        if (runner := options["runner"]) and "." not in runner:
            _check("runner", [runner], RUNNERS)
        options = with_own_pipeline(options, pipelines)
        check_way(options)  # before ParallelRunner starts a process
        chosen(**options)
        done = kedro_run.callback(**{**options, "runner": runner or DEFAULT_RUNNER})
    except FAULTS as error:
        raise click.ClickException(str(error)) from error
    except ValidationError as error:
        if error.title != "KedroMlflowConfig":
            raise
        said = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise click.ClickException("\n  ".join(["mlflow.yml is at fault:", *said])) from error
    except KeyboardInterrupt:
        click.echo(f"\nBroken off. {how_to_go_on()}", err=True)
        raise
    if click.get_current_context().meta.get(FAILED_ARMS):
        sys.exit(EXIT_FAILED_ARMS)
    return done


def with_own_pipeline(options: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Options of ``kedro run`` with the pipeline that has the environment's name.

    That is run where such a pipeline exists and no other is asked for.
    """
    env, asked = options.get("env"), options.get("pipeline") or options.get("pipelines")
    return {**options, "pipelines": (env,)} if env in known and not asked else dict(options)


def chosen(
    *,
    tags: Sequence[str],
    pipeline: str | None = None,
    node_names: Sequence[str] = (),
    from_nodes: Sequence[str] = (),
    to_nodes: Sequence[str] = (),
    from_inputs: Sequence[str] = (),
    to_outputs: Sequence[str] = (),
    namespaces: Sequence[str] = (),
    **others: Any,
) -> Pipeline:
    """The part of the pipelines that some options of ``kedro run`` choose.

    Raises:
        StudyError: a name is unknown, or nothing is left.
    """
    _check("task, arm, kind or half", tags, known_tags())
    asked = [p for p in (pipeline, *others.get("pipelines", ())) if p]
    _check("pipeline", asked, sorted(pipelines))
    whole = sum((pipelines[name] for name in asked or ["__default__"]), Pipeline([]))
    nodes = sorted(node.name for node in whole.nodes)
    _check("node of these pipelines", [*node_names, *from_nodes, *to_nodes], nodes, LISTED)
    datasets = sorted(whole.datasets())
    _check("dataset of these pipelines", [*from_inputs, *to_outputs], datasets, LISTED)
    words = [(node.namespace or "").split(".") for node in whole.nodes]
    within = {".".join(w[:depth]) for w in words for depth in range(1, len(w) + 1)}
    _check("namespace of these pipelines", namespaces, sorted(within), LISTED)
    try:
        return whole.filter(
            tags=tags,
            node_names=node_names,
            from_nodes=from_nodes,
            to_nodes=to_nodes,
            from_inputs=from_inputs,
            to_outputs=to_outputs,
            node_namespaces=namespaces,
        )
    except ValueError as error:
        raise StudyError("nothing was run: no node is all that was asked for at once") from error


def _check(what: str, names: Sequence[str], known: Sequence[str], many: str = "") -> None:
    for name in names:
        if name not in known:
            raise StudyError(f"no {what} is called {name!r}; {nearest(name, known, many)}")


def _status(*, as_json: bool, env: str | None, params: dict[str, Any], **options: Any) -> None:
    import json

    from adaptive_opt.io.status.report import as_text, look

    try:
        options = with_own_pipeline({"env": env, **options}, pipelines)
        record, command = look(chosen(**options), env, params, options)
    except FAULTS as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(record, indent=1) if as_json else as_text(record, command))


@click.group(name="adaptive_opt")
def cli() -> None:
    """Commands of this project."""


run = _Command("run", params=_options(), callback=_run, help=RUN_HELP)
cli.add_command(run)

# kedro-viz's `deploy` is left out: it would publish the paths of this machine.
replace_viz_commands({name: f"adaptive_opt.io.viz.commands.{name}" for name in ("run", "build")})

adaptive = click.Group("adaptive", help=ADAPTIVE_HELP)
cli.add_command(adaptive)
adaptive.add_command(
    _Command(
        "status",
        params=[
            *_options("env", "pipelines", "tags", "params"),
            click.Option(["--json", "as_json"], is_flag=True, help="For machines."),
        ],
        callback=_status,
        short_help="What is done, under way, stale or missing, and how long the rest takes.",
        help=STATUS_HELP,
    )
)
