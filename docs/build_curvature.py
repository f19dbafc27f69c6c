"""Write docs/curvature.md from the records under docs/results/ and benchmarks/results/.

    python docs/build_curvature.py             # write the page from the records
    python docs/build_curvature.py --collect   # first copy records and figures from data/

A test compares the committed page with the output of this script.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from adaptive_opt.evidence.curvature import report
from adaptive_opt.evidence.tables import markdown
from adaptive_opt.study import get_arm, get_task, tasks_of

sys.path.insert(0, str(Path(__file__).parent))
from record import both, fill

DOCS = Path(__file__).parent
RECORDS = DOCS / "results" / "base" / "curvature"
COST = DOCS.parent / "benchmarks" / "results" / "network_curvature_cpu.json"
NETWORKS = [task.name for task in tasks_of("images", "text")]
FUNCTIONS = ["rr_cond29", "rr_cond15099"]
TABLES = ["spectra", "estimates"]
TABLES += [f"{name}_{part}" for name in NETWORKS for part in ("surface", "line")]
FIGURES = ["sharpness", "stability", "density", "estimate", "surface", "line"]
FIGURES += [f"{name}_spectra" for name in FUNCTIONS]
ESTIMATES = [
    "Cosine with the diagonal (relative error) at the last epoch, corrected for the noise of the\n"
    "reference: the mean over many Rademacher probes. ResNet-18 / Transformer:"
]


def collect() -> None:
    """Copy records and figures of the last run at the scale base."""
    data = DOCS.parent / "data"
    made = data / "08_reporting" / "base" / "curvature"
    RECORDS.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        table = pd.read_csv(made / f"{name}.csv")
        table.to_csv(RECORDS / f"{name}.csv", index=False, float_format="%.6g")
    frames = []
    for name in FUNCTIONS:
        path = data / "07_model_output" / "base" / "curvature" / name / "spectra.parquet"
        frames.append(extremes(pd.read_parquet(path)))
    whole = pd.concat(frames, ignore_index=True)
    whole.to_csv(RECORDS / "rahimi_recht.csv", index=False, float_format="%.6g")
    for name in FIGURES:
        shutil.copy(made / f"{name}.png", DOCS / "figures" / f"curvature_{name}.png")


def extremes(spectra: pd.DataFrame) -> pd.DataFrame:
    """Summarise whole spectra: ends, negative eigenvalues, those above 1e-3 of the largest."""
    rows = []
    for (task, arm, epoch), one in spectra.groupby(["task", "arm", "epoch"], sort=False):
        values = one["eigenvalue"]
        counts = {
            "negative": int((values < -one["zero_tolerance"]).sum()),
            "large": int((values > 1e-3 * values.max()).sum()),
        }
        ends = {"largest": values.max(), "smallest": values.min()}
        rows.append({"task": task, "arm": arm, "epoch": epoch, **ends, **counts})
    return pd.DataFrame(rows)


def read(name: str) -> pd.DataFrame:
    """Read a record."""
    return pd.read_csv(RECORDS / f"{name}.csv")


def label(arm: Any) -> str:
    """Return the label of an arm."""
    return get_arm(str(arm)).label


def picture(words: str, name: str) -> str:
    """Return a figure in Markdown."""
    return f"![{words}](figures/curvature_{name}.png)"


def of_task(name: str, text: str) -> str:
    """Return a list item that begins with the task."""
    return f"- {get_task(name).label}: {text}"


def at_the_end(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return the last epoch's rows of a task, by arm."""
    rows = table[table["task"] == task]
    return rows[rows["epoch"] == rows["epoch"].max()].set_index("arm")


def sharpness_words(table: pd.DataFrame, task: str) -> str:
    """Describe λ1 along training."""
    rows = table[table["task"] == task]
    start = rows[rows["epoch"] == 0]["eigenvalue_1"].median()
    peaks = rows.loc[rows.groupby("arm")["eigenvalue_1"].idxmax()]
    top = peaks.loc[peaks["eigenvalue_1"].idxmax()]
    end = at_the_end(table, task)["eigenvalue_1"]
    fell = sum(end[p.arm] < p.eigenvalue_1 for p in peaks.itertuples())
    return of_task(
        task,
        f"λ1 starts at {start:.3g}. Its peak is {top['eigenvalue_1']:.3g}, with {label(top['arm'])} "
        f"after epoch {int(top['epoch'])}. For {fell} of {len(end)} arms it ends below its peak. The "
        f"last values range from {end.min():.3g} ({label(end.idxmin())}) to "
        f"{end.max():.3g} ({label(end.idxmax())}).",
    )


def stability_words(table: pd.DataFrame, task: str) -> str:
    """List the arms above the threshold, early and late."""
    rows = table[(table["task"] == task) & table["stability"].notna() & (table["epoch"] > 0)]
    told = []
    for words, epoch in (("first", rows["epoch"].min()), ("last", rows["epoch"].max())):
        over = rows[(rows["epoch"] == epoch) & (rows["stability"] > 1)]
        who = ", ".join(f"{label(r.arm)} ({r.stability:.3g})" for r in over.itertuples())
        told.append(f"{words} measured epoch ({epoch}): {who or 'none'}")
    clipped = rows[rows["epoch"] == rows["epoch"].max()]["fixed_share"].max()
    return of_task(
        task,
        f"above the threshold at the {'; at the '.join(told)}. Up to {clipped:.0%} of the coordinates "
        "are clipped at the end and left out.",
    )


def density_words(table: pd.DataFrame, task: str) -> str:
    """Say how much of the matrix two eigenvalues hold."""
    end = at_the_end(table, task)
    share = (end["eigenvalue_1"] ** 2 + end["eigenvalue_2"] ** 2) / end["frobenius_norm"] ** 2
    close = (end["gauss_newton_eigenvalue_1"] / end["eigenvalue_1"]).median()
    return of_task(
        task,
        f"two eigenvalues hold {share.min():.0%} ({label(share.idxmin())}) to {share.max():.0%} "
        f"({label(share.idxmax())}) of ‖H‖²_F. The rest of the spectrum is a peak at zero with a "
        f"tail. λ1 of G is {close:.2f} times that of H (median).",
    )


def surface_words(task: str) -> str:
    """Say where the plane is lowest."""
    rows = read(f"{task}_surface")
    centre = rows.loc[(rows["a"] ** 2 + rows["b"] ** 2).idxmin()]
    low = rows.loc[rows["loss"].idxmin()]
    where = f"({low['a']:.2g}, {low['b']:.2g})"
    lowest = (
        "the lowest point of the grid"
        if low.equals(centre)
        else f"{low['loss']:.3g} at the lowest point of the grid, {where}"
    )
    highest = rows["loss"].max()
    return of_task(
        task, f"{centre['loss']:.3g} at the solution, {lowest}; {highest:.3g} at the highest."
    )


def line_words(task: str) -> str:
    """Say whether there is a barrier."""
    rows = read(f"{task}_line")
    at = rows.set_index(rows["position"].round(6))["loss"]
    between = at[(at.index > 0) & (at.index < 1)]
    barrier = between.max() - max(at[0.0], at[1.0])
    words = f"a barrier {barrier:.3g} above the higher end" if barrier > 0 else "no barrier"
    lost = rows["loss"].isna().sum()
    more = (
        f" {lost} extrapolated points have no loss: a running variance is negative there."
        if lost
        else ""
    )
    return of_task(task, f"{at[0.0]:.3g} and {at[1.0]:.3g} at the ends, {words}.{more}")


def function_words(task: str) -> str:
    """Summarise the whole spectra."""
    rows = read("rahimi_recht")
    end = at_the_end(rows, task)
    start = rows[(rows["task"] == task) & (rows["epoch"] == 0)].iloc[0]
    top = ", ".join(f"{label(a)} {v:.2g}" for a, v in end["largest"].items())
    return of_task(
        task,
        f"the largest eigenvalue starts at {start['largest']:.2g} and ends at: {top}. "
        f"{end['large'].min()} to {end['large'].max()} eigenvalues are above 1e-3 of it, "
        f"{end['negative'].min()} to {end['negative'].max()} are negative, none below "
        f"{end['smallest'].min():.2g}.",
    )


def cost() -> str:
    """Return the section on the network at its published size."""
    found = json.loads(COST.read_text(encoding="utf-8"))
    pairs = ", ".join(
        f"λ{i} = {value:.5g} (residual {residual:.1e})"
        for i, (value, residual) in enumerate(
            zip(found["eigenvalues"], found["residuals"], strict=True), start=1
        )
    )
    rest = ", ".join(
        f"{words} {found[key]['value']:.4g} ± {found[key]['error']:.1g}"
        for key, words in (("trace", "trace"), ("frobenius_norm", "Frobenius norm"))
        if key in found
    )
    grid, value = found["density"]["grid"], found["density"]["value"]
    step = grid[1] - grid[0]
    below = sum(v for t, v in zip(grid, value, strict=True) if t < 2 * found["density"]["width"])
    ended = "" if found["state"] == "done" else " The run was cut off before the trace."
    if max(found["residuals"]) > found["tolerance"]:
        ended += f" It was stopped before every residual came below {found['tolerance']:g}."
    rest_words = f"""{found["parameters"]:,} parameters; the loss over the first {found["images"]:,} training images of CIFAR-10
    (a copy compressed as JPEG at quality 75), {found["loss"]:.4g} after {found["epochs"]} epochs of SGD on them. {pairs};
    {rest or "no trace"}. {below * step:.2%} of the density lies below {2 * found["density"]["width"]:.2g}, two widths of its
    smoothing.{ended} It took {found["products"]} products with the Hessian,
    {found["products"] - found["block"] * len(found["history"])} of them for the trace, the others in one block Lanczos iteration.
    They took {found["cpu_minutes"]:.0f} processor minutes on {found["threads"]} core of {found["machine"]["cpu"]}
    ({60 * found["cpu_minutes"] / found["products"]:.0f} s a product) and {found["memory_ratio"]:.2f} of the memory of a training
    step on a batch of {found["batch"]} (goal: at most 2)."""
    command = "    python benchmarks/network_curvature.py --data cifar10_first_1000.npz"
    return f"## ResNet-18 at its published size\n\n{command}\n\n{fill(rest_words)}"


def estimate_table(table: pd.DataFrame, task: str) -> str:
    """Return arms × estimates at the last epoch: cosine, and relative error in brackets."""
    end = table[table["task"] == task]
    end = end[end["epoch"] == end["epoch"].max()].assign(
        what=lambda t: t["probe"].where(t["stage"] == "raw", "denominator")
    )
    one = end.drop_duplicates(["arm", "what", "metric"]).set_index(["arm", "what", "metric"])
    names = {
        "denominator": "denominator",
        "rademacher": "Rademacher draw",
        "gaussian": "Gaussian draw",
        "constant": "constant draw",
        "momentum_sign": "momentum sign draw",
    }

    def cell(arm: str, what: str) -> str:
        cosine, error = (one.loc[(arm, what, m)] for m in ("cosine", "relative_error"))
        return (
            f"{cosine['value']:.3g} ± {cosine['error']:.1g} "
            f"({error['value']:.3g} ± {error['error']:.1g})"
        )

    body = [
        [
            label(arm),
            *(cell(arm, what) for what in names),
            f"{one.loc[(arm, 'rademacher', 'cosine')]['reference_noise']:.3g}",
        ]
        for arm in dict.fromkeys(end["arm"])
    ]
    return markdown(["arm", *names.values(), "noise of the reference"], body)


def page() -> str:
    """Write the page."""
    spectra, estimates = read("spectra"), read("estimates")
    last = spectra[spectra["epoch"] == spectra.groupby("task")["epoch"].transform("max")]
    _, _, rest = report(last, estimates.head(0), "base").partition("\n\n")
    legend, _, sections = rest.partition("\n\n## ")
    found = [
        re.findall(r"(?:^\|.*\n?)+", part, re.M)[0].strip() for part in sections.split("\n## ")
    ]
    sections = [
        ("Sharpness along training", "sharpness", [sharpness_words(spectra, t) for t in NETWORKS]),
        ("Stability along training", "stability", [stability_words(spectra, t) for t in NETWORKS]),
        ("Spectral density at the end", "density", [density_words(spectra, t) for t in NETWORKS]),
        ("Loss on the plane of the top two eigenvectors", "surface", [*map(surface_words, NETWORKS)]),
        ("Loss between the solutions of Adam and SSDH", "line", [*map(line_words, NETWORKS)]),
        ("Estimates of the diagonal", "estimate", ESTIMATES),
    ]  # fmt: skip
    shown = "\n\n".join(
        f"## {title}\n\n{picture(title, name)}\n\n" + "\n".join(words)
        for title, name, words in sections
    )
    functions = "\n\n".join(
        f"{picture('Whole spectrum over training', f'{name}_spectra')}\n\n{function_words(name)}"
        for name in FUNCTIONS
    )
    compared = both(*(estimate_table(estimates, t) for t in NETWORKS))
    return f"""# Curvature, scale `base`

You will see the Hessians of the networks along training, how stable each arm is, and how good its curvature estimates are.

    kedro run --pipelines=curvature

**How to read this page.** The networks are the small ones of `make run`. Each published arm is represented by its first run, so differences
between arms hold for these runs alone. Rahimi–Recht has its published size. *Stability* above 1 is beyond the edge of
stability. [Diagnostics](diagnostics.md#curvature-of-networks) has the method. The tables have the last epoch;
`docs/results/base/curvature/` has all epochs.

{shown}

{compared}

## Rahimi–Recht: the whole spectrum

{functions}

{cost()}

## Tables

{fill(legend)} ResNet-18 / Transformer:

{both(*found)}
"""


def main() -> None:
    """Write the page, after collecting if asked to."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--collect", action="store_true", help="copy records and figures from data/ first"
    )
    if options.parse_args().collect:
        collect()
    (DOCS / "curvature.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
