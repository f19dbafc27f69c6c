"""The report: one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from adaptive_opt.evidence import summary
from adaptive_opt.evidence.answer import factor, speedup_words, task_answer
from adaptive_opt.evidence.schema import ArmVerdict, Speedup, TaskVerdict, Verdict
from adaptive_opt.study import get_arm

from .figure import to_matplotlib
from .intervals import VERDICT_COLOURS
from .picture import to_png
from .verdict import length_figure

__all__ = ["SYMBOLS", "Cell", "matrix", "report_page"]

SYMBOLS = {"faster": "▲", "slower": "▼", "equivalent": "=", "undecided": "?", "failed": "✕"}
"""Beside the colours, for those who see none."""


class Cell(NamedTuple):
    """One clock of an arm on a task.

    Attributes:
        word: the verdict; empty: none.
        symbol: of :data:`SYMBOLS`.
        factor: the speed-up.
        words: the same with its interval.
    """

    word: str = ""
    symbol: str = ""
    factor: str = "–"
    words: str = "–"


def matrix(verdict: Verdict) -> list[tuple[TaskVerdict, list[tuple[Cell, Cell] | None]]]:
    """For every task, a pair of cells an arm (iterations, seconds); None for the reference."""
    rows = []
    for task in verdict.tasks:
        cells: list[tuple[Cell, Cell] | None] = []
        for name in summary.matrix_arms(verdict):
            own = task.arm(name)
            if name == task.reference:
                cells.append(None)
            else:
                cells.append((_cell(own, "iteration"), _cell(own, "device_seconds")))
        rows.append((task, cells))
    return rows


def _cell(arm: ArmVerdict | None, clock: str) -> Cell:
    if arm is not None and arm.failed:
        return Cell("failed", SYMBOLS["failed"], "failed", f"failed: {arm.failed}")
    found: Speedup | None = arm.speedup(clock) if arm else None
    if found is None:
        return Cell()
    return Cell(found.verdict, SYMBOLS[found.verdict], factor(found), speedup_words(found))


def report_page(
    verdict: Verdict, figures: Mapping[str, go.Figure], tables: Sequence[pd.DataFrame] = ()
) -> str:
    """The page as text: answer, matrix, picture; then, folded, everything else.

    Plotly's own code is part of it (some megabytes), so that it opens without a network.

    Args:
        verdict: what it states.
        figures: by name, in the order in which they are shown.
        tables: final losses at every length, for the picture of the study.
    """
    pages = Environment(
        loader=PackageLoader("adaptive_opt.plots"),
        autoescape=select_autoescape(["html", "j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("report.html.j2").render(
        verdict=verdict,
        plotly_js=Markup(_inside_a_script(get_plotlyjs())),  # noqa: S704, Plotly's own code
        figures={name: Markup(_as_json(figure)) for name, figure in figures.items()},  # noqa: S704
        matrix=matrix(verdict),
        arms=[get_arm(a).label for a in summary.matrix_arms(verdict)],
        wide=_picture(verdict, tables, 4),
        narrow=_picture(verdict, tables, 2),
        symbols=SYMBOLS,
        protocol=summary.protocol(verdict),
        threats=summary.threats(verdict),
        label=lambda arm: get_arm(arm).label if arm else "none",
        percent=lambda share: f"{100 * share:.0f} %",
        sentence=task_answer,
        failures=summary.failures,
        tables=_tables,
    )


def _tables(task: TaskVerdict) -> list[Markup]:
    """Everything else about a task."""
    found = [
        ("Speed-up at equal training loss, with intervals", summary.arm_rows(task)),
        ("Quality at the end of the full length", summary.final_rows(task)),
        ("Searches and seeds: spread as a factor of speed", summary.search_rows(task)),
        ("Ladder: each rung against the next", summary.ladder_rows(task)),
        ("Price of a step, measured side by side", summary.price_rows(task)),
        ("Break-even: from which update period k an arm wins on seconds",
         summary.break_even_rows(task)),
    ]  # fmt: skip
    if "valid_loss" in task.levels:
        by_valid = summary.arm_rows(task, "valid_loss")
        found.insert(1, ("Speed-up at equal validation loss", by_valid))
    return [_table(rows, caption) for caption, rows in found if rows[1]]


def _picture(verdict: Verdict, tables: Sequence[pd.DataFrame], columns: int) -> str:
    """The picture of the study as a data URL; empty without tables."""
    if not any(len(t) for t in tables):
        return ""
    panels = max(1, sum("train_loss" in t.levels for t in verdict.tasks))
    drawn = to_matplotlib(length_figure(verdict, tables, columns=min(columns, panels)))
    return "data:image/png;base64," + base64.b64encode(to_png(drawn, dpi=110)).decode()


def _as_json(figure: go.Figure) -> str:
    drawn = json.loads(figure.to_json())
    drawn["layout"].pop("width", None)  # as wide as the page
    return _inside_a_script(json.dumps(drawn, separators=(",", ":")))


def _inside_a_script(code: str) -> str:
    """Code that cannot end the element it stands in."""
    return code.replace("</", "<\\/").replace("<!--", "<\\!--")


def _table(rows: tuple[list[str], list[list[str]]], caption: str = "") -> Markup:
    head, body = rows
    lines = ["<table>"]
    if caption:
        lines.append(f"<caption>{html.escape(caption)}</caption>")
    lines.append("<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in head) + "</tr>")
    for row in body:
        lines.append("<tr>" + "".join(_table_cell(c) for c in row) + "</tr>")
    return Markup("\n".join([*lines, "</table>"]))  # noqa: S704, escaped above


def _table_cell(text: str) -> str:
    word = text if text in VERDICT_COLOURS else ""
    kind = f' class="{word}"' if word else ""
    return f"<td{kind}>{html.escape(text)}</td>"
