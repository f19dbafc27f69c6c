"""Table and report of fidelity, from measures with known answers."""

import math

import pandas as pd

from adaptive_opt.evidence.fidelity import fidelity_table, label, report


def measures(values, task="rr_cond29", stage="raw", probe="rademacher", method=""):
    """One row for each (seed, iteration); all measures are equal except ``bias_noise``."""
    names = ("bias", "relative_error", "cosine", "rank_correlation", "sign_agreement")
    rows = [
        {
            "task": task,
            "seed": seed,
            "iteration": iteration,
            "stage": stage,
            "probe": probe,
            "method": method,
            "bias_noise": 0.01,
            **dict.fromkeys(names, value),
        }
        for (seed, iteration), value in values.items()
    ]
    return pd.DataFrame(rows)


VALUES = {(0, 0): 0.2, (0, 1000): 0.3, (1, 0): 0.9, (1, 1000): math.nan}


def test_medians_leave_out_diverged_seeds():
    (row,) = fidelity_table([measures(VALUES)]).to_dict("records")
    assert (row["task"], row["stage"], row["probe"]) == ("rr_cond29", "raw", "rademacher")
    assert row["cosine"] == row["bias"] == 0.3
    errors = fidelity_table([measures({(0, 0): 0.2, (0, 10): 0.4, (0, 20): 0.1})])
    assert errors["relative_error"].tolist() == [0.2]
    assert errors["last_relative_error"].tolist() == [0.1]
    assert row["bias_noise"] == 0.01
    assert row["points"] == 3
    assert row["last_relative_error"] == 0.3  # of the only seed at the last iteration


def test_tasks_stages_and_methods_have_separate_rows():
    table = fidelity_table(
        [
            pd.concat(
                [
                    measures({(0, 0): 0.1}),
                    measures({(0, 0): 0.2}, stage="smoothed", method="ssdh"),
                    measures({(0, 0): 0.3}, stage="smoothed", method="sadh"),
                ]
            ),
            measures({(0, 0): 0.4}, task="rr_cond15099"),
        ]
    )
    assert table["cosine"].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert table["task"].tolist() == ["rr_cond29"] * 3 + ["rr_cond15099"]


def test_the_report_names_its_runs_and_the_diverged_seeds():
    made = measures(VALUES), measures(VALUES, stage="clipped", probe="constant", method="sadh")
    text = report([pd.concat(made)], "base", "ssdh")
    assert "scale `base`" in text
    assert "Runs of SSDH with 2 seeds, at iterations 0, 1,000." in text
    assert "Left out after divergence: seeds 1." in text
    assert "| Rademacher | 0.3 (0.01) | 0.3 | 0.3 | 0.30 | 0.30 | 0.30 |" in text
    assert "| SADH, constant | 0.3 (0.01) | 0.3 | 0.3 | 0.30 | 0.30 | 0.30 |" in text
    assert text.index("Rademacher |") < text.index("SADH, constant |")
    assert "diverged" not in report([measures({(0, 0): 0.2})], "base", "ssdh")


def test_a_missing_method_means_a_bare_probe():
    """Parquet keeps empty strings; CSV turns them into NaN."""
    stored = measures({(0, 0): 0.5}).assign(method=None)
    assert len(fidelity_table([stored])) == 1
    assert label("constant", "") == "constant"
