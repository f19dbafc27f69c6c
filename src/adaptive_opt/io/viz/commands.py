"""The commands ``kedro viz run`` and ``kedro viz build``."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import kedro_viz
from kedro.framework.project import pipelines
from kedro.utils import find_kedro_project

from ..private_interfaces import check_versions, create_viz_app, load_into_viz, write_viz_site
from .graph import adapt_document, adapt_page, machine_paths

__all__ = ["build", "run"]

DEFAULT = "__default__"
PAGE = Path(kedro_viz.__file__).parent / "html" / "index.html"
ADAPTED = ("main", "nodes/", "pipelines/")
"""Routes below ``/api/`` whose documents are adapted."""
METADATA = {
    "has_missing_dependencies": False,
    "package_compatibilities": [{"package_name": "fsspec", "is_compatible": True}],
}
"""What the page reads of the environment, and the static site of kedro-viz lacks."""

ENV = click.option("--env", "-e", envvar="KEDRO_ENV", help="Kedro environment.")


def _load(env: str | None, names: Sequence[str]) -> Path:
    """Load pipelines into kedro-viz and return the project's folder.

    Raises:
        click.ClickException: there is no such pipeline or no project.
    """
    check_versions()
    if (project := find_kedro_project(Path.cwd())) is None:
        raise click.ClickException("no Kedro project here or above")
    for name in names:
        if name not in pipelines:
            raise click.ClickException(f"no pipeline is called {name!r}; see kedro registry list")
    load_into_viz(project, env, names)
    return Path(project)


def _page() -> str:
    return adapt_page(PAGE.read_text(encoding="utf-8"))


def _create_app(project: Path) -> Any:
    """Return kedro-viz's application with its page and documents adapted."""
    from fastapi import Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response

    app = create_viz_app(project)
    paths = machine_paths(project)

    @app.middleware("http")  # type: ignore[untyped-decorator]
    async def adapt(request: Request, call_next: Callable[[Request], Any]) -> Response:
        path = request.url.path
        if path in ("/", "/workflow"):
            return HTMLResponse(_page())
        if path == "/api/version":  # kedro-viz asks the Python Package Index
            own = kedro_viz.__version__
            return JSONResponse({"installed": own, "is_outdated": False, "latest": own})
        response: Response = await call_next(request)
        route = path.removeprefix("/api/")
        if response.status_code != 200 or not route.startswith(ADAPTED):
            return response
        body = b"".join([part async for part in response.body_iterator])  # type: ignore[attr-defined]
        return Response(adapt_document(route, body, paths), media_type="application/json")

    return app


def _listen(host: str, first: int) -> socket.socket:
    for port in range(first, first + 10):
        try:
            return socket.create_server((host, port))
        except OSError:
            continue
    raise click.ClickException(f"ports {first} to {first + 9} are taken; name another by --port")


@click.command(name="run")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the server.")
@click.option("--port", default=4141, show_default=True, help="Port, or the first that is free.")
@click.option("--browser/--no-browser", default=True, help="Whether to open a browser.")
@click.option("--pipeline", "-p", default=DEFAULT, show_default=True, help="Pipeline to show.")
@ENV
def run(host: str, port: int, browser: bool, pipeline: str, env: str | None) -> None:
    """Show a pipeline and its results in a browser."""
    import uvicorn

    app = _create_app(_load(env, [pipeline]))
    with _listen(host, port) as server:  # a browser that connects early waits
        url = f"http://{host}:{server.getsockname()[1]}/"
        click.echo(f"kedro-viz is at {url}; Ctrl+C stops it.")
        if browser and host in ("127.0.0.1", "localhost"):
            webbrowser.open_new(url)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[server])


@click.command(name="build")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/viz"),
    show_default=True,
    help="Folder of the site.",
)
@click.option(
    "--pipeline",
    "-p",
    "names",
    multiple=True,
    default=[DEFAULT],
    show_default=True,
    help="Pipeline to show; may be given several times.",
)
@click.option(
    "--include-previews/--no-previews", default=True, help="Whether tables and figures are shown."
)
@ENV
def build(into: Path, names: Sequence[str], include_previews: bool, env: str | None) -> None:
    """Make a static site of pipelines and their results, for any web server."""
    project = _load(env, names)
    api = into / "api"
    shutil.rmtree(api, ignore_errors=True)
    shutil.rmtree(into / "assets", ignore_errors=True)
    write_viz_site(into, previews=include_previews)
    paths = machine_paths(project, Path.home(), Path(sys.prefix), Path(sys.base_prefix))
    for file in (path for path in api.rglob("*") if path.is_file()):
        route = file.relative_to(api).as_posix()
        file.write_bytes(adapt_document(route, file.read_bytes(), paths))
    (api / "metadata").write_text(json.dumps(METADATA), encoding="utf-8")
    (into / "telemetry.html").unlink()
    for name in ("index.html", "404.html"):
        (into / name).write_text(_page(), encoding="utf-8")
    click.echo(f"The site is in {into}; look at it by python -m http.server --directory {into}")
