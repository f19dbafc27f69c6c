"""The ledger figure has a symbol for every arm and variant, also if no seed arrives."""

import numpy as np

from adaptive_opt.evidence.ledger import ledger_table
from adaptive_opt.plots.figure import to_matplotlib, to_plotly
from adaptive_opt.plots.ledger import ledger_figure
from tests.evidence.test_ledger import BASE, TASK, history

HALF = [[9, 1, 1, 1], [9, 9, 9, 9], [9, 9, 9, 9]]
ARMS = {**{arm: columns + columns[:1] for arm, columns in BASE.items()}, "ssvp": HALF}


def figure():
    histories = {(name, TASK): history(ARMS) for name in ("baseline", "probe")}
    return ledger_figure(ledger_table(histories, {TASK: 1.0}, 2.0))


def test_arms_that_always_sometimes_or_never_arrive_have_different_symbols():
    (panel,) = figure().panels
    assert panel.ticks == ["baseline", "constant probe"]
    symbols = {line.label: line.symbol for line in panel.lines}
    assert symbols == {
        "SGDM": "triangle", "Adam": "dot", "SADH": "dot", "SSDH": "dot", "SSVP": "ring",
    }  # fmt: skip
    highest = max(np.nanmax(line.y) for line in panel.lines if line.symbol != "triangle")
    (never,) = [line for line in panel.lines if line.symbol == "triangle"]
    assert (never.y > highest).all()


def test_arms_stand_side_by_side():
    (panel,) = figure().panels
    places = [float(line.x[0]) for line in panel.lines]
    assert len(set(places)) == len(places)
    assert max(map(abs, places)) < 0.5


def test_both_renderers_name_the_variants():
    drawn = to_matplotlib(figure())
    assert [t.get_text() for t in drawn.axes[0].get_xticklabels()] == ["baseline", "constant probe"]
    browser = to_plotly(figure())
    assert list(browser.layout.xaxis.ticktext) == ["baseline", "constant probe"]
    assert {t.marker.symbol for t in browser.data} == {"circle", "circle-open", "triangle-up-open"}
