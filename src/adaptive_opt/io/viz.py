"""The commands ``kedro viz run`` and ``kedro viz build``: kedro-viz for a grid of many results.

Data flow::

    pipelines, catalog ─→ kedro-viz ─→ graph (nest) ─→ page or static site

kedro-viz draws the datasets that enter and leave a collapsed namespace beside it. In a grid, these
are hundreds. Here each dataset is in the namespace that makes it, and edges join a collapsed
namespace to those that use what it makes. Neither the page nor the server contacts another host.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import sys
import webbrowser
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from .private_interfaces import check_versions, create_viz_app, load_into_viz, write_viz_site

__all__ = ["adapt_document", "adapt_page", "build", "hide_paths", "machine_paths", "nest", "run"]

ROOT = "__root__"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
"""Plotly and Mermaid compile functions; images and workers come as ``data:`` and ``blob:``."""
SETTINGS = """<script>
localStorage.KedroViz ??= JSON.stringify({theme: "light", showFeatureHints: false});
</script>"""
"""Settings at the first visit; the study's figures are drawn for a light background."""

DEFAULT = "__default__"
ADAPTED = ("main", "nodes/", "pipelines/")
"""Routes below ``/api/`` whose documents are adapted."""
METADATA = {
    "has_missing_dependencies": False,
    "package_compatibilities": [{"package_name": "fsspec", "is_compatible": True}],
}
"""What the page reads of the environment, and the static site of kedro-viz lacks."""

ENV = click.option("--env", "-e", envvar="KEDRO_ENV", help="Kedro environment.")


def nest(graph: Mapping[str, Any]) -> dict[str, Any]:
    """Move each dataset of kedro-viz's graph into the namespace that makes it.

    A dataset that no node makes goes into the innermost namespace that all its users share. Edges
    join any two things that data pass between, for every choice of open namespaces. A namespace
    gets the first of the layers that it fills; layers are sorted by name.

    Args:
        graph: ``nodes``, ``edges``, ``layers`` and the tree ``modular_pipelines``.
    """
    nodes = {node["id"]: dict(node) for node in graph["nodes"]}
    tree = {name: dict(entry) for name, entry in graph["modular_pipelines"].items()}
    maker, users = _flow(nodes, graph["edges"])
    home = {
        child["id"]: name
        for name, entry in tree.items()
        for child in entry["children"]
        if child["type"] == "task"
    }
    for data in (*maker, *users):
        if data not in home and nodes[data]["type"] == "data":
            home[data] = home[maker[data]] if data in maker else _shared(home, users[data])
            nodes[data]["modular_pipelines"] = [home[data]]
    for name, entry in tree.items():
        inner = [c for c in entry["children"] if c["type"] == "modularPipeline"]
        placed = [{"id": i, "type": nodes[i]["type"]} for i, at in home.items() if at == name]
        entry |= {"inputs": [], "outputs": [], "children": inner + placed}
    tree[ROOT]["children"] += [
        {"id": i, "type": "parameters"} for i, n in nodes.items() if n["type"] == "parameters"
    ]
    for name, layer in _layers(nodes, maker, home).items():
        nodes[name]["layer"] = layer
    edges = [{"source": s, "target": t} for s, t in sorted(_edges(maker, users, home))]
    arranged = {"edges": edges, "layers": sorted(graph["layers"]), "modular_pipelines": tree}
    return {**graph, "nodes": [*nodes.values()], **arranged}


def _flow(
    nodes: Mapping[str, Mapping[str, Any]], edges: Iterable[Mapping[str, str]]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the task that makes each dataset, and the tasks that use each dataset or parameter."""
    maker, users = {}, defaultdict(list)
    for edge in edges:
        source, target = edge["source"], edge["target"]
        if nodes[source]["type"] == "task":
            maker[target] = source
        elif nodes[target]["type"] == "task":
            users[source].append(target)
    return maker, users


def _around(namespace: str) -> list[str]:
    """Return a namespace and those around it, innermost first.

    >>> _around("training.rr_cond29.adam")
    ['training.rr_cond29.adam', 'training.rr_cond29', 'training']
    """
    if namespace == ROOT:
        return []
    parts = namespace.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _shared(home: Mapping[str, str], tasks: Iterable[str]) -> str:
    """Return the innermost namespace that contains all of the tasks."""
    chains = [_around(home[task]) for task in tasks]
    return next((n for n in chains[0] if all(n in chain for chain in chains)), ROOT)


def _edges(
    maker: Mapping[str, str], users: Mapping[str, Iterable[str]], home: Mapping[str, str]
) -> set[tuple[str, str]]:
    edges = {(task, data) for data, task in maker.items()}
    for data, tasks in users.items():
        outside = _around(home.get(data, ROOT))
        for task in tasks:
            inside = _around(home[task])
            sources = [data, *(n for n in outside if n not in inside)]
            targets = [task, *(n for n in inside if n not in outside)]
            edges |= {(source, target) for source in sources for target in targets}
    return edges


def _layers(
    nodes: Mapping[str, Mapping[str, Any]], maker: Mapping[str, str], home: Mapping[str, str]
) -> dict[str, str]:
    """Return the first layer that each namespace fills."""
    first: dict[str, str] = {}
    for data, task in maker.items():
        layer: str = nodes[data].get("layer") or ""
        for name in _around(home[task]) if layer else ():
            first[name] = min(first.get(name, layer), layer)
    return first


def adapt_document(route: str, document: bytes, paths: Mapping[str, str]) -> bytes:
    """Adapt a JSON document of kedro-viz: nest a graph, hide paths.

    Args:
        route: of the document below ``/api/``.
        document: what kedro-viz answers.
        paths: see :func:`machine_paths`.
    """
    if route == "main" or route.startswith("pipelines/"):
        document = orjson.dumps(nest(orjson.loads(document)))
    return hide_paths(document, paths)


def hide_paths(document: bytes, paths: Mapping[str, str]) -> bytes:
    """Replace paths in a JSON document, the longest first.

    >>> hide_paths(b'{"path": ["/home/me/study/data"]}', {"/home/me/study/": ""})
    b'{"path": ["data"]}'
    """
    for path in sorted(paths, key=len, reverse=True):
        written = orjson.dumps(path)[1:-1]  # as in the document, a backslash is escaped
        document = document.replace(written, paths[path].encode())
    return document


def machine_paths(project: Path, *others: Path) -> dict[str, str]:
    """Return the paths of this machine and what to write instead.

    Args:
        project: the project's folder; paths in it become relative to it.
        others: other folders, such as the user's, which become ``…``.
    """
    words = {f"{folder}/": "…/" for folder in others if folder != Path(folder.anchor)}
    return {**words, f"{project}/": "", str(project): ".", f"{project.name}/src/": "src/"}


def adapt_page(page: str) -> str:
    """Make kedro-viz's HTML page load nothing from other hosts.

    Links to other hosts are removed; kedro-viz's font is one. A content security policy blocks
    what scripts request. The page opens with ``SETTINGS``.
    """
    page = re.sub(r"<link\b[^>]*\bhref=\"https?://[^>]*>\s*", "", page)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />'
    return page.replace("<head>", f"<head>\n{policy}\n{SETTINGS}", 1)


def _load(env: str | None, names: Sequence[str]) -> Path:
    """Load pipelines into kedro-viz and return the project's folder.

    Raises:
        click.ClickException: there is no such pipeline or no project.
    """
    from kedro.framework.project import pipelines
    from kedro.utils import find_kedro_project

    check_versions()
    if (project := find_kedro_project(Path.cwd())) is None:
        raise click.ClickException("no Kedro project here or above")
    for name in names:
        if name not in pipelines:
            raise click.ClickException(f"no pipeline is called {name!r}; see kedro registry list")
    load_into_viz(project, env, names)
    return Path(project)


def _page() -> str:
    import kedro_viz

    page = Path(kedro_viz.__file__).parent / "html" / "index.html"
    return adapt_page(page.read_text(encoding="utf-8"))


def _create_app(project: Path) -> Any:
    """Return kedro-viz's application with its page and documents adapted."""
    import kedro_viz
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
