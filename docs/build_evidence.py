"""Write docs/verdict.md, docs/ledger.md, docs/fidelity.md and the README's answer from records.

    python docs/build_evidence.py             # the pages from the records
    python docs/build_evidence.py --collect   # first fetch records and figures from data/

The records are under docs/results/.

Nothing on the pages is typed by hand but how they were made; a test compares them with what this
writes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from adaptive_opt.evidence import fidelity, ledger_report
from adaptive_opt.evidence.answer import task_answer
from adaptive_opt.evidence.schema import Verdict, read_verdict
from adaptive_opt.evidence.summary import matrix_rows, summary
from adaptive_opt.evidence.tables import markdown
from adaptive_opt.study import tasks_of

sys.path.insert(0, str(Path(__file__).parent))
from record import (
    DOCS,
    RESULTS,
    collect_verdict,
    copy,
    figure_path,
    headline,
    read_json,
)

BASE = RESULTS / "base"
FIGURES = {"ledger": ("iterations",), "fidelity": ("estimates",)}
"""Of the scale base, by the folder under data/08_reporting/base."""

LEDGER_TABLES = ("ledger", "targets", "precision")
COMMANDS = {
    "base": "kedro run",
    "evening": "kedro run --env=evening",
    "paper": "kedro run --env=paper",
}
"""What made the verdict of a scale."""

DATA_SETS = {
    "base": "the digits of scikit-learn and the language reference of Python",
    "evening": "CIFAR-10 at 16×16 pixels and Penn Treebank with its 1,000 most frequent words",
    "paper": "CIFAR-10 and Penn Treebank",
}
README = DOCS.parent / "README.md"
MARKS = ("<!-- verdict -->\n", "<!-- /verdict -->\n")


def collect() -> None:
    """Records and figures of the last runs, of those that exist."""
    data = DOCS.parent / "data"
    made = data / "08_reporting" / "base"
    collect_verdict("base")
    for name in LEDGER_TABLES:
        copy(made / "ledger" / f"{name}.csv", BASE / "ledger" / f"{name}.csv")
    for task in tasks_of("rahimi_recht"):
        measures = data / "07_model_output" / "base" / task.name / "fidelity" / "measures.parquet"
        copy(measures, BASE / "fidelity" / f"{task.name}.parquet")
    for folder, figures in FIGURES.items():
        for name in figures:
            copy(made / folder / f"{name}.png", figure_path("base", folder, name))


def picture(words: str, folder: str, name: str, scale: str = "base") -> str:
    """A figure in Markdown."""
    return f"![{words}]({figure_path(scale, folder, name).relative_to(DOCS).as_posix()})"


def verdict(scale: str | None = None) -> Verdict:
    """The record of a verdict, by default that of the largest scale."""
    return read_verdict(read_json(RESULTS / (scale or headline()) / "verdict.json"))


def size_words(found: Verdict) -> str:
    """How long what was trained, in a paragraph."""
    rr = next(t for t in found.tasks if t.task.startswith("rr_"))
    networks = [t for t in found.tasks if not t.task.startswith("rr_")]
    lengths = " and ".join(f"{t.iterations:,} iterations ({t.label})" for t in networks)
    text = f"""Rahimi–Recht has its published size: {rr.iterations:,} iterations, {rr.arms[0].runs} seeds, functions drawn anew.
The networks are those of the scale `{found.scale}`, trained for {lengths} on {DATA_SETS[found.scale]}."""
    return (
        text
        if found.scale == "paper"
        else f"{text} Nothing here speaks for the published sizes of the networks."
    )


def verdict_page(scale: str | None = None) -> str:
    """The verdict of a study, from its record."""
    found = verdict(scale)
    head, _, rest = summary(found).partition("\n## ")
    reading = f"""    {COMMANDS[found.scale]}

**How to read this page.** A speed-up of 2× means: the reference, the better of SGDM and Adam, must train twice as long for the
same loss. `> 16×` and `< 1/16×` are bounds: the speed-up is beyond the trained lengths; ≥ and ≤ say that some runs are. In brackets:
95 % interval over {found.tasks[0].searches} searches and their seeds. [Method](method.md#the-verdict) has the formulae.

{size_words(found)}"""
    if scale is None and found.scale != "base":
        reading += " [The default run](verdict_base.md) is smaller."
    words = {
        "loss_by_length": "Final training loss by training length, a panel a task",
        "speedup_in_iterations": "Speed-up of every arm, in iterations",
        "speedup_in_seconds": "Speed-up of every arm, in seconds",
        "ladder": "Each rung of the ladder against the next",
    }
    pictures = "\n\n".join(picture(w, "verdict", name, found.scale) for name, w in words.items())
    return f"{head}\n{reading}\n\n{pictures}\n\n## {rest}"


def base_page() -> str:
    """The verdict of the default run, where a larger study is on the page of the verdict."""
    return "# The default run\n\n" + verdict_page("base").partition("\n\n")[2]


def readme() -> str:
    """The README with the answer, the picture and the matrix of the record."""
    found = verdict()
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    path = figure_path(found.scale, "verdict", "loss_by_length")
    image = path.relative_to(DOCS.parent).as_posix()
    head, body = matrix_rows(found)
    sentences = "\n".join(f"- {t.label}. {task_answer(t)}" for t in found.tasks)
    block = "\n\n".join(
        [
            found.answer,
            f"![Final training loss by training length: further left is faster]({image})",
            "Speed-up in iterations: how many times longer the reference must train for the same "
            "loss, with 95 % intervals over searches and seeds.",
            markdown(head, body),
            sentences,
            f"Made by `{COMMANDS[found.scale]}`. {size_words(found)}",
        ]
    )
    return f"{before}{MARKS[0]}\n{block}\n\n{MARKS[1]}{after}"


def ledger_page() -> str:
    """The replication ledger of the published size, from its tables."""
    tables = [pd.read_csv(BASE / "ledger" / f"{name}.csv") for name in LEDGER_TABLES]
    files = sorted((DOCS.parent / "benchmarks" / "results").glob("step_*.json"))
    costs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    text = ledger_report.report(*tables, costs, scale="base", searched=True)
    title, _, rest = text.partition("\n\n")
    figure = picture("Median iterations to the target, by switch", "ledger", "iterations")
    made = (
        "    kedro run --pipelines=ledger\n\nWhat each thing that the original study did otherwise changes in its table. "
        "How it is made: [method.md](method.md#replication-ledger)."
    )
    return f"{title}\n\n{made}\n\n{figure}\n\n{rest}"


def fidelity_page() -> str:
    """What curvature estimates are worth, from the measures along the runs."""
    names = [task.name for task in tasks_of("rahimi_recht")]
    measures = [pd.read_parquet(BASE / "fidelity" / f"{name}.parquet") for name in names]
    title, _, rest = fidelity.report(measures, "base", "ssdh").partition("\n\n")
    figure = picture("Error of every estimate along the run", "fidelity", "estimates")
    made = (
        "    kedro run --pipelines=fidelity\n\nMeasures and their formulae: "
        "[method.md](method.md#fidelity-of-the-estimates)."
    )
    return f"{title}\n\n{made}\n\n{figure}\n\n{rest}"


PAGES = {"verdict": verdict_page, "ledger": ledger_page, "fidelity": fidelity_page}
if headline() != "base":
    PAGES["verdict_base"] = base_page


def main() -> None:
    """Collect if asked to, and write the pages."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--collect", action="store_true", help="fetch records and figures first")
    if options.parse_args().collect:
        collect()
    for name, page in PAGES.items():
        (DOCS / f"{name}.md").write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
