"""Nothing in the tree runs what a file brings with it, calls a shell or listens to others."""

import ast
import re

import pytest

from tests.conftest import PROJECT

FILES = sorted(
    file
    for folder in ("src", "benchmarks", "docs", "notebooks", "tests")
    for file in (PROJECT / folder).rglob("*.py")
)
TRAPS = {
    "tests/security",
    "tests/fuzz",
    "tests/tasks/test_cifar.py",
    "tests/tasks/test_functions.py",
}
TRAPS |= {"tests/engine/test_checkpoint.py"}
"""Tests that set traps, of which some are sprung to show that they work."""

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
SHELLS |= {"pty.spawn", "commands.getoutput", "asyncio.create_subprocess_shell"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "BaseLoader"}
EVERY_HOST = {"0.0.0.0", "[::]"}  # noqa: S104


def dotted(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def faults(source):
    """What in a module is forbidden, with its line."""
    found, names = [], {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name.split(".")[0] in UNPICKLERS:
                    found.append((node.lineno, f"import {alias.name}"))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            if node.module.split(".")[0] in UNPICKLERS:
                found.append((node.lineno, f"from {node.module}"))
        elif isinstance(node, ast.Constant) and node.value in EVERY_HOST:
            found.append((node.lineno, "an address of every host"))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            found += [(node.lineno, said) for said in call_faults(node, names)]
    return found


def call_faults(node, names):
    first, _, rest = dotted(node.func).partition(".")
    called = ".".join(filter(None, [names.get(first, first), rest]))
    given = {k.arg: k.value for k in node.keywords}

    def is_constant(name, value):
        return isinstance(given.get(name), ast.Constant) and given[name].value is value

    if called == "torch.load" and not is_constant("weights_only", True):
        yield "torch.load without weights_only=True"
    if called in ("numpy.load", "np.load", "numpy.lib.format.read_array"):
        if "allow_pickle" in given and not is_constant("allow_pickle", False):
            yield "numpy with pickles"
        if len(node.args) > 2:
            yield "numpy.load by position"
    if called.endswith((".read_pickle", ".to_pickle", ".read_hdf", ".HDFStore")):
        yield called
    if called in ("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all"):
        yield called
    if called in ("yaml.load", "yaml.load_all"):
        loader = given.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
        if loader is None or dotted(loader).split(".")[-1] not in SAFE_LOADERS:
            yield "yaml.load without a safe loader"
    if called in SHELLS or ("shell" in given and not is_constant("shell", False)):
        yield "a shell"
    if called in ("eval", "exec", "builtins.eval", "builtins.exec", "runpy.run_path"):
        yield called


ALLOWED = {
    # torch's own file, to see without importing torch whether it was built for a GPU
    ("src/adaptive_opt/engine/provenance.py", "runpy.run_path"),
    # programs on this project's pages, to see whether they run
    ("tests/project/test_site.py", "exec"),
    ("tests/optim/test_frameworks.py", "exec"),
}


def test_no_module_loads_pickles_or_calls_a_shell():
    assert len(FILES) > 200
    found = []
    for file in FILES:
        name = file.relative_to(PROJECT).as_posix()
        if not any(name.startswith(trap) for trap in TRAPS):
            said = faults(file.read_text(encoding="utf-8"))
            found += [(name, line, what) for line, what in said if (name, what) not in ALLOWED]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "from torch import load\nload('x', weights_only=False)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', None, True)",
        "import pandas as pd\npd.read_pickle('x')",
        "import yaml\nyaml.load(x, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(x)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import os\nos.system('ls')",
        "from os import popen\npopen('ls')",
        "eval('1')",
        "serve(host='0.0.0.0')",
    ],
)
def test_what_is_forbidden_is_found(line):
    assert len(faults(line)) == 1


def test_what_is_allowed_is_not():
    assert faults("import torch\ntorch.load('x', weights_only=True)\nmodel.eval()") == []
    assert faults("import yaml\nyaml.load(x, Loader=yaml.SafeLoader)\nyaml.safe_load(x)") == []


def test_every_server_of_the_makefile_is_on_loopback():
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    recipes = [line for line in text.splitlines() if line.startswith("\t")]
    serving = [r for r in recipes if re.search(r"viz run|mlflow (ui|server)|http\.server|lab\b", r)]
    assert len(serving) == 3
    for recipe in serving:
        assert re.search(r"--(host|bind) 127\.0\.0\.1\b", recipe), recipe


def test_the_browser_page_of_the_pipelines_is_on_loopback_unless_told_otherwise():
    from adaptive_opt.io.viz import run

    (host,) = [p for p in run.params if p.name == "host"]
    assert host.default == "127.0.0.1"


def test_configuration_names_no_host():
    for file in (PROJECT / "conf").rglob("*.yml"):
        if file.parent.name == "local":  # the reader's own
            continue
        settings = re.sub(r"#.*", "", file.read_text(encoding="utf-8"))
        assert not re.search(r"\b(https?|postgresql)://", settings), file
