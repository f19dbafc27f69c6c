"""What kedro-viz shows, rearranged: pure functions of the documents that its page asks for.

kedro-viz draws what enters and leaves a collapsed namespace beside it. Of a grid with hundreds of
results that is everything there is, at once. Here each dataset stands in the namespace that makes
it, and a collapsed namespace is joined to those that use what it makes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["adapt_page", "machine_paths", "nest", "replace_in_strings"]

ROOT = "__root__"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
"""Plotly and Mermaid compile functions; images and workers come as ``data:`` and ``blob:``."""
SETTINGS = """<script>
localStorage.KedroViz ??= JSON.stringify({theme: "light", showFeatureHints: false});
</script>"""
"""The first time that the page is opened; figures are drawn for a light ground."""


def nest(graph: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline as kedro-viz describes it, with each dataset in the namespace that makes it.

    A dataset that nothing makes stands in the innermost namespace that all its users share. An
    edge joins every two things that can be seen at the same time, whichever namespaces are open,
    if data pass between them. Layers are in the order of their names, which begin with numbers,
    and a namespace has the first of those that it fills.

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
    """The task that makes each dataset, and those that use each dataset or parameter."""
    maker, users = {}, defaultdict(list)
    for edge in edges:
        source, target = edge["source"], edge["target"]
        if nodes[source]["type"] == "task":
            maker[target] = source
        elif nodes[target]["type"] == "task":
            users[source].append(target)
    return maker, users


def _around(namespace: str) -> list[str]:
    """A namespace and those that it is in, innermost first.

    >>> _around("training.rr_cond29.adam")
    ['training.rr_cond29.adam', 'training.rr_cond29', 'training']
    """
    if namespace == ROOT:
        return []
    parts = namespace.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _shared(home: Mapping[str, str], tasks: Iterable[str]) -> str:
    """The innermost namespace that has all of some tasks in it."""
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
    """The first layer that each namespace fills."""
    first: dict[str, str] = {}
    for data, task in maker.items():
        layer: str = nodes[data].get("layer") or ""
        for name in _around(home[task]) if layer else ():
            first[name] = min(first.get(name, layer), layer)
    return first


def replace_in_strings(document: Any, words: Mapping[str, str]) -> Any:
    """A JSON document with words replaced in its strings, longest first, keys included.

    >>> replace_in_strings({"path": ["/home/me/study/data"]}, {"/home/me/study/": ""})
    {'path': ['data']}
    """
    ordered = sorted(words, key=len, reverse=True)

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            for word in ordered:
                value = value.replace(word, words[word])
            return value
        if isinstance(value, dict):
            return {replaced(key): replaced(item) for key, item in value.items()}
        return [replaced(item) for item in value] if isinstance(value, list) else value

    return replaced(document)


def adapt_page(page: str) -> str:
    """kedro-viz's HTML page, so that it asks nobody but the host that it comes from.

    Links to other hosts (kedro-viz's font is one; the browser's own takes its place) are taken
    out, and a content security policy holds back whatever a script would ask for. It opens with
    :data:`SETTINGS`.
    """
    page = re.sub(r"<link\b[^>]*\bhref=\"https?://[^>]*>\s*", "", page)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />'
    return page.replace("<head>", f"<head>\n{policy}\n{SETTINGS}", 1)


def machine_paths(project: Path, *others: Path) -> dict[str, str]:
    """What to replace so that a document says nothing of where it was made.

    Args:
        project: the project's folder; paths in it become relative to it.
        others: further folders, such as the user's, which become ``…``.
    """
    words = {f"{folder}/": "…/" for folder in others if folder != Path(folder.anchor)}
    return {**words, f"{project}/": "", str(project): ".", f"{project.name}/src/": "src/"}
