"""Figures of a search, from synthetic trials."""

import numpy as np
import pandas as pd

from adaptive_opt.plots.tuning import SEARCH_FIGURES, best_of_n_figure, search_figures


def trials(n=12):
    chance = np.random.default_rng(0)
    lr = 10 ** chance.uniform(-3, 0, n)
    return pd.DataFrame(
        {
            "task": "rr_cond29",
            "arm": "adam",
            "number": range(n),
            "outcome": ["diverged", *["complete"] * (n - 1)],
            "value": [np.inf, *(np.log10(lr[1:]) + 2) ** 2],
            "lr": lr,
            "beta2": 1 - 10 ** chance.uniform(-4, -1, n),
            "drawn": "at random",
        }
    )


BEST = {
    "task": "rr_cond29",
    "arm": "adam",
    "source": "search",
    "objective": "train_loss",
    "space": {"lr": [1e-3, 1.0, "log"], "beta2": [0.9, 0.9999, "log_complement"]},
}


def test_every_figure_of_a_search_shows_its_trials():
    figures = dict(zip(SEARCH_FIGURES, search_figures(trials(), BEST), strict=True))
    assert len(figures["history"].data[0].y) == 11  # the diverged trial has no finite value
    assert "Adam on Rahimi–Recht, condition 29: history" in figures["history"].layout.title.text
    parallel = figures["parallel_coordinates"]
    assert sum(len(line.x) == 3 for line in parallel.data) == 11  # the value and two parameters
    assert all(name in str(parallel.layout.xaxis.ticktext) for name in ("lr", "1 - beta2"))
    importances = dict(zip(*(figures["importances"].data[0][k] for k in ("y", "x")), strict=True))
    assert importances["lr"] > importances["1 - beta2"]
    assert len(figures["slice"].data) == 2


def test_without_enough_trials_the_figures_state_the_reason():
    published = {"task": "rr_cond29", "arm": "adam", "source": "published"}
    for figure in search_figures(pd.DataFrame(), published):
        assert "nothing was searched" in figure.layout.annotations[0].text
    for figure in search_figures(trials(2), BEST):
        assert "too few" in figure.layout.annotations[0].text


def test_the_best_of_n_curve_starts_where_it_is_finite():
    (panel,) = best_of_n_figure([trials(), pd.DataFrame()]).panels
    (line,) = panel.lines
    assert np.isnan(line.y[0])
    assert np.isfinite(line.y[1:]).all()
    assert line.y[-1] == trials()["value"].min()
