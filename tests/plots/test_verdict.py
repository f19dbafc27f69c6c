"""Forest plots and the page of the report."""

import math
import re

import plotly.graph_objects as go
import pytest

from adaptive_opt.evidence.schema import LadderVerdict, TaskVerdict, Verdict
from adaptive_opt.plots import page
from adaptive_opt.plots.intervals import (
    Interval,
    IntervalFigure,
    IntervalPanel,
    to_matplotlib,
    to_plotly,
)
from adaptive_opt.plots.verdict import ladder_figure

ROWS = [
    Interval("within", 0.5, 0.4, 0.6, "faster"),
    Interval("open", 1.2, 0.0, math.inf, "undecided"),
    Interval("far", 1e6, 1e5, 1e7, "slower"),
]


def a_verdict(label="Rahimi–Recht, condition 29"):
    step = LadderVerdict(
        metric="train_loss", target="share_100", level=1.0, clock="iteration", headline=True,
        verdict="faster", pairs=16, arrived=16, arrived_other=3, both_never=0, ratio=0.25, low=0.2,
        high=None, p_different=0.001, p_equivalent=1.0, p_log_rank=0.01, restricted_mean=10.0,
        restricted_mean_other=40.0, horizon=100.0, seeds_to_decide=None, parent="ssdh",
        upper="ssdh", lower="ssdh_permuted", part="coordinate", question="?",
    )  # fmt: skip
    task = TaskVerdict(
        task="rr_cond29", label=label, seeds=16, baselines={"train_loss": "sgdm"},
        targets={"train_loss": {"share_100": 1.0}}, arms=[], ladder=[step],
        made_of={"ssdh": "A sentence."}, break_even=[],
    )  # fmt: skip
    return Verdict(
        scale="base", question="Faster?", answer=["One.", "Two.", "Three."],
        settings={"margin": 0.1, "confidence": 0.95, "shares": [1.0], "reached_by": 0.75},
        tasks=[task], scores={"iteration": {"sgdm": 1.0}}, scores_caveat="Few.",
        provenance={"commands": ["kedro run"], "versions": {}, "device": [], "configurations": {}},
    )  # fmt: skip


def test_ratios_beyond_the_axis_stay_on_it():
    (ax,) = to_matplotlib(IntervalFigure("", [IntervalPanel("", ROWS, 0.1)])).axes
    low, high = ax.get_xlim()
    assert low == pytest.approx(0.4**1.1)  # below 1 there is no more to be seen
    assert high == pytest.approx(10_000.0)
    for line in ax.lines:
        assert all(low <= x <= high for x in line.get_xdata())
    arrow = ax.lines[-1]  # the far one
    assert (arrow.get_marker(), arrow.get_xdata()[0]) == (">", high)
    words = [t.get_text() for t in ax.texts]
    assert words == ["faster", "undecided", "slower"]


def test_an_axis_of_less_than_a_power_of_ten_can_be_read():
    panel = IntervalPanel("", [Interval("near", 0.9, 0.6, 1.3, "undecided")], 0.1)
    (ax,) = to_matplotlib(IntervalFigure("", [panel])).axes
    assert list(ax.get_xticks()) == [0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4]


def test_plotly_has_a_trace_for_each_verdict_in_the_order_of_the_rows():
    panels = [IntervalPanel("", ROWS, 0.1), IntervalPanel("", ROWS[:1], 0.1)]
    drawn = to_plotly(IntervalFigure("", panels))
    assert [t.name for t in drawn.data] == ["faster", "slower", "undecided", "faster"]
    assert [t.showlegend for t in drawn.data] == [True, True, True, False]
    assert list(drawn.layout.yaxis.categoryarray) == ["far", "open", "within"]
    (slower,) = (t for t in drawn.data if t.name == "slower")
    assert (list(slower.x), list(slower.marker.symbol)) == ([10_000.0], ["triangle-right"])
    assert slower.hovertext[0].startswith("1e+06")
    assert to_plotly(IntervalFigure("", [])).data == ()


def test_ladder_rows_name_both_rungs():
    (panel,) = ladder_figure(a_verdict()).panels
    (row,) = panel.rows
    assert row.label == "SSDH: estimate / permuted"
    assert (row.ratio, row.high) == (0.25, math.inf)


def test_the_page_holds_everything_and_escapes_what_it_is_told():
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="</script><b>"))
    text = page.report_page(a_verdict("<i>Task</i>"), {"one": figure})
    assert "<i>Task" not in text
    assert "&lt;i&gt;Task&lt;/i&gt;" in text
    assert "</script><b>" not in text
    outside = re.sub(
        r"<script>.*?</script>", "", text, flags=re.DOTALL
    )  # Plotly has names of hosts
    assert len(outside) < 50_000
    assert not re.search(r'(?:src|href)="(?!data:)', outside)
    for words in (
        "Faster?",
        "One.",
        "Two.",
        "Three.",
        "SSDH, permuted",
        "A sentence.",
        "kedro run",
    ):
        assert words in text
    assert '<td class="faster">faster</td>' in text
