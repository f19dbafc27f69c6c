"""Write docs/verdict.md, docs/ledger.md and docs/fidelity.md from the records under docs/results/.

    python docs/build_evidence.py             # the pages from the records
    python docs/build_evidence.py --collect   # first fetch records and figures from data/

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
from adaptive_opt.evidence.schema import Verdict
from adaptive_opt.evidence.summary import summary
from adaptive_opt.study import tasks_of

DOCS = Path(__file__).parent
RESULTS = DOCS / "results" / "base"
FIGURES = {
    "ladder_verdict": ("ratio_by_iteration", "ratio_by_device_seconds", "ladder", "profiles"),
    "ledger": ("iterations",),
    "fidelity": ("estimates",),
}
"""By the folder under data/08_reporting/base."""

LEDGER_TABLES = ("ledger", "targets", "precision")
COMMAND = "kedro run --pipelines=ladder --params=tasks.resnet18.seeds=12,tasks.transformer.seeds=12"
"""What made the verdict on the page."""


def collect() -> None:
    """Records and figures of the last runs at the scale base, of those that there are."""
    data = DOCS.parent / "data"
    made = data / "08_reporting" / "base"
    if (made / "ladder_verdict" / "verdict.json").is_file():
        text = (made / "ladder_verdict" / "verdict.json").read_text(encoding="utf-8")
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
    return DOCS / "figures" / f"{folder.removeprefix('ladder_')}_{name}.png"


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
    return Verdict(**record)


def verdict_page() -> str:
    """The verdict of the whole ladder, from its record."""
    head, _, rest = summary(verdict()).partition("\n## ")
    scales = f"""    {COMMAND}

Rahimi–Recht at its full, published size: 24,000 iterations, 16 seeds, functions drawn anew. The networks are the small
ones of `make run` (77,000 and 82,000 parameters, on the digits of scikit-learn and the language reference of Python), with 12 seeds
instead of three: nothing is claimed about the published sizes. How targets, tests and the ladder are made:
[method.md](method.md#the-verdict)."""
    pictures = "\n\n".join(
        [
            picture("Every arm against the best first-order one", "ladder_verdict", "ratio_by_iteration"),
            picture("The same in seconds", "ladder_verdict", "ratio_by_device_seconds"),
            picture("Each rung of the ladder against the next", "ladder_verdict", "ladder"),
            picture("Performance profiles", "ladder_verdict", "profiles"),
        ]
    )  # fmt: skip
    return f"{head}\n{scales}\n\n{pictures}\n\n## {rest}"


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


if __name__ == "__main__":
    main()
