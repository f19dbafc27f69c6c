"""The project's commands: ``kedro run`` with one-sentence errors, and ``kedro adaptive``."""

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

from adaptive_opt.errors import StudyError, nearest
from adaptive_opt.io.hooks import check_way
from adaptive_opt.io.private_interfaces import check_versions, replace_viz_commands
from adaptive_opt.io.status.outcome import EXIT_FAILED_ARMS, FAILED_ARMS, how_to_continue
from adaptive_opt.pipelines.selection import StudyPipeline
from adaptive_opt.study import known_tags, run_tags

USER_ERRORS = (StudyError, DatasetError, MissingConfigException)
"""Errors that the user can correct; shown without a traceback."""

RUNNERS = ("SequentialRunner", "ParallelRunner", "ThreadRunner")

DEFAULT_RUNNER = "adaptive_opt.io.StudyRunner"

LIST_HINT = "kedro registry describe lists the valid names"

RUN_HELP = """Run the study or a part of it: data, searches, training, tables, figures, verdict.

Run the same command again to continue. Finished runs are kept until their parameters, data or code
change; interrupted runs resume. kedro adaptive status shows what is left to do.

On a CPU, as many nodes run in parallel as there are cores; --runner-params=workers=1 runs one at a
time. On a GPU, one node runs at a time.

\b
Examples:
  kedro run                                   the default study; takes minutes
  kedro run --env=smoke                       a tiny version of it, to try things
  kedro run --env=evening                     real data and longer runs; takes hours
  kedro run --tags=transformer                one task, with its own report
  kedro run --tags=resnet18.adam,resnet18.ssdh   two arms on a task, with their own report
  kedro run --pipelines=tuning,training --tags=ssdh
  kedro run --params=tasks.rr_cond29.seeds=32,training.device=cpu

\b
Pipelines: data, rr_synthesis, tuning, training, analysis, and whole studies: __default__,
evening, ladder, zoo, custom, all, fidelity, curvature, ledger. An environment with the name of a
pipeline runs that pipeline.
Tags: tasks (rr_cond29, rr_cond15099, resnet18, transformer), arms (sgdm, adam, sophia, sophia_g,
sadh, ssdh, ssvp, …), one arm on a task (resnet18.adam), kinds (first-order, second-order, ladder,
zoo), halves (rahimi_recht, networks). Tags of a whole study select a smaller study with its own
report.

\b
Exit codes: 0: success; 1: error; 3: complete, but some arms failed (listed at the end).
"""

ADAPTIVE_HELP = """Read-only commands that inspect the study.

\b
Example:
  kedro adaptive status --env=smoke
"""

STATUS_HELP = """Show which runs are done, running, interrupted, stale or missing.

A run is stale if its parameters, data or code have changed since; the changes are shown. The
remaining time is estimated from finished runs on the same task (–: there are none). A run counts
as running from its first checkpoint on (training.checkpoint_seconds).

\b
Examples:
  kedro adaptive status
  kedro adaptive status --env=paper --tags=resnet18
  kedro adaptive status --pipelines=ladder --json
"""


class _Command(click.Command):
    """A command that reports malformed options in one sentence."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except KedroCliError as error:
            raise click.UsageError(error.message) from error
        except KeyError as error:
            raise click.UsageError(f"--config: the file has no section {error}; add it") from error
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            reason = getattr(error, "problem", None) or str(error).split("\n")[0]
            raise click.UsageError(
                f"--params cannot be read ({reason}); write key.inner=value,other=value"
            ) from error


def _options(*names: str) -> list[click.Parameter]:
    """Return the named options of ``kedro run``, or all of them."""
    return [p for p in kedro_run.params if not names or p.name in names]


def _run(**options: Any) -> Any:
    if kedro_run.callback is None:
        raise RuntimeError("kedro's run command has no callback")
    try:
        check_versions()
        if (runner := options["runner"]) and "." not in runner:
            _check_names("runner", [runner], RUNNERS)
        options = with_own_pipeline(options, pipelines)
        check_way(options)  # before ParallelRunner starts a process
        select_pipeline(**options)  # raises an error if a name is unknown
        result = kedro_run.callback(**{**options, "runner": runner or DEFAULT_RUNNER})
    except USER_ERRORS as error:
        raise click.ClickException(str(error)) from error
    except ValidationError as error:
        if error.title != "KedroMlflowConfig":
            raise
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise click.ClickException("\n  ".join(["mlflow.yml has faults:", *faults])) from error
    except KeyboardInterrupt:
        click.echo(f"\nInterrupted. {how_to_continue()}", err=True)
        raise
    if click.get_current_context().meta.get(FAILED_ARMS):
        sys.exit(EXIT_FAILED_ARMS)
    return result


def with_own_pipeline(options: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """Add the pipeline with the environment's name to options that select no pipeline.

    Args:
        options: options of ``kedro run``.
        known: names of the registered pipelines.
    """
    env, selected = options.get("env"), options.get("pipeline") or options.get("pipelines")
    return {**options, "pipelines": (env,)} if env in known and not selected else dict(options)


def select_pipeline(
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
    """Return the part of the registered pipelines that options of ``kedro run`` select.

    Raises:
        StudyError: a name is unknown, or no node is selected.
    """
    _check_names("task, arm, kind or half", tags, known_tags())
    selected = [p for p in (pipeline, *others.get("pipelines", ())) if p]
    _check_names("pipeline", selected, sorted(pipelines))
    selected = selected or ["__default__"]
    whole = sum((pipelines[name] for name in selected), Pipeline([]))
    for tag in (tag for tag in tags if not _has_tag(whole, tag)):
        found = [name for name, other in pipelines.items() if _has_tag(other, tag)]
        studies = [name for name in found if isinstance(pipelines[name], StudyPipeline)]
        raise StudyError(
            f"--tags={tag}: not part of {', '.join(selected)}; select a pipeline that contains it "
            f"with --pipelines: {', '.join(studies or found)}"
        )
    nodes = sorted(node.name for node in whole.nodes)
    _check_names("node of these pipelines", [*node_names, *from_nodes, *to_nodes], nodes, LIST_HINT)
    datasets = sorted(whole.datasets())
    _check_names("dataset of these pipelines", [*from_inputs, *to_outputs], datasets, LIST_HINT)
    parts = [(node.namespace or "").split(".") for node in whole.nodes]
    known = {".".join(p[:depth]) for p in parts for depth in range(1, len(p) + 1)}
    _check_names("namespace of these pipelines", namespaces, sorted(known), LIST_HINT)
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
        raise StudyError(
            "nothing was run: no node matches all of these options; remove one of them"
        ) from error


def _has_tag(pipeline: Pipeline, tag: str) -> bool:
    if isinstance(pipeline, StudyPipeline):  # the nodes of its data have the tags of all arms
        return any(tag in run_tags(*run) for run in pipeline.runs)
    return any(tag in node.tags for node in pipeline.nodes)


def _check_names(kind: str, names: Sequence[str], known: Sequence[str], hint: str = "") -> None:
    for name in names:
        if name not in known:
            raise StudyError(f"no {kind} is called {name!r}; {nearest(name, known, hint)}")


def _status(*, as_json: bool, env: str | None, params: dict[str, Any], **options: Any) -> None:
    import json

    from adaptive_opt.io.status.report import as_text, look

    try:
        options = with_own_pipeline({"env": env, **options}, pipelines)
        record, command = look(select_pipeline(**options), env, params)
    except USER_ERRORS as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(record, indent=1) if as_json else as_text(record, command))


@click.group(name="adaptive_opt")
def cli() -> None:
    """Commands of this project."""


run = _Command("run", params=_options(), callback=_run, help=RUN_HELP)
cli.add_command(run)

# Omit kedro-viz's `deploy`, which would publish the paths of this machine.
replace_viz_commands({name: f"adaptive_opt.io.viz.{name}" for name in ("run", "build")})

adaptive = click.Group("adaptive", help=ADAPTIVE_HELP)
cli.add_command(adaptive)
adaptive.add_command(
    _Command(
        "status",
        params=[
            *_options("env", "pipelines", "tags", "params"),
            click.Option(["--json", "as_json"], is_flag=True, help="Print the status as JSON."),
        ],
        callback=_status,
        short_help="Show which runs are done, running, stale or missing, and the remaining time.",
        help=STATUS_HELP,
    )
)
