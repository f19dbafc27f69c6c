"""The commands on the pages exist, the programs run, and the site is complete."""

import os
import re
import shlex
import subprocess
import sys
from functools import cache

import click
import pytest
import torch
import yaml
from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf

from adaptive_opt.parameters import find_faults
from adaptive_opt.pipeline_registry import register_pipelines
from adaptive_opt.settings import CONFIG_LOADER_ARGS
from adaptive_opt.study import known_tags
from tests.conftest import PROJECT, find_chromium

DOCS = PROJECT / "docs"
PAGES = {
    str(p.relative_to(PROJECT)): p.read_text(encoding="utf-8")
    for p in [*PROJECT.glob("*.md"), *sorted(DOCS.rglob("*.md"))]
    if p.name != "CHANGELOG.md"
}


def typed(text):
    """Return the commands of a page, from code blocks and backticks."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"(?:^ {4,}|`)(?:\w+=\S+ )?((?:kedro|make) [^`\n]*)", joined, re.M)
    return [shlex.split(command, comments=True) for command in found]


COMMANDS = [(page, words) for page, text in PAGES.items() for words in typed(text)]


@cache
def committed(env):
    conf = str(PROJECT / "conf")
    return OmegaConf.create(OmegaConfigLoader(conf, env=env, **CONFIG_LOADER_ARGS)["parameters"])


def parameters(env="base", given=None):
    """Return the parameters of a run, without those of conf/local."""
    return OmegaConf.to_container(OmegaConf.merge(committed(env), given or {}))


@pytest.fixture(scope="module")
def kedro():
    from kedro.framework.cli.cli import KedroCLI

    return KedroCLI(project_path=PROJECT)


def test_commands_are_found_on_the_pages():
    pages = {page for page, _ in COMMANDS}
    howtos = {f"docs/howto/{p.name}" for p in (DOCS / "howto").glob("*.md")}
    libraries = {"accelerate", "lightning", "torchrun", "transformers", "your_training_loop"}
    howtos -= {f"docs/howto/{name}.md" for name in libraries}  # without kedro
    assert pages >= {"README.md", "docs/tutorial.md", *howtos}
    assert len(COMMANDS) > 50


def test_make_targets_exist():
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = {(page, word) for page, words in COMMANDS if words[0] == "make" for word in words[1:]}
    assert [n for n in named if n[1] not in targets] == []


def test_kedro_commands_and_what_they_name_exist(kedro):
    """Parse every option, pipeline, tag, node, environment and parameter."""
    known = register_pipelines()
    for page, words in COMMANDS:
        if words[0] != "kedro" or page.endswith("ways_to_run.md"):  # test_ways runs that page
            continue
        command, name, rest = kedro, "kedro", words[1:]
        while hasattr(command, "get_command") and rest:
            name, *rest = rest
            command = command.get_command(click.Context(command), name)
            assert command is not None, (page, words)
        chosen = command.make_context(name, rest).params
        if name != "run" or words[1] != "run":
            continue
        assert set(chosen["pipelines"]) <= set(known), (page, words)
        run = [n for name in chosen["pipelines"] or ["__default__"] for n in known[name].nodes]
        for key, present in (
            ("tags", {*known_tags()} & {tag for n in run for tag in n.tags}),
            ("node_names", {n.name for n in run}),
            ("namespaces", {n.namespace for n in run}),
        ):
            assert set(chosen[key]) <= present, (page, words)
        assert (PROJECT / "conf" / (chosen["env"] or "base")).is_dir(), (page, words)
        if chosen["params"]:
            faults = find_faults(parameters(chosen["env"] or "base", chosen["params"]))
            assert faults == [], (page, words)


@pytest.mark.parametrize(
    ("page", "section"),
    [(p, s) for p, text in PAGES.items() for s in re.findall(r"```yaml\n(.*?)```", text, re.S)],
)
def test_sections_of_parameters_are_sound(page, section):
    given = yaml.safe_load(section)
    elsewhere = {"tuning_storage": "credentials", "server": "mlflow", "data_root": "globals"}
    for key in given:
        if key in elsewhere:
            file = PROJECT / "conf" / "base" / f"{elsewhere[key]}.yml"
            assert key in yaml.safe_load(file.read_text(encoding="utf-8")), page
        else:
            assert find_faults(parameters(given={key: given[key]})) == []


@pytest.mark.parametrize(
    ("page", "block"),
    [
        (page, block)
        for page, text in PAGES.items()
        for block in re.findall(r"(?<=\n\n)    from adaptive_opt.*\n(?:(?: {4}.*)?\n)*", text, re.M)
    ],
)
def test_programs_run(page, block):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    batch = (torch.randn(8, 3), torch.randn(8, 1))
    names = {"model": model, "loader": [batch] * 3, "loss_fn": torch.nn.functional.mse_loss}
    names |= dict(zip("xy", batch, strict=True)) | {"torch": torch}
    if "sampled_cross_entropy" in block:
        names["y"] = torch.zeros(8, dtype=torch.long)
        names["model"] = model = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]
    exec(re.sub(r"^ {4}", "", block, flags=re.M), names)  # noqa: S102  our own pages
    if "optimizer" in names:
        assert not torch.equal(before[0], next(model.parameters()))
    else:
        own = names["GaussianSSDH"]([torch.ones(2, requires_grad=True)])
        assert own.state_dict()["param_groups"][0]["probe"] == "gaussian"


def test_the_protocol_states_the_parameters():
    text = PAGES["docs/protocol.md"]
    base, paper = parameters(), parameters("paper")

    def both(of):
        one, other = of(base), of(paper)
        return one if one == other else f"{one} / {other}"

    def row(name, *cells):
        line = f"| {name} | {' | '.join(cells)} |"
        assert line in text, line

    tasks = ("rr_cond29", "rr_cond15099", "resnet18", "transformer")
    row("epochs", *(both(lambda c, t=t: f"{c['tasks'][t]['epochs']:,}") for t in tasks))
    row("seeds", *(both(lambda c, t=t: str(c["tasks"][t]["seeds"])) for t in tasks))
    row("own target", *(both(lambda c, t=t: str(c["tasks"][t]["target"])) for t in tasks))
    row("data", "drawn", "drawn", *(both(lambda c, t=t: c["data"][t]["source"]) for t in tasks[2:]))
    row(
        "batch",
        *(both(lambda c, t=t: str(c["tasks"][t]["batch_size"])) for t in tasks[:3]),
        both(lambda c: "{streams} × {window}".format(**c["tasks"]["transformer"])),
    )
    for name, key in (("budget", "budget"), ("epochs of a trial", "epochs")):
        searches = [both(lambda c, t=t, k=key: f"{c['tuning']['tasks'][t][k]:,}") for t in tasks]
        row(name, *searches)
    row("objective", *(both(lambda c, t=t: c["tuning"]["tasks"][t]["objective"]) for t in tasks))
    spaces = base["tuning"]["spaces"]["corrected"]
    signs = {"lr": ("η", "logarithmic"), "beta2": ("β2", "logarithmic in 1 − β2")}
    signs["rho"] = ("ρ", "logarithmic")
    for kind in ("first-order", "second-order"):
        for key, (sign, scale) in signs.items():
            if key in spaces["rr_cond29"][kind]:
                ranges = [spaces[t][kind][key] for t in ("rr_cond29", "resnet18")]
                row(f"{sign}, {kind}", scale, *(f"{r['low']:g} … {r['high']:g}" for r in ranges))
    for task in ("rr_cond29", "rr_cond15099"):
        assert f"{base['rr_synthesis'][task]['condition']:,}" in text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason="not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def test_the_site_is_built_without_a_warning_and_needs_no_other_host(site):
    loaded = r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=\"((?:https?:)?//[^\"]*)"
    for page in site.rglob("*.html"):
        assert re.findall(loaded, page.read_text(encoding="utf-8")) == [], page
    for sheet in site.rglob("*.css"):
        found = re.findall(r"url\([\"']?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8"))
        assert found == [], sheet
    pages = {p.relative_to(DOCS).with_suffix(".html") for p in DOCS.rglob("*.md")}
    assert [p for p in pages if not (site / p).is_file()] == []
    api = (site / "api" / "optim.html").read_text(encoding="utf-8")
    assert 'id="adaptive_opt.optim.SSDH"' in api
    assert "denom(D) = √D + ε" in re.sub(r"<[^>]+>", "", api)


def test_a_page_of_the_site_opens_without_a_network(site, tmp_path):
    log = tmp_path / "net.json"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update --enable-logging=stderr"
    done = subprocess.run(
        [find_chromium(), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}",
         f"--log-net-log={log}", "--dump-dom", (site / "index.html").as_uri()],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert "Where to go" in done.stdout
    assert "CONSOLE" not in done.stderr
    hosts = set(re.findall(r'"url":"(https?://[^/"]+)', log.read_text(encoding="utf-8")))
    assert {h for h in hosts if "google" not in h and "gstatic" not in h} == set()
