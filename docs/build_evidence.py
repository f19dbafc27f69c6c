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
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from adaptive_opt.evidence import fidelity, ledger_report
from adaptive_opt.evidence.answer import task_answer
from adaptive_opt.evidence.schema import Verdict, read_verdict
from adaptive_opt.evidence.summary import matrix_rows, summary
from adaptive_opt.evidence.tables import markdown
from adaptive_opt.study import tasks_of

DOCS = Path(__file__).parent
RESULTS = DOCS / "results" / "base"
FIGURES = {
    "verdict": ("loss_by_length", "speedup_in_iterations", "speedup_in_seconds", "ladder"),
    "ledger": ("iterations",),
    "fidelity": ("estimates",),
}
"""By the folder under data/08_reporting/base."""

LEDGER_TABLES = ("ledger", "targets", "precision")
COMMAND = "kedro run"
"""What made the verdict on the page."""

README = DOCS.parent / "README.md"
MARKS = ("<!-- verdict -->\n", "<!-- /verdict -->\n")


def collect() -> None:
    """Records and figures of the last runs at the scale base, of those that there are."""
    data = DOCS.parent / "data"
    made = data / "08_reporting" / "base"
    if (made / "verdict.json").is_file():
        text = (made / "verdict.json").read_text(encoding="utf-8")
        compact = json.dumps(json.loads(text), separators=(",", ":"))
        (RESULTS / "verdict.json").write_text(f"{compact}\n", encoding="utf-8")
    for name in LEDGER_TABLES:
        _copy(made / "ledger" / f"{name}.csv", RESULTS / "ledger" / f"{name}.csv")
    for task in tasks_of("rahimi_recht"):
        measures = data / "07_model_output" / "base" / task.name / "fidelity" / "measures.parquet"
        _copy(measures, RESULTS / "fidelity" / f"{task.name}.parquet")
    for folder, figures in FIGURES.items():
        for name in figures:
            _copy(made / folder / f"{name}.png", figure_path(folder, name))


def figure_path(folder: str, name: str) -> Path:
    """Where a figure of a pipeline stands under docs/."""
    return DOCS / "figures" / f"{folder}_{name}.png"


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    else:
        print(f"{source.relative_to(DOCS.parent)} is not there; the page keeps what it had")


def picture(words: str, folder: str, name: str) -> str:
    """A figure in Markdown."""
    return f"![{words}]({figure_path(folder, name).relative_to(DOCS).as_posix()})"


def verdict() -> Verdict:
    """The record of the verdict."""
    record: dict[str, Any] = json.loads((RESULTS / "verdict.json").read_text(encoding="utf-8"))
    return read_verdict(record)


def verdict_page() -> str:
    """The verdict of the default study, from its record."""
    found = verdict()
    head, _, rest = summary(found).partition("\n## ")
    networks = {t.task: t for t in found.tasks if t.task in ("resnet18", "transformer")}
    lengths = " and ".join(f"{t.iterations} iterations ({t.label})" for t in networks.values())
    reading = f"""    {COMMAND}

**How to read this page.** A speed-up of 2× means: the reference, the better of SGDM and Adam, must train twice as long for the
same loss. `> 16×` and `< 1/16×` are bounds: the speed-up is beyond the trained lengths; ≥ and ≤ say that some runs are. In brackets:
95 % interval over {found.tasks[0].searches} searches and their seeds. [Method](method.md#the-verdict) has the formulae.

Rahimi–Recht has its published size: 24,000 iterations, 16 seeds, functions drawn anew. The networks are the small ones of the
scale `base`, trained for {lengths} on the digits of scikit-learn and the language reference of Python: nothing is claimed about
the published sizes."""
    words = {
        "loss_by_length": "Final training loss by training length, a panel a task",
        "speedup_in_iterations": "Speed-up of every arm, in iterations",
        "speedup_in_seconds": "Speed-up of every arm, in seconds",
        "ladder": "Each rung of the ladder against the next",
    }
    pictures = "\n\n".join(picture(w, "verdict", name) for name, w in words.items())
    return f"{head}\n{reading}\n\n{pictures}\n\n## {rest}"


def readme() -> str:
    """The README with the answer, the picture and the matrix of the record."""
    found = verdict()
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    image = figure_path("verdict", "loss_by_length").relative_to(DOCS.parent).as_posix()
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
        ]
    )
    return f"{before}{MARKS[0]}\n{block}\n\n{MARKS[1]}{after}"


def ledger_page() -> str:
    """The replication ledger of the published size, from its tables."""
    tables = [pd.read_csv(RESULTS / "ledger" / f"{name}.csv") for name in LEDGER_TABLES]
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
    measures = [pd.read_parquet(RESULTS / "fidelity" / f"{name}.parquet") for name in names]
    title, _, rest = fidelity.report(measures, "base", "ssdh").partition("\n\n")
    figure = picture("Error of every estimate along the run", "fidelity", "estimates")
    made = (
        "    kedro run --pipelines=fidelity\n\nMeasures and their formulae: "
        "[method.md](method.md#fidelity-of-the-estimates)."
    )
    return f"{title}\n\n{made}\n\n{figure}\n\n{rest}"


PAGES = {"verdict": verdict_page, "ledger": ledger_page, "fidelity": fidelity_page}


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
