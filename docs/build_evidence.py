"""Write docs/verdict.md, docs/ledger.md, docs/fidelity.md and the README's answer from records.

    python docs/build_evidence.py             # write the pages from docs/results/
    python docs/build_evidence.py --collect   # first copy records and figures from data/

A test compares the committed pages with the output of this script.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import pandas as pd

from adaptive_opt.evidence import fidelity, ledger_report
from adaptive_opt.evidence.schema import TaskVerdict, Verdict, read_verdict
from adaptive_opt.evidence.summary import (
    arm_rows,
    break_even_rows,
    failures,
    final_rows,
    ladder_rows,
    matrix_rows,
    price_rows,
    search_rows,
    threats,
)
from adaptive_opt.evidence.tables import ARM_LABELS, TASK_LABELS, markdown
from adaptive_opt.study import tasks_of
from adaptive_opt.switches import SWITCHES, VARIANTS

sys.path.insert(0, str(Path(__file__).parent))
from record import (
    DOCS,
    RESULTS,
    beside,
    both,
    collect_verdict,
    copy,
    figure_path,
    fill,
    headline,
    informative,
    read_json,
)

BASE = RESULTS / "base"
FIGURES = {"ledger": ("iterations",), "fidelity": ("estimates",)}
"""Figures of the scale base, by their folder under data/08_reporting/base."""

LEDGER_TABLES = ("ledger", "targets", "precision")
COMMANDS = {
    "base": "kedro run",
    "evening": "kedro run --env=evening",
    "paper": "kedro run --env=paper",
}
"""The command that makes the verdict of a scale."""

DATA_SETS = {
    "base": "the digits of scikit-learn and the language reference of Python",
    "evening": "CIFAR-10 at 16×16 pixels and Penn Treebank with its 1,000 most frequent words",
    "paper": "CIFAR-10 and Penn Treebank",
}
README = DOCS.parent / "README.md"
MARKS = ("<!-- verdict -->\n", "<!-- /verdict -->\n")


def collect() -> None:
    """Copy the records and figures of the last runs, if they exist."""
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
    """Return a figure in Markdown."""
    return f"![{words}]({figure_path(scale, folder, name).relative_to(DOCS).as_posix()})"


def verdict(scale: str | None = None) -> Verdict:
    """Read the record of a verdict, by default that of the largest scale."""
    return read_verdict(read_json(RESULTS / (scale or headline()) / "verdict.json"))


def size_words(found: Verdict) -> str:
    """Say how long each task was trained, and on which data."""
    rr = next(t for t in found.tasks if t.task.startswith("rr_"))
    networks = [t for t in found.tasks if not t.task.startswith("rr_")]
    lengths = " and ".join(f"{t.iterations:,} iterations ({t.label})" for t in networks)
    text = (
        f"Rahimi–Recht has its published size: {rr.iterations:,} iterations, {rr.arms[0].runs} "
        f"seeds, new functions. The networks of the scale `{found.scale}` train for {lengths}, on "
        f"{DATA_SETS[found.scale]}."
    )
    return text if found.scale == "paper" else f"{text} They do not represent the published sizes."


def verdict_page(scale: str | None = None) -> str:
    """Write the verdict of a study from its record."""
    found = verdict(scale)
    smaller = (
        " [The default run](verdict_base.md) is smaller."
        if scale is None and found.scale != "base"
        else ""
    )
    words = {
        "loss_by_length": "Final training loss by training length, a panel for each task",
        "speedup_in_iterations": "Speed-up of every arm, in iterations",
        "speedup_in_seconds": "Speed-up of every arm, in seconds",
    }
    parts = [
        f"# {found.question}",
        found.answer,
        f"    {COMMANDS[found.scale]}",
        fill(size_words(found) + smaller),
        reading_guide(found),
        "Speed-up in iterations, by training loss:",
        markdown(*matrix_rows(found)),
        *(picture(w, "verdict", name, found.scale) for name, w in words.items()),
        *(part for task in found.tasks for part in task_section(task)),
        *ladder(found),
        *prices(found),
        "## Threats to validity",
        "\n".join(f"- {threat}" for threat in threats(found)),
    ]
    return "\n\n".join(parts) + "\n"


def reading_guide(found: Verdict) -> str:
    """Explain the tables of a verdict."""
    return f"""**How to read this page**

- *Speed-up* 2× means: the reference, the better of SGDM and Adam, must train twice as long for the same loss.
- Brackets hold the 95 % interval over {found.tasks[0].searches} searches and their seeds. `> 16×` and `< 1/16×` are bounds: the
  speed-up is beyond the trained lengths. ≥ and ≤: some runs are. Runs at a bound are *censored*;
  a column counts them.
- *Spread* is the factor by which speeds differ between searches or seeds. *Values at a bound* lie at the edge of the search
  space. Columns of failed searches and stuck runs are left out if there are none.
- *Rungs*: each is compared with the next lower one; a faster rung shows the effect of the part that the lower one loses.

[How arms are compared](comparison.md) has the formulae, `docs/results/{found.scale}/verdict.json` all numbers."""


def task_section(task: TaskVerdict) -> list[str]:
    """Return the tables of one task: speed-ups by both losses, and the runs."""
    head, body = arm_rows(task)
    speeds = markdown([short(words) for words in head], body)
    if "valid_loss" in task.levels:
        head, body = arm_rows(task, "valid_loss")
        names = ["arm", *(f"validation: {short(words)}" for words in head[1:-1])]
        speeds = beside(speeds, markdown(names, [row[:-1] for row in body]))
    runs = beside(markdown(*final_rows(task)), markdown(*search_rows(task)))
    said = [f"- {line}" for line in failures(task)]
    reference = next(a.label for a in task.arms if a.arm == task.reference)
    title = [f"## {task.label}", f"Speed-up against {reference}, and the final losses:"]
    if "valid_loss" not in task.levels:  # few enough columns for one table
        return [*title, *said, informative(beside(speeds, runs))]
    return [*title, *said, speeds, informative(runs)]


def short(words: str) -> str:
    """Shorten a column's name where the text above it names the quantity."""
    return words.removeprefix("speed-up in ")


def ladder(found: Verdict) -> list[str]:
    """Return rungs × tasks: each rung against the next, and what follows from it."""
    tables, said = [], []
    for task in found.tasks:
        rows = [
            [f"{upper} against {lower}: {part}", f"{ratio} {verdict}"]
            for upper, lower, part, ratio, verdict in ladder_rows(task)[1]
        ]
        if rows:
            tables.append(markdown(["rung: part that is lost", task.label], rows))
            said += [f"- {task.label}: {words}" for words in task.made_of.values()]
    figure = picture("Each rung of the ladder against the next", "verdict", "ladder", found.scale)
    return ["## The ladder", "\n".join(said), beside(*tables), figure] if tables else []


def prices(found: Verdict) -> list[str]:
    """Return arms × tasks: what a step costs, and from which period an arm wins on seconds."""
    steps, wins = [], []
    for task in found.tasks:
        rows = [
            [arm, f"{plain} + {refresh}/k: {ratio}" if refresh != "0" else f"{plain}: {ratio}"]
            for arm, _, plain, refresh, ratio in price_rows(task)[1]
        ]
        steps.append(markdown(["arm", task.label], rows))
        rows = [[arm, f"{period} ({ends})"] for arm, _, period, ends in break_even_rows(task)[1]]
        wins.append(markdown(["arm", task.label], rows))
    k = ", ".join(
        str(n) for n in sorted({b.update_period for t in found.tasks for b in t.break_even})
    )
    return [
        "## Seconds of a step",
        f"Milliseconds of a step, as plain + refresh / k, and the price at k = {k} relative to the "
        "reference:",
        beside(*steps),
        "Update period k from which an arm is faster than the reference in seconds, with its "
        "interval:",
        beside(*wins),
    ]


def base_page() -> str:
    """Write the verdict of the default run, for use beside that of a larger study."""
    return "# The default run\n\n" + verdict_page("base").partition("\n\n")[2]


def readme() -> str:
    """Return the README with the answer, the figure and the table of the record."""
    found = verdict()
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    path = figure_path(found.scale, "verdict", "loss_by_length")
    image = path.relative_to(DOCS.parent).as_posix()
    block = "\n\n".join(
        [
            found.answer,
            f"![Final training loss by training length: further left is faster]({image})",
            fill(
                "Speed-up in iterations: how many times longer the reference must train for the "
                "same loss. Brackets hold 95 % intervals over searches and seeds; `>`, `<`, ≥ and "
                "≤ mark bounds."
            ),
            markdown(*matrix_rows(found)),
            fill(f"Made by `{COMMANDS[found.scale]}`. {size_words(found)}"),
        ]
    )
    return f"{before}{MARKS[0]}\n{block}\n\n{MARKS[1]}{after}"


def ledger_page() -> str:
    """Write the replication ledger of the published size from its tables."""
    tables = [pd.read_csv(BASE / "ledger" / f"{name}.csv") for name in LEDGER_TABLES]
    files = sorted((DOCS.parent / "benchmarks" / "results").glob("step_*.json"))
    costs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    text = ledger_report.report(*tables, costs, scale="base", searched=True)
    title, _, rest = text.partition("\n\n")
    overview, *sections = rest.split("\n\n## ")
    effects = both(*(effect_table(rows) for _, rows in tables[0].groupby("task", sort=False)))
    figure = picture("Median iterations to the target, by switch", "ledger", "iterations")
    medians = both(*markdown_tables(overview))
    intro = fill(overview.partition("\n\n")[0])
    head = ["switch", "as published", "here", "why it matters", "note"]
    rows = [[s.label, s.published, s.corrected, s.why, s.note or "–"] for s in SWITCHES]
    measured = [part for part in map(ledger_section, sections) if part]
    parts = [title, LEDGER_GUIDE, figure, intro, medians, EFFECTS, effects]
    parts += ["## The switches", markdown(head, rows).replace("---:", "---"), *measured]
    return "\n\n".join(parts) + "\n"


LEDGER_GUIDE = """You will see what each defect of the original study changes in its table.

    kedro run --pipelines=ledger

**How to read this page.** First come the medians of every variant, then their ratios. The sections show what else was measured. Where a cell has two values, the first is of condition 29, the second of condition 15,099.
[Diagnostics](diagnostics.md#replication-ledger) has the method, `docs/results/base/ledger/` all numbers."""

EFFECTS = """Median iterations relative to the row that the variant is compared with (the baseline; *clipped* for *clipped, curvature not*).
In brackets: seeds that arrive sooner and later than there. *=*: the losses have the same bits. –: a median is infinite."""


def effect_table(rows: pd.DataFrame) -> str:
    """Return variants × arms of one task: ratio of medians, and seeds that are sooner and later."""
    arms = list(dict.fromkeys(rows["arm"]))
    cells = {
        (row.variant, row.arm): "="
        if row.unchanged
        else f"{'–' if pd.isna(row.ratio) else f'{row.ratio:.2f}'} ({row.faster}, {row.slower})"
        for row in rows.itertuples()
    }
    labels = {v.name: v.label for v in VARIANTS if v.name != v.against}
    body = [
        [label, *(cells[name, arm] for arm in arms)]
        for name, label in labels.items()
        if (name, arms[0]) in cells
    ]
    return markdown(["", *(ARM_LABELS[a] for a in arms)], body)


def markdown_tables(text: str) -> list[str]:
    """List the Markdown tables in a text."""
    return [found.strip() for found in re.findall(r"(?:^\|.*\n?)+", text, re.M)]


def ledger_section(text: str) -> str:
    """Keep what was measured of a switch beside its effects on arms; join the tables of tasks."""
    arms = "|".join(map(re.escape, ARM_LABELS.values()))
    tasks = "|".join(map(re.escape, TASK_LABELS.values()))
    said = re.findall(rf"^- (?!(?:{tasks}): (?:{arms})[ ,]).*", text, re.M)
    tables = markdown_tables(text)
    if len(tables) == 2:
        tables = [both(*tables)]
    elif tables:  # rows of all tasks in one
        head, *rows = [re.sub(rf"^\| (?:{tasks}), ", "| ", line) for line in tables[0].splitlines()]
        half = len(rows) // 2 + 1
        tables = [
            both(*("\n".join([head, rows[0], *part]) for part in (rows[1:half], rows[half:])))
        ]
    introduction = [SETTLING] if tables and not said else []
    parts = ["\n".join(said)] if said else introduction
    return "\n\n".join([f"## {text.partition(chr(10))[0]}", *parts, *tables]) if parts else ""


SETTLING = "Where the loss of the best run stops moving, in % of the run:"


def fidelity_page() -> str:
    """Write what curvature estimates are worth, from the measures along the runs."""
    names = [task.name for task in tasks_of("rahimi_recht")]
    measures = [pd.read_parquet(BASE / "fidelity" / f"{name}.parquet") for name in names]
    title, *tasks = fidelity.report(measures, "base", "ssdh").strip().split("\n\n## ")
    (intro, *stages), (_, *others) = ([*task.split("\n\n### ")] for task in tasks)
    joined = []
    for one, other in zip(stages, others, strict=True):
        (table,), (second,) = markdown_tables(one), markdown_tables(other)
        words = [part for part in one.split("\n\n") if part[0] != "|"]
        joined += [f"## {words[0]}", *map(fill, words[1:]), both(table, second)]
    figure = picture("Error of every estimate along the run", "fidelity", "estimates")
    setup = fill(intro.partition("\n\n")[2])
    return "\n\n".join([title, FIDELITY_GUIDE, figure, setup, *joined]) + "\n"


FIDELITY_GUIDE = """You will see how near the optimizers' curvature estimates are to the exact diagonal.

    kedro run --pipelines=fidelity

**How to read this page.** Three tables compare one draw of an estimate, the smoothed estimate in the denominator, and the clipped
update. Where a cell has two values, the first is of condition 29, the second of condition 15,099. *At the end* is the relative
error at the last iteration. [Diagnostics](diagnostics.md#fidelity-of-the-estimates) defines the measures."""

PAGES = {"verdict": verdict_page, "ledger": ledger_page, "fidelity": fidelity_page}
if headline() != "base":
    PAGES["verdict_base"] = base_page


def main() -> None:
    """Write the pages, after collecting if asked to."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--collect", action="store_true", help="copy records and figures from data/ first"
    )
    if options.parse_args().collect:
        collect()
    for name, page in PAGES.items():
        (DOCS / f"{name}.md").write_text(page(), encoding="utf-8")
    README.write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    main()
