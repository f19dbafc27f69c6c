"""The replication ledger, from histories with known answers."""

import math

import numpy as np
import pandas as pd
import pytest

from adaptive_opt.evidence.ledger import ledger_table, precision_table, target_table
from adaptive_opt.evidence.ledger_report import report
from adaptive_opt.switches import SWITCHES

TASK = "rr_cond29"
NAN = math.nan


def history(arms, norms=None):
    """History from lists of losses, one list per arm and seed, at every tenth iteration."""
    rows = [
        {
            "task": TASK, "arm": arm, "seed": seed, "iteration": 10 * i, "train_loss": value,
            "gradient_norm": norms[i] if norms else NAN,
        }
        for arm, seeds in arms.items()
        for seed, column in enumerate(seeds)
        for i, value in enumerate(column)
    ]  # fmt: skip
    return pd.DataFrame(rows)


BASE = {
    "sgdm": [[9, 9, 9, 5], [9, 9, 9, 6]],
    "adam": [[9, 9, 1, 1], [9, 9, 9, 1]],
    "sadh": [[9, 9, 1, 1], [9, 9, 1, 1]],
    "ssdh": [[9, 1, 1, 1], [9, 1, 1, 1]],
}


def table(within=2.0, **variants):
    histories = {("baseline", TASK): history(BASE)}
    histories |= {(name, TASK): h for name, h in variants.items()}
    return ledger_table(histories, {TASK: 1.0}, within)


def test_ratios_compare_medians_and_seeds_are_paired():
    changed = {**BASE, "ssdh": [[9, 9, 1, 1], [9, 9, 9, 1]]}
    rows = table(probe=history(changed)).set_index(["variant", "arm"])
    row = rows.loc["probe", "ssdh"]
    assert (row["median_iterations"], row["ratio"]) == (25.0, 2.5)
    assert (row["faster"], row["slower"], row["never"]) == (0, 2, 0)
    assert not row["unchanged"]
    others = rows.loc["probe"].drop(index="ssdh")
    assert others["unchanged"].all()
    assert others.drop(index="sgdm")["ratio"].tolist() == [1.0, 1.0]


def test_a_seed_that_never_arrives_is_infinite_and_gives_no_ratio():
    changed = {**BASE, "ssdh": [[9, 1, 1, 1], [9, 9, 9, 9]], "sgdm": [[9, 1, 1, 1], [9, 1, 1, 1]]}
    rows = table(probe=history(changed)).set_index(["variant", "arm"])
    lost = rows.loc["probe", "ssdh"]
    assert math.isinf(lost["median_iterations"])
    assert (lost["never"], lost["median_of_reached"], lost["slower"]) == (1, 10.0, 1)
    assert math.isnan(lost["ratio"])
    assert math.isnan(rows.loc[("probe", "sgdm"), "ratio"])  # it does not arrive in the baseline
    assert rows.loc[("probe", "sgdm"), "faster"] == 2


def test_ties_share_a_rank_and_arms_that_never_arrive_have_none():
    rows = table().set_index("arm")["rank"]
    assert rows[["ssdh", "sadh", "adam"]].tolist() == [1, 2, 3]
    assert rows.isna()["sgdm"]
    tied = table(probe=history({**BASE, "sadh": BASE["ssdh"]}))
    ranks = tied[tied["variant"] == "probe"].set_index("arm")["rank"]
    assert ranks[["ssdh", "sadh", "adam"]].tolist() == [1, 1, 3]


def test_arms_with_infinite_medians_are_ranked_by_how_many_seeds_arrive():
    one, two = [9, 1, 1, 1], [9, 9, 9, 9]
    arms = {"sgdm": [one, two, two, two], "adam": [one, one, two, two], "ssdh": [one] * 4}
    rows = ledger_table({("baseline", TASK): history(arms)}, {TASK: 1.0}, 2.0)
    assert rows.set_index("arm")["rank"].to_dict() == {"ssdh": 1, "adam": 2, "sgdm": 3}


def test_a_single_seed_and_a_diverged_one():
    single = {"ssdh": [[9, 1, 1, 1]]}
    (row,) = ledger_table({("baseline", TASK): history(single)}, {TASK: 1.0}, 2.0).to_dict(
        "records"
    )
    assert (row["seeds"], row["median_iterations"], row["final_spread"]) == (1, 10.0, 0.0)
    gone = {"ssdh": [[9, 1, NAN, NAN], [9, 9, NAN, NAN]]}
    (row,) = ledger_table({("baseline", TASK): history(gone)}, {TASK: 1.0}, 2.0).to_dict("records")
    assert (row["never"], math.isnan(row["final_loss"])) == (1, True)
    assert row["unchanged"]


def test_mean_squared_errors_are_converted_to_their_roots():
    squared = {arm: np.square(columns).tolist() for arm, columns in BASE.items()}
    rows = table(loss=history(squared))
    loss, base = (rows[rows["variant"] == v].reset_index(drop=True) for v in ("loss", "baseline"))
    for column in ("median_iterations", "final_loss", "settled_iteration"):
        assert loss[column].tolist() == base[column].tolist()


def test_unscaled_curvature_is_compared_with_the_clipped_variant():
    slow = {**BASE, "ssdh": BASE["sadh"]}
    norms = [1.0, 1.0, 0.5, 0.2]
    rows = table(clipped=history(slow, norms), clip=history(slow, norms))
    by = rows.set_index(["variant", "arm"])
    assert by.loc[("clipped", "ssdh"), "ratio"] == 2.0
    assert by.loc[("clip", "ssdh"), ["against", "ratio"]].tolist() == ["clipped", 1.0]
    assert by.loc[("clipped", "ssdh"), "clipped_share"] == 0.5
    assert math.isnan(by.loc[("baseline", "ssdh"), "clipped_share"])


def test_settling_of_the_best_run_stands_beside_the_published_number():
    row = table().set_index("arm").loc["ssdh"]
    assert row["settled_pct"] == pytest.approx(100 * 10 / 30)
    assert row["published_pct"] == 1.12
    assert math.isnan(table().set_index("arm").loc["adam", "published_pct"])


def test_an_arm_with_a_higher_final_loss_has_an_easier_target():
    rows = target_table(table()).set_index("arm")
    assert rows.loc["sgdm", ["own_target", "own_iteration", "own_rank"]].tolist() == [5, 0, 1]
    assert rows.loc["ssdh", ["own_rank", "rank"]].tolist() == [2, 1]
    assert rows.loc["sgdm", "never"] == 2


PRECISION = {
    "eigenvalues": 338.0, "positive": 168.0, "zero": 170.0, "smallest": 0.4,
    "positive_float32": 252.0, "smallest_float32": 1e-9, "wrong_sign_float32": 170.0,
    "below_resolution_float32": 170.0,
}  # fmt: skip
STEPS = {"AdamW": 1.0, "SADH-k10": 1.2, "SSDH-k10": 1.3, "Other-k10": 1.7, "Other-k10-due": 1.5}
COSTS = {
    "step_resnet18_cpu": {
        "device": "cpu",
        "tasks": {"resnet18": {"steps": {name: {"ratio": r} for name, r in STEPS.items()}}},
    }
}


def written(ledger, costs=COSTS, searched=True):
    precision = precision_table({(TASK, "minimum"): pd.DataFrame([PRECISION])})
    targets = target_table(ledger).astype({"rank": float})  # as read from the catalog
    return report(ledger, targets, precision, costs, scale="hand", searched=searched)


def test_the_report_states_the_tables():
    changed = {**BASE, "ssdh": [[9, 9, 1, 1], [9, 9, 9, 1]], "adam": [[9, 9, 9, 9]] * 2}
    ledger = table(probe=history(changed), initialisation=history(BASE), published=history(changed))
    text = written(ledger)
    assert "| SSDH | 1 | 10 | 2 | 10 | 1 |" in text
    assert "| SGDM | 5 | 0 | 1 | never | – |" in text
    assert (
        "SSDH needs 2.50 times the iterations (25 instead of 10; earlier in 0, later in 2" in text
    )
    assert "Adam reaches the target in 0 of 2 seeds instead of 2 (earlier in 0, later in 2" in text
    assert "SGDM and SADH: unchanged, bit for bit" in text
    assert "the order becomes SADH, SSDH; it was SSDH, SADH, Adam" in text
    assert (
        "by its own final value, SGDM is the fastest, at iteration 0. Its final loss is 5" in text
    )
    assert "170 of 338 eigenvalues. In float64 170 are zero and 168 positive" in text
    assert "costs 1.25 times a step of AdamW (median of 2 methods); 1.70 with Other" in text
    assert "| Rahimi–Recht, condition 29, SSDH | 33.33 % | 66.67 % | 1.12 % |" in text
    for switch in SWITCHES:
        assert f"## {switch.label}" in text


def test_the_report_states_missing_measurements():
    ledger = table(published=history(BASE))
    assert "No step cost was measured here" in written(ledger, costs={})
    assert "Nothing was searched" in written(ledger, searched=False)
    assert "Nothing was searched" not in written(ledger)
