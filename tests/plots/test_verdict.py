"""Figures of the verdict, and the HTML report."""

import base64
import html
import io
import math
import re

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from adaptive_opt.evidence.judge import TaskData
from adaptive_opt.evidence.verdict import build_verdict
from adaptive_opt.plots import figure, page
from adaptive_opt.plots.intervals import (
    VERDICT_COLOURS,
    Interval,
    IntervalFigure,
    IntervalPanel,
    to_matplotlib,
    to_plotly,
)
from adaptive_opt.plots.verdict import ladder_figure, length_figure, speedup_figure
from tests.evidence.simulated import SETTINGS, Truth, draw

ROWS = [
    Interval("within", 0.5, 0.4, 0.6, "slower"),
    Interval("open", 1.2, 0.0, math.inf, "undecided"),
    Interval("far", 1e6, 1e5, 1e7, "faster"),
]

SPEEDS = {"sgdm": 0.0, "sophia": 30.0, "sadh": 1.0, "ssdh": 2.0, "ssvp": 0.5, "ssdh_constant": 0.5}


@pytest.fixture(scope="module")
def study():
    data = draw(SPEEDS, Truth(seeds=6), np.random.default_rng(2))
    lengths = {**data.lengths, "sadh": data.lengths["sadh"].iloc[:0]}
    failed = {**data.summaries["sadh"], "failed": "</script><b>no", "iterations": 0}
    summaries = {**data.summaries, "sadh": failed}
    data = TaskData(data.task, lengths, data.bests, summaries, None, data.seeds)
    provenance = {"versions": {"torch": "2"}, "commands": ["kedro run"], "seeds": {}}
    return build_verdict([data], SETTINGS, "base", provenance), list(lengths.values())


def test_speed_ups_beyond_the_axis_are_arrows_at_its_edge():
    (ax,) = to_matplotlib(IntervalFigure("", [IntervalPanel("", ROWS, 0.1)])).axes
    low, high = ax.get_xlim()
    assert low == pytest.approx(0.4**1.1)  # no row needs more space below 1
    assert high == pytest.approx(10_000.0)
    for line in ax.lines:
        assert all(low <= x <= high for x in line.get_xdata())
    arrow = ax.lines[-1]  # the far one
    assert (arrow.get_marker(), arrow.get_xdata()[0]) == (">", high)
    assert [t.get_text() for t in ax.texts] == ["slower", "undecided", "faster"]


def test_a_short_axis_has_readable_ticks():
    panel = IntervalPanel("", [Interval("near", 0.9, 0.6, 1.3, "undecided")], 0.1)
    (ax,) = to_matplotlib(IntervalFigure("", [panel])).axes
    assert list(ax.get_xticks()) == [0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4]


def test_plotly_has_one_trace_per_verdict_and_keeps_the_order_of_rows():
    panels = [IntervalPanel("", ROWS, 0.1), IntervalPanel("", ROWS[:1], 0.1)]
    drawn = to_plotly(IntervalFigure("", panels))
    assert [t.name for t in drawn.data] == ["faster", "slower", "undecided", "slower"]
    assert [t.showlegend for t in drawn.data] == [True, True, True, False]
    assert list(drawn.layout.yaxis.categoryarray) == ["far", "open", "within"]
    (faster,) = (t for t in drawn.data if t.name == "faster")
    assert (list(faster.x), list(faster.marker.symbol)) == ([10_000.0], ["triangle-right"])
    assert faster.hovertext[0].startswith("1e+06")
    assert to_plotly(IntervalFigure("", [])).data == ()
    bands = [(s.x0, s.x1) for s in drawn.layout.shapes if s.type == "rect"]
    assert bands == [pytest.approx((1 / 1.1, 1.1))] * 2


def test_the_length_figure_has_one_line_for_each_arm_but_placebos(study):
    verdict, tables = study
    (panel,) = length_figure(verdict, tables).panels
    assert {line.label for line in panel.lines} == {"Adam", "SGDM", "Sophia", "SSDH", "SSVP"}
    adam = next(line for line in panel.lines if line.label == "Adam")
    assert [round(x) for x in adam.x] == [62, 125, 250, 500, 1000, 2000]
    assert np.all(np.diff(adam.y) <= 0.02)
    assert panel.x_log
    assert panel.y_log
    assert panel.level == pytest.approx(verdict.tasks[0].levels["train_loss"])
    assert length_figure(verdict, tables, "valid_loss").panels == []


def test_the_median_is_missing_if_most_runs_diverged(study):
    verdict, tables = study
    own = next(t for t in tables if len(t) and t["arm"].iloc[0] == "ssdh")
    lost = own.assign(train_loss=own["train_loss"].where(own["seed"] > 3))  # 4 of 6 diverged
    (panel,) = length_figure(verdict, [lost]).panels
    assert np.isnan(np.asarray(panel.lines[0].y, dtype=float)).all()


def test_speed_ups_are_sorted_and_relative_to_the_reference(study):
    verdict, _ = study
    (panel,) = speedup_figure(verdict).panels
    assert panel.title == "Transformer, compared with Adam"
    ratios = [row.ratio for row in panel.rows]
    assert ratios == sorted(ratios, reverse=True)
    by_label = {row.label: row for row in panel.rows}
    assert (by_label["Sophia"].high, by_label["Sophia"].verdict) == (math.inf, "faster")
    assert (by_label["SGDM"].low, by_label["SGDM"].verdict) == (0.0, "slower")
    assert speedup_figure(verdict, "device_seconds").panels == []  # no calibration


def test_ladder_rows_name_both_arms(study):
    verdict, _ = study
    assert ladder_figure(verdict).panels == []  # most of its arms were not trained
    full = {**SPEEDS, **dict.fromkeys(["ssdh_permuted", "ssdh_per_tensor", "ssdh_per_model"], 2.0)}
    data = draw(full, Truth(seeds=6), np.random.default_rng(0))
    (panel,) = ladder_figure(build_verdict([data], SETTINGS, "base", {})).panels
    assert panel.rows[0].label == "SSDH: estimate vs permuted"
    assert {row.verdict for row in panel.rows} <= {*VERDICT_COLOURS}


def test_every_cell_of_the_matrix_has_a_verdict_and_a_symbol(study):
    verdict, _ = study
    ((task, cells),) = page.matrix(verdict)
    assert task.reference == "adam"
    assert cells.count(None) == 1  # the reference
    seen = {pair[0].word: pair[0] for pair in cells if pair}
    assert set(seen) == {"faster", "slower", "failed"}
    assert {cell.symbol for cell in seen.values()} == {"▲", "▼", "✕"}
    assert any(pair and pair[0].factor == "> 16×" for pair in cells)
    assert len({*page.SYMBOLS.values()}) == len(page.SYMBOLS) == len(VERDICT_COLOURS)


def test_the_page_is_complete_self_contained_and_escaped(study):
    verdict, tables = study
    drawn = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="</script><b>"))
    drawn.update_layout(meta={"caption": "A line <rises>."})
    text = page.report_page(verdict, {"one": drawn}, tables)
    assert "</script><b>" not in text
    assert "&lt;/script&gt;&lt;b&gt;no" in text  # the reason why an arm failed
    # Plotly's code contains host names; pictures are embedded.
    outside = re.sub(r"<script>.*?</script>|base64,[^\"]*", "", text, flags=re.DOTALL)
    assert len(outside) < 60_000
    assert not re.search(r'(?:src|href|srcset)="(?!data:)', outside)
    for words in (
        html.escape(verdict.answer),
        "SSVP",
        "kedro run",
        "Threats to validity",
        "✕ failed",
        "&gt; 16×",
        "<figcaption>A line &lt;rises&gt;.</figcaption>",
        "<figcaption>Each point is a separate training run",
        "<dt>censored run</dt><dd>",
    ):
        assert words in text
    first = outside.index('id="matrix"')
    assert outside.index(html.escape(verdict.answer)) < first < outside.index('id="picture"')
    assert outside.index('id="picture"') < outside.index("<h2>")  # the first screen
    assert "p =" not in outside[: outside.index("<h2>")]
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    for picture in re.findall(r"image/png;base64,([^\"]+)", own):
        with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
            assert len(opened.convert("L").getcolors(256)) > 20


def test_the_page_can_be_rendered_without_runs():
    verdict = build_verdict([], SETTINGS, "smoke", {"versions": {}, "commands": [], "seeds": {}})
    text = page.report_page(verdict, {})
    assert "No verdict" in text
    assert "base64" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)


def test_the_length_figure_has_one_panel_per_task(study):
    verdict, tables = study
    drawn = figure.to_matplotlib(length_figure(verdict, tables, columns=4))
    assert [ax.get_title() for ax in drawn.axes] == ["Transformer"]
