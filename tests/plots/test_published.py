"""The published figures, from small synthetic histories."""

import math

import numpy as np
import pandas as pd
import pytest

from adaptive_opt.plots import networks, rahimi_recht
from adaptive_opt.plots.colours import DASHES, arm_style
from adaptive_opt.plots.figure import to_matplotlib, to_plotly
from adaptive_opt.study import ARMS, get_arm

NAN = math.nan
TASKS = ("rr_cond29", "rr_cond15099", "resnet18", "transformer")


def history(task, arm, scale=1.0, seeds=2):
    """History with four rows per seed, and every column that the arm has on the task."""
    frames = []
    for seed in range(seeds):
        loss = scale * np.array([8.0, 4.0, 2.0, 1.0]) * (1 + seed)
        frame = pd.DataFrame({"iteration": [0, 10, 20, 30], "train_loss": loss})
        if task.startswith("rr"):
            for column in rahimi_recht.HESSIAN_PANELS:
                if column.startswith("hessian"):
                    frame[column] = [0.1, NAN, 0.2, 0.3]
        else:
            frame["valid_loss"] = loss
        if task == "resnet18":
            frame["train_accuracy"] = frame["valid_accuracy"] = [0.1, 0.3, 0.6, 0.9]
        if task == "transformer":
            frame["valid_perplexity"] = np.exp(loss)
        if get_arm(arm).kind in ("second-order", "ladder"):
            for column in ("clipped_fraction", "denominator_norm", "estimate_norm"):
                frame[column] = [1.0, 0.5, NAN, 0.1]
            frame["curvature_norm"], frame["positive_estimate_share"] = 2.0, 0.7
        if arm == "adam":
            frame["second_moment_norm"] = 3.0
        frames.append(frame.assign(seed=seed))
    frame = pd.concat(frames, ignore_index=True)
    frame["epoch"] = frame["iteration"] // 10
    frame["device_seconds"] = frame["gradient_equivalents"] = frame["iteration"] * 1.0
    return frame.assign(task=task, arm=arm)


def figures(histories):
    """All figures of both halves, by name."""
    rr = [h for h in histories if h["task"].iloc[0].startswith("rr")]
    net = [h for h in histories if not h["task"].iloc[0].startswith("rr")]
    drawn = {f"loss_by_{c}": networks.loss_figure(net, {}, c) for c in networks.CLOCKS}
    drawn |= {name: draw(net) for name, draw in networks.FIGURES.items()}
    for column in ("clipped_fraction", "denominator_norm"):
        drawn[column] = networks.optimizer_figure(net, column)
    drawn["rr_loss"] = rahimi_recht.loss_figure(rr, {})
    drawn["rr_median_loss"] = rahimi_recht.median_loss_figure(rr, {})
    for name in ("spectral_norm", "clipped_fraction", "decades"):
        drawn[f"rr_{name}"] = getattr(rahimi_recht, f"{name}_figure")(rr)
    for name in ("spread", "hessian"):
        drawn[f"rr_{name}"] = getattr(rahimi_recht, f"{name}_figure")(rr, "rr_cond29")
    return drawn


def test_an_arm_looks_the_same_in_every_figure():
    every = [history(t, a.name) for t in TASKS for a in ARMS]
    styles = {get_arm(a.name).label: arm_style(a.name) for a in ARMS}
    seen = set()
    for name, figure in figures(every).items():
        for panel in figure.panels:
            for line in panel.lines:
                if name == "rr_spread":  # each panel is an arm, each dash a run
                    assert line.colour == styles[panel.title].colour
                    continue
                assert (line.colour, line.dash) == styles[line.label]
                seen.add(line.label)
            if panel.counts is not None:
                pairs = zip(panel.counts.rows, panel.counts.colours, strict=True)
                assert all(colour == styles[row].colour for row, colour in pairs)
    assert seen == set(styles)


@pytest.mark.parametrize("arms", [(), ("sgdm",), ("ssdh",), ("adam", "prodigy", "ssdh_constant")])
def test_any_set_of_arms_can_be_drawn(arms):
    for figure in figures([history(t, a, seeds=1) for t in TASKS for a in arms]).values():
        to_matplotlib(figure)
        to_plotly(figure)


def test_figures_of_diverged_runs_can_be_drawn():
    frozen = [history(t, a) for t in TASKS for a in ("adam", "ssdh")]
    for frame in frozen:
        numbers = frame.select_dtypes("number").columns.drop(["seed", "iteration", "epoch"])
        frame[numbers] = frame[numbers].astype(float)
        frame.loc[frame["iteration"] > 0, numbers] = NAN
    for figure in figures(frozen).values():
        to_matplotlib(figure)
        to_plotly(figure)


def test_the_hessian_figure_has_every_published_column():
    histories = [history("rr_cond29", a) for a in ("sgdm", "adam", "ssdh")]
    drawn = rahimi_recht.hessian_figure(histories, "rr_cond29")
    lines = {p.title: [line.label for line in p.lines] for p in drawn.panels}
    assert len(lines) == 12
    assert lines["largest |eigenvalue|"] == ["SGDM", "Adam", "SSDH"]
    assert lines["norm of the estimate"] == ["SSDH"]
    assert lines["norm of Adam's second moment"] == ["Adam"]
    log = {p.title: p.y_log for p in drawn.panels}
    assert log["norm of the diagonal"]
    assert not log["share of positive eigenvalues"]
    line = drawn.panels[0].lines[0]
    assert list(line.x) == [0, 20, 30]  # iterations with a Hessian
    assert line.low is not None


def test_the_decades_figure_counts_runs():
    drawn = rahimi_recht.decades_figure(
        [history("rr_cond29", "ssdh", 1e-3), history("rr_cond29", "adam", 0.1, seeds=16)]
    )
    counts = drawn.panels[0].counts
    assert counts.columns == ["1e-3 – 1e-2", "1e-2 – 1e-1", "1e-1 – 1e0", "1e0 – 1e1"]
    assert counts.rows == ["SSDH", "Adam"]
    assert counts.numbers.tolist() == [[2, 0, 0, 0], [0, 0, 9, 7]]


def test_the_best_run_is_drawn_to_its_own_end():
    frame = history("rr_cond29", "ssdh")
    frame = frame[(frame["seed"] == 1) | (frame["iteration"] < 30)]
    (line,) = rahimi_recht.loss_figure([frame], {}).panels[0].lines
    assert list(line.y) == [8, 4, 2]  # the lowest seed among ties


def test_best_median_and_worst_run_have_different_dashes():
    drawn = rahimi_recht.spread_figure([history("rr_cond29", "ssdh", seeds=3)], "rr_cond29")
    lines = {line.label: line for line in drawn.panels[0].lines}
    assert [lines[w].y.iloc[-1] for w in ("best", "median", "worst")] == [1, 2, 3]
    assert len({line.dash for line in lines.values()} & DASHES.keys()) == 3
    assert len({line.colour for line in lines.values()}) == 1
