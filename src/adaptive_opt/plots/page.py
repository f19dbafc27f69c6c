"""The report: one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from adaptive_opt.evidence import summary
from adaptive_opt.evidence.schema import TaskVerdict, Verdict
from adaptive_opt.evidence.tables import ARM_LABELS

from .intervals import VERDICT_COLOURS

__all__ = ["report_page"]


def report_page(verdict: Verdict, figures: Mapping[str, go.Figure]) -> str:
    """The page as text: answer, verdicts, figures, protocol, threats, versions, commands.

    Plotly's own code is part of it (some megabytes), so that it opens without a network.

    Args:
        verdict: what it states.
        figures: by name, in the order in which they are shown.
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
        protocol=summary.protocol(verdict),
        threats=summary.threats(verdict),
        label=lambda arm: ARM_LABELS.get(arm, "no baseline"),
        percent=lambda share: f"{100 * share:.0f} %",
        arm_table=lambda task: _table(summary.arm_rows(task)),
        ladder_table=lambda task: _table(summary.ladder_rows(task)),
        break_even_table=_break_even,
        score_table=lambda: _table(summary.score_rows(verdict)),
    )


def _break_even(task: TaskVerdict) -> Markup:
    return _table(summary.break_even_rows(task), "Break-even: t(k) = t_first + t_curvature / k")


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
        lines.append("<tr>" + "".join(_cell(c) for c in row) + "</tr>")
    return Markup("\n".join([*lines, "</table>"]))  # noqa: S704, escaped above


def _cell(text: str) -> str:
    word = text if text in VERDICT_COLOURS else ""
    kind = f' class="{word}"' if word else ""
    return f"<td{kind}>{html.escape(text)}</td>"
