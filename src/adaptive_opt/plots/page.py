"""The report: one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

from .figure import Figure, to_matplotlib
from .intervals import VERDICT_COLOURS
from .picture import to_png
from .verdict import length_figure

__all__ = ["SYMBOLS", "Cell", "matrix", "report_page"]

SYMBOLS = {"faster": "▲", "slower": "▼", "equivalent": "=", "undecided": "?", "failed": "✕"}
"""Shown beside the colours, for readers who cannot tell them apart."""


class Cell(NamedTuple):
    """Speed-up of an arm on a task, by one clock.

    Attributes:
        word: the verdict; empty without one.
        symbol: one of :data:`SYMBOLS`.
        factor: the speed-up.
        words: the speed-up with its interval.
    """

    word: str = ""
    symbol: str = ""
    factor: str = "–"
    words: str = "–"


def matrix(verdict: Verdict) -> list[tuple[TaskVerdict, list[tuple[Cell, Cell] | None]]]:
    """For each task, one pair of cells per arm (iterations, seconds); None for the reference."""
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
    """Render the report as HTML: answer, table of speed-ups, main figure, then all details.

    The page contains Plotly's code (some megabytes), so it opens without a network.

    Args:
        verdict: the record to report.
        figures: Plotly figures by name, in the order in which they are shown. The captions are read
            from ``layout.meta["caption"]``.
        tables: final losses at every length, for the main figure; without any, it is left out.
    """
    pages = Environment(
        loader=PackageLoader("adaptive_opt.plots"),
        autoescape=select_autoescape(["html", "j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    main = length_figure(verdict, tables)
    drawable = any(len(t) for t in tables)
    return pages.get_template("report.html.j2").render(
        verdict=verdict,
        plotly_js=Markup(_inside_a_script(get_plotlyjs())),  # noqa: S704, Plotly's own code
        figures=[(Markup(_as_json(f)), _caption(f)) for f in figures.values()],  # noqa: S704
        matrix=matrix(verdict),
        arms=[get_arm(a).label for a in summary.matrix_arms(verdict)],
        wide=_data_url(main, 4) if drawable else "",
        narrow=_data_url(main, 2) if drawable else "",
        main_caption=main.caption,
        symbols=SYMBOLS,
        terms=summary.terms(verdict),
        protocol=summary.protocol(verdict),
        threats=summary.threats(verdict),
        label=lambda arm: get_arm(arm).label if arm else "none",
        percent=lambda share: f"{100 * share:.0f} %",
        sentence=task_answer,
        failures=summary.failures,
        tables=_tables,
    )


def _tables(task: TaskVerdict) -> list[Markup]:
    return [_table(rows, caption) for caption, rows in summary.tables(task)]


def _data_url(figure: Figure, columns: int) -> str:
    """PNG of a figure, without its caption, as a data URL."""
    shown = replace(figure, columns=min(columns, max(1, len(figure.panels))), caption="")
    png = to_png(to_matplotlib(shown), dpi=110)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _caption(figure: go.Figure) -> str:
    return str((figure.layout.meta or {}).get("caption", ""))


def _as_json(figure: go.Figure) -> str:
    drawn = json.loads(figure.to_json())
    drawn["layout"].pop("width", None)  # Plotly then uses the width of the page
    return _inside_a_script(json.dumps(drawn, separators=(",", ":")))


def _inside_a_script(code: str) -> str:
    """Escape code so that it cannot close its ``<script>`` element."""
    return code.replace("</", "<\\/").replace("<!--", "<\\!--")


def _table(rows: summary.Rows, caption: str) -> Markup:
    head, body = rows
    lines = ["<table>", f"<caption>{html.escape(caption)}</caption>"]
    lines.append("<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in head) + "</tr>")
    for row in body:
        lines.append("<tr>" + "".join(_table_cell(c) for c in row) + "</tr>")
    return Markup("\n".join([*lines, "</table>"]))  # noqa: S704, escaped above


def _table_cell(text: str) -> str:
    word = text if text in VERDICT_COLOURS else ""
    kind = f' class="{word}"' if word else ""
    return f"<td{kind}>{html.escape(text)}</td>"
