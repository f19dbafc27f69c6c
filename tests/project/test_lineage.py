"""The graph for kedro-viz: namespaces, layers, and no paths of the machine."""

import json
from pathlib import Path

import orjson
import pytest

from adaptive_opt.io.viz import adapt_document, adapt_page, hide_paths, machine_paths, nest


def node(name, kind, **more):
    return {"id": name, "name": name, "type": kind, **more}


def pipeline(name, *children):
    listed = [{"id": child, "type": kind} for child, kind in children]
    return {"id": name, "name": name, "inputs": ["rest"], "outputs": ["rest"], "children": listed}


@pytest.fixture
def graph():
    """a.x makes `d`, which a.y and b.z use; both in a use `free`, b uses `p`."""
    mp = "modularPipeline"
    return {
        "nodes": [
            *(node(task, "task") for task in ("make", "use", "end")),
            node("d", "data", layer="06_models", modular_pipelines=["a", "a.x", "b"]),
            node("e", "data", layer="08_reporting"),
            node("late", "data", layer="08_reporting"),
            node("free", "data"),
            node("p", "parameters"),
            *(node(name, mp) for name in ("a", "a.x", "a.y", "b", "b.z")),
        ],
        "edges": [
            {"source": s, "target": t}
            for s, t in [
                ("free", "make"), ("make", "d"), ("make", "late"), ("d", "use"), ("free", "use"),
                ("d", "end"), ("p", "end"), ("end", "e"), ("a", "d"), ("d", "b"), ("a.x", "d"),
            ]
        ],
        "layers": ["08_reporting", "06_models"],
        "modular_pipelines": {
            "__root__": pipeline("__root__", ("a", mp), ("b", mp), ("d", "data"), ("p", "data")),
            "a": pipeline("a", ("a.x", mp), ("a.y", mp), ("d", "data")),
            "a.x": pipeline("a.x", ("make", "task"), ("free", "data")),
            "a.y": pipeline("a.y", ("use", "task")),
            "b": pipeline("b", ("b.z", mp)),
            "b.z": pipeline("b.z", ("end", "task")),
        },
    }  # fmt: skip


def test_each_dataset_is_in_the_namespace_that_makes_it(graph):
    tree = nest(graph)["modular_pipelines"]
    children = {name: {child["id"] for child in entry["children"]} for name, entry in tree.items()}
    assert children == {
        "__root__": {"a", "b", "p"},
        "a": {"a.x", "a.y", "free"},
        "a.x": {"make", "d", "late"},
        "a.y": {"use"},
        "b": {"b.z"},
        "b.z": {"end", "e"},
    }
    assert all(entry["inputs"] == entry["outputs"] == [] for entry in tree.values())
    assert {"id": "p", "type": "parameters"} in tree["__root__"]["children"]


def test_edges_join_nodes_that_are_visible_together(graph):
    edges = {(edge["source"], edge["target"]) for edge in nest(graph)["edges"]}
    ends = {"end", "b.z", "b"}
    assert edges == {
        ("make", "d"), ("make", "late"), ("end", "e"),
        ("free", "make"), ("free", "a.x"), ("free", "use"), ("free", "a.y"),
        *((source, target) for source in ("d", "a.x") for target in ("use", "a.y")),
        *((source, target) for source in ("d", "a.x", "a") for target in ends),
        *(("p", target) for target in ends),
    }  # fmt: skip


def test_a_namespace_has_the_first_layer_that_it_fills(graph):
    arranged = nest(graph)
    assert arranged["layers"] == ["06_models", "08_reporting"]
    layers = {n["id"]: n.get("layer") for n in arranged["nodes"] if "odular" in n["type"]}
    filled = {"a": "06_models", "a.x": "06_models", "b": "08_reporting", "b.z": "08_reporting"}
    assert layers == {"a.y": None, **filled}


def test_the_graph_is_left_as_it_was(graph):
    before = str(graph)
    nest(graph)
    assert str(graph) == before


@pytest.mark.parametrize(
    ("route", "nested"), [("main", True), ("pipelines/x", True), ("nodes/x", False)]
)
def test_only_graphs_are_nested(graph, route, nested):
    adapted = json.loads(adapt_document(route, orjson.dumps(graph), {"06_models": "models"}))
    assert (adapted["edges"] != graph["edges"]) == nested
    assert "models" in adapted["layers"]


def test_paths_of_the_machine_are_hidden():
    words = machine_paths(Path("/home/zoë/study"), Path("/home/zoë"), Path("/opt/py"), Path("/"))
    said = {
        "filepath": "/home/zoë/study/data/a.csv",
        "code": "study/src/adaptive_opt/nodes.py",
        "sqlite:////home/zoë/study/mlflow.db": ["in /home/zoë/study", 1, None, True],
        "trace": "/opt/py/lib/torch.py /home/zoë/other",
    }
    assert json.loads(hide_paths(orjson.dumps(said), words)) == {
        "filepath": "data/a.csv",
        "code": "src/adaptive_opt/nodes.py",
        "sqlite:///mlflow.db": ["in .", 1, None, True],
        "trace": "…/lib/torch.py …/other",
    }


def test_the_page_loads_nothing_from_other_hosts():
    page = (
        '<html><head>\n<link rel="icon" href="./favicon.ico" />\n'
        '<link rel="preconnect" href="https://fonts.gstatic.com" crossorigin />\n'
        '<link\n href="https://fonts.googleapis.com/css2?family=Inter"\n rel="stylesheet"\n/>\n'
        '<script src="./a.js"></script></head></html>'
    )
    adapted = adapt_page(page)
    assert "https://" not in adapted
    assert './favicon.ico"' in adapted
    assert './a.js"' in adapted
    assert adapted.index("Content-Security-Policy") < adapted.index("<script")
