"""``kedro viz run`` and ``kedro viz build``: kedro-viz's page, rearranged and kept to itself.

Both take what kedro-viz says of the project through :mod:`adaptive_opt.io.viz.graph`. Neither the
page nor the server asks another host: kedro-viz's own would load a font from Google and look up
its newest version at the Python Package Index.
"""

from __future__ import annotations

import shutil
import socket
import sys
import webbrowser
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click
import kedro_viz
from kedro.framework.project import PACKAGE_NAME
from kedro.utils import find_kedro_project
from kedro_viz.launchers.cli.run import run as kedro_viz_run

from .graph import adapt_page, machine_paths, nest, replace_in_strings

__all__ = ["Lineage", "build", "run"]

DEFAULT = "__default__"
PAGE = Path(kedro_viz.__file__).parent / "html"
# What kedro-viz's own server is needed for.
FOREIGN_OPTIONS = ("load_file", "save_file", "autoreload", "include_hooks", "lite")


class Lineage:
    """The project in the working directory, as much of it as kedro-viz has been told of.

    kedro-viz takes seconds to take in a large pipeline, so it is told of each when that is first
    asked for.

    Attributes:
        project: its folder.
        names: of its pipelines.
    """

    def __init__(self, env: str | None = None, params: Any = None) -> None:
        from kedro_viz.data_access import data_access_manager
        from kedro_viz.integrations.kedro.data_loader import load_data
        from kedro_viz.server import populate_data

        self.project = find_kedro_project(Path.cwd())
        if self.project is None:
            raise click.ClickException("no Kedro project here or above")
        self._catalog, self._untold, extras = load_data(
            self.project, env, package_name=PACKAGE_NAME, extra_params=params
        )
        self._manager = data_access_manager
        populate_data(self._manager, self._catalog, {}, extras)
        self.names = [*self._untold]

    def only(self, names: Sequence[str]) -> None:
        """Leave out all pipelines but some.

        Raises:
            click.ClickException: one of them does not exist.
        """
        for name in names:
            if name not in self.names:
                raise click.ClickException(f"no pipeline is called {name!r}")
        self.names = [*names]

    @property
    def first(self) -> str:
        """The pipeline that the page opens with."""
        return DEFAULT if DEFAULT in self.names else self.names[0]

    def graph(self, name: str | None = None) -> dict[str, Any]:
        """What the page draws of a pipeline; None: of the one that it opens with."""
        from fastapi.encoders import jsonable_encoder
        from kedro_viz.api.rest.responses.pipelines import get_pipeline_response

        name = name or self.first
        self._tell(name)
        graph = nest(jsonable_encoder(get_pipeline_response(name)))
        return {**graph, "pipelines": [{"id": name, "name": name} for name in self.names]}

    def _tell(self, name: str) -> None:
        pipeline = self._untold.pop(name, None)
        if pipeline is None:
            return
        self._manager.resolve_dataset_factory_patterns(self._catalog, {name: pipeline})
        self._manager.add_pipeline(name, pipeline)
        for node in self._manager.nodes.as_list():
            task = getattr(node, "kedro_obj", None)
            function = getattr(task, "func", None)
            # kedro-viz shows the source of functions, and of partial objects nothing.
            if task is not None and isinstance(function, partial):
                task.func = function.func

    def write_site(self, into: Path, *, previews: bool = True) -> None:
        """Write the page as files for any web server, which do not say where they were made.

        Args:
            into: the folder.
            previews: whether tables and figures are in it.
        """
        import fsspec
        import orjson
        from kedro_viz.api.rest.responses.metadata import (
            MetadataAPIResponse,
            get_metadata_response,
        )
        from kedro_viz.api.rest.responses.save_responses import (
            save_api_node_response_to_fs,
            save_api_run_status_response_to_fs,
            save_api_version_response_to_fs,
        )

        api, disk = into / "api", fsspec.filesystem("file")
        for part in (api, into / "assets"):
            shutil.rmtree(part, ignore_errors=True)
        for part in (api / "nodes", api / "pipelines"):
            part.mkdir(parents=True)
        documents = {f"pipelines/{name}": self.graph(name) for name in self.names}
        documents["main"] = documents[f"pipelines/{self.first}"]
        save_api_node_response_to_fs(str(api / "nodes"), disk, previews)
        save_api_run_status_response_to_fs(str(api / "run-status"), disk)
        save_api_version_response_to_fs(str(api / "version"), disk)
        for file in (p for p in api.rglob("*") if p.is_file()):
            documents[file.relative_to(api).as_posix()] = orjson.loads(file.read_bytes())
        metadata = MetadataAPIResponse.model_validate(get_metadata_response())
        documents["metadata"] = metadata.model_dump()
        now = datetime.now(timezone.utc).strftime("%d.%m.%Y %H:%M:%S")
        documents["deploy-viz-metadata"] = {"timestamp": now, "version": kedro_viz.__version__}
        words = machine_paths(self.project, Path.home(), Path(sys.prefix), Path(sys.base_prefix))
        for name, document in documents.items():
            # Not json, which would write NaN, that browsers do not read.
            text = orjson.dumps(replace_in_strings(document, words), option=orjson.OPT_NON_STR_KEYS)
            (api / name).write_bytes(text)
        shutil.copytree(PAGE / "assets", into / "assets")
        shutil.copy(PAGE / "favicon.ico", into)
        for name in ("index.html", "404.html"):
            (into / name).write_text(_page(), encoding="utf-8")


def _page() -> str:
    return adapt_page((PAGE / "index.html").read_text(encoding="utf-8"))


def _create_app(lineage: Lineage, started: Callable[[], Any]) -> Any:
    """kedro-viz's application behind those of its routes that are answered otherwise."""
    from contextlib import asynccontextmanager

    from fastapi import FastAPI, HTTPException
    from fastapi.encoders import jsonable_encoder
    from fastapi.responses import HTMLResponse, Response
    from kedro_viz.api.apps import create_api_app_from_project
    from kedro_viz.api.rest.responses.nodes import get_node_metadata_response
    from kedro_viz.api.rest.responses.utils import EnhancedORJSONResponse
    from kedro_viz.api.rest.responses.version import get_static_version_response

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        started()
        yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    words = machine_paths(lineage.project)

    @app.get("/")
    @app.get("/workflow")
    async def page() -> Any:
        return HTMLResponse(_page())

    @app.get("/api/main")
    async def main() -> Any:
        return EnhancedORJSONResponse(lineage.graph())

    @app.get("/api/pipelines/{name}")
    async def pipeline(name: str) -> Any:
        if name not in lineage.names:
            raise HTTPException(404)
        return EnhancedORJSONResponse(lineage.graph(name))

    @app.get("/api/nodes/{node}")
    async def metadata(node: str) -> Any:
        found = get_node_metadata_response(node)
        if isinstance(found, Response):
            return found
        document = jsonable_encoder(found, exclude_none=True)
        return EnhancedORJSONResponse(replace_in_strings(document, words))

    @app.get("/api/version")
    async def version() -> Any:
        return get_static_version_response()

    app.mount("/", create_api_app_from_project(lineage.project))
    return app


def _free_port(host: str, first: int) -> int:
    for port in range(first, first + 10):
        with socket.socket() as probe:
            if probe.connect_ex((host, port)):
                return port
    raise click.ClickException(f"ports {first} to {first + 9} are taken; name another by --port")


def _run(**options: Any) -> Any:
    if any(options[name] for name in FOREIGN_OPTIONS):
        return kedro_viz_run.callback(**options)
    import uvicorn

    lineage = Lineage(options["env"], options["params"])
    if options["pipeline"]:
        lineage.only([options["pipeline"]])
    lineage.graph()
    host, port = options["host"], _free_port(options["host"], options["port"])
    url = f"http://{host}:{port}/"

    def started() -> None:
        click.echo(f"kedro-viz is at {url}; Ctrl+C stops it.")
        if options["browser"] and host in ("127.0.0.1", "localhost"):
            webbrowser.open_new(url)

    return uvicorn.run(_create_app(lineage, started), host=host, port=port, log_level="warning")


run = click.Command("run", params=kedro_viz_run.params, callback=_run, help=kedro_viz_run.help)


@click.command(name="build")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/viz"),
    show_default=True,
    help="Folder of the site.",
)
@click.option("--env", "-e", default=None, envvar="KEDRO_ENV", help="Kedro environment.")
@click.option(
    "--pipeline",
    "-p",
    "pipelines",
    multiple=True,
    default=[DEFAULT],
    show_default=True,
    help="Name of a pipeline to show; may be given several times.",
)
@click.option(
    "--include-previews/--no-previews", default=True, help="Whether tables and figures are shown."
)
def build(into: Path, env: str | None, pipelines: Sequence[str], include_previews: bool) -> None:
    """Make a static site of pipelines and their results, for any web server."""
    lineage = Lineage(env)
    lineage.only(pipelines)
    lineage.write_site(into, previews=include_previews)
    click.echo(f"The site is in {into}; look at it by python -m http.server --directory {into}")
