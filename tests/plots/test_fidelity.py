"""The fidelity figure shows every estimate, but none compared with itself."""

import numpy as np
import pandas as pd

from adaptive_opt.curvature.fidelity import METHODS
from adaptive_opt.plots.fidelity import fidelity_figure
from adaptive_opt.plots.figure import to_matplotlib, to_plotly


def measures(task):
    made = [("raw", p, "") for p in ("rademacher", "gaussian", "constant", "momentum_sign")]
    made += [(stage, m.probe, m.name) for stage in ("smoothed", "clipped") for m in METHODS]
    rows = [
        {
            "task": task,
            "seed": seed,
            "iteration": iteration,
            "stage": stage,
            "probe": probe,
            "method": method,
            "cosine": (i + seed) / 100,
            "relative_error": (1.0 + i + seed) * (1 + iteration),
        }
        for i, (stage, probe, method) in enumerate(made)
        for seed in (0, 2, 4)
        for iteration in (0, 99)
    ]
    return pd.DataFrame(rows)


def test_every_stage_of_every_task_has_all_lines():
    figure = fidelity_figure([measures("rr_cond29"), measures("rr_cond15099")])
    assert figure.columns == 3
    assert [len(p.lines) for p in figure.panels] == [4, 7, 6] * 4
    assert [p.title.rsplit(": ", 1)[1] for p in figure.panels[:3]] == [
        "one draw",
        "smoothed",
        "clipped update",
    ]
    (line,) = [x for x in figure.panels[0].lines if x.label == "Gaussian"]
    assert list(line.x) == [1, 100]  # iteration + 1, as a logarithmic axis has no 0
    assert np.allclose(line.y, [0.03, 0.03])  # the median seed
    errors = figure.panels[3].lines
    assert np.allclose(errors[0].y, [3, 300])
    labels = {line.label for p in figure.panels for line in p.lines}
    assert "SSDH, exact diagonal" in labels
    assert "SSDH, exact diagonal" not in {line.label for line in figure.panels[2].lines}
    for panel in figure.panels:
        looks = {(line.colour, line.dash) for line in panel.lines}
        assert len(looks) == len(panel.lines)


def test_only_tiny_errors_of_the_exact_diagonal_are_left_out():
    """Its error falls without limit."""
    rows = measures("rr_cond29")
    rows.loc[rows["iteration"] == 99, "relative_error"] = 1e-9
    lines = {line.label: line.y for line in fidelity_figure([rows]).panels[4].lines}
    assert np.isfinite(lines["SSDH, exact diagonal"]).tolist() == [True, False]
    assert np.isfinite(lines["SSDH, Rademacher"]).all()


def test_an_error_of_zero_is_a_gap():
    rows = measures("rr_cond29")
    rows.loc[rows["iteration"] == 0, "relative_error"] = 0.0
    for line in fidelity_figure([rows]).panels[3].lines:
        assert np.isfinite(line.y).tolist() == [False, True]


def test_steps_are_on_a_logarithmic_axis_in_both_renderers():
    figure = fidelity_figure([measures("rr_cond29")])
    assert {ax.get_xscale() for ax in to_matplotlib(figure).axes} == {"log"}
    drawn = to_plotly(figure)
    assert drawn.layout.xaxis.type == "log"
    assert drawn.layout.yaxis4.type == "log"
