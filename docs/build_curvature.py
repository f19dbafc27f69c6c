"""Write docs/curvature.md from the records under docs/results/ and benchmarks/results/.

    python docs/build_curvature.py             # the page from the records
    python docs/build_curvature.py --collect   # first fetch records and figures from data/

Every number on the page is a record's; a test compares it with what this writes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from adaptive_opt.evidence.curvature import report
from adaptive_opt.study import get_arm, get_task, tasks_of

DOCS = Path(__file__).parent
RECORDS = DOCS / "results" / "base" / "curvature"
COST = DOCS.parent / "benchmarks" / "results" / "network_curvature_cpu.json"
NETWORKS = [task.name for task in tasks_of("images", "text")]
FUNCTIONS = ["rr_cond29", "rr_cond15099"]
TABLES = ["spectra", "estimates"]
TABLES += [f"{name}_{part}" for name in NETWORKS for part in ("surface", "line")]
FIGURES = ["sharpness", "stability", "density", "estimate", "surface", "line"]
FIGURES += [f"{name}_spectra" for name in FUNCTIONS]


def collect() -> None:
    """Records and figures of the last run at the scale base."""
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
    """Of whole spectra: the ends, and how many are below zero or within 1e-3 of the largest."""
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
    """A record."""
    return pd.read_csv(RECORDS / f"{name}.csv")


def label(arm: Any) -> str:
    """An arm in words."""
    return get_arm(str(arm)).label


def picture(words: str, name: str) -> str:
    """A figure in Markdown."""
    return f"![{words}](figures/curvature_{name}.png)"


def of_task(name: str, text: str) -> str:
    """A sentence with the task before it."""
    return f"- {get_task(name).label}: {text}"


def at_the_end(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """The last epoch's rows of a task, by arm."""
    rows = table[table["task"] == task]
    return rows[rows["epoch"] == rows["epoch"].max()].set_index("arm")


def sharpness_words(table: pd.DataFrame, task: str) -> str:
    """How λ1 goes along training."""
    rows = table[table["task"] == task]
    start = rows[rows["epoch"] == 0]["eigenvalue_1"].median()
    peaks = rows.loc[rows.groupby("arm")["eigenvalue_1"].idxmax()]
    top = peaks.loc[peaks["eigenvalue_1"].idxmax()]
    end = at_the_end(table, task)["eigenvalue_1"]
    fell = sum(end[p.arm] < p.eigenvalue_1 for p in peaks.itertuples())
    return of_task(
        task,
        f"λ1 is {start:.3g} at the start and highest for {label(top['arm'])} after epoch "
        f"{int(top['epoch'])}, {top['eigenvalue_1']:.3g}. It is below its peak at the end for "
        f"{fell} of {len(end)} arms; there it goes from {end.min():.3g} ({label(end.idxmin())}) to "
        f"{end.max():.3g} ({label(end.idxmax())}).",
    )


def stability_words(table: pd.DataFrame, task: str) -> str:
    """Who is above the threshold, early and late."""
    rows = table[(table["task"] == task) & table["stability"].notna() & (table["epoch"] > 0)]
    told = []
    for words, epoch in (("first", rows["epoch"].min()), ("last", rows["epoch"].max())):
        over = rows[(rows["epoch"] == epoch) & (rows["stability"] > 1)]
        who = ", ".join(f"{label(r.arm)} ({r.stability:.3g})" for r in over.itertuples())
        told.append(f"at the {words} (epoch {epoch}): {who or 'none'}")
    clipped = rows[rows["epoch"] == rows["epoch"].max()]["fixed_share"].max()
    return of_task(
        task,
        f"above the threshold {'; '.join(told)}. At the end up to {clipped:.0%} of the coordinates "
        "are clipped and so are not in it.",
    )


def density_words(table: pd.DataFrame, task: str) -> str:
    """How much of the matrix two eigenvalues hold."""
    end = at_the_end(table, task)
    share = (end["eigenvalue_1"] ** 2 + end["eigenvalue_2"] ** 2) / end["frobenius_norm"] ** 2
    close = (end["gauss_newton_eigenvalue_1"] / end["eigenvalue_1"]).median()
    return of_task(
        task,
        f"two eigenvalues hold {share.min():.0%} ({label(share.idxmin())}) to {share.max():.0%} "
        f"({label(share.idxmax())}) of ‖H‖²_F, the rest of the spectrum is a peak at zero with a "
        f"tail. λ1 of G is {close:.2f} times that of H (median).",
    )


def surface_words(task: str) -> str:
    """Where the plane is lowest."""
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
    """Whether there is a barrier."""
    rows = read(f"{task}_line")
    at = rows.set_index(rows["position"].round(6))["loss"]
    between = at[(at.index > 0) & (at.index < 1)]
    barrier = between.max() - max(at[0.0], at[1.0])
    words = f"a barrier {barrier:.3g} above the higher end" if barrier > 0 else "no barrier"
    lost = rows["loss"].isna().sum()
    more = (
        f" At {lost} points beyond it there is no loss: extrapolated, a running variance is negative."
        if lost
        else ""
    )
    return of_task(task, f"{at[0.0]:.3g} and {at[1.0]:.3g} at the ends, {words}.{more}")


def estimate_words(table: pd.DataFrame, task: str) -> str:
    """What the denominators are worth at the end, and one draw of the unbiased probe."""
    end = table[(table["metric"] == "cosine") & (table["task"] == task)]
    end = end[end["epoch"] == end["epoch"].max()]
    held = end[end["stage"] == "denominator"].set_index("arm")
    one = end[end["probe"] == "rademacher"]["value"]
    who = ", ".join(f"{label(a)} {r['value']:.2f} ± {r['error']:.1g}" for a, r in held.iterrows())
    return of_task(
        task,
        f"cosine of what stands in the denominator at the end: {who}; of one Rademacher draw "
        f"{one.min():.2f} to {one.max():.2f}.",
    )


def function_words(task: str) -> str:
    """What the whole spectra come to."""
    rows = read("rahimi_recht")
    end = at_the_end(rows, task)
    start = rows[(rows["task"] == task) & (rows["epoch"] == 0)].iloc[0]
    top = ", ".join(f"{label(a)} {v:.2g}" for a, v in end["largest"].items())
    return of_task(
        task,
        f"from the start to the end the largest eigenvalue goes from {start['largest']:.2g} to: {top}. "
        f"{end['large'].min()} to {end['large'].max()} eigenvalues are within 1e-3 of it, "
        f"{end['negative'].min()} to {end['negative'].max()} are negative, none below "
        f"{end['smallest'].min():.2g}.",
    )


def cost() -> str:
    """The figures of the network at its published size."""
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
    return f"""## ResNet-18 at its published size

    python benchmarks/network_curvature.py --data cifar10_first_1000.npz

{found["parameters"]:,} parameters, the loss over the first {found["images"]:,} training images of CIFAR-10 (a copy compressed as
JPEG at quality 75), after {found["epochs"]} epochs of SGD on them: loss {found["loss"]:.4g}. {pairs}; {rest or "no trace"}.
{below * step:.2%} of the density lies below {2 * found["density"]["width"]:.2g}, two widths of its smoothing.{ended}

It took {found["products"]} products with the Hessian and {found["cpu_minutes"]:.0f} processor minutes on {found["threads"]} cores of
{found["machine"]["cpu"]} ({60 * found["cpu_minutes"] / found["products"]:.0f} s a product), and {found["memory_ratio"]:.2f} of
the memory of a training step on a batch of {found["batch"]} (goal: at most 2). Everything comes from the products of one block
Lanczos iteration and {found["products"] - found["block"] * len(found["history"])} more for the trace."""


def page() -> str:
    """The page."""
    spectra, estimates = read("spectra"), read("estimates")
    _, _, rest = report(spectra, estimates, "base").partition("\n\n")
    legend, _, tables = rest.partition("\n\n## ")
    tables = f"\n## {tables}".replace("\n### ", "\n#### ").replace("\n## ", "\n### ").lstrip()
    sections = [
        ("Sharpness along training", "sharpness", [sharpness_words(spectra, t) for t in NETWORKS]),
        ("Stability along training", "stability", [stability_words(spectra, t) for t in NETWORKS]),
        ("Spectral density at the end", "density", [density_words(spectra, t) for t in NETWORKS]),
        ("Loss on the plane of the top two eigenvectors", "surface", [*map(surface_words, NETWORKS)]),
        ("Loss between the solutions of Adam and SSDH", "line", [*map(line_words, NETWORKS)]),
        ("Estimates of the diagonal", "estimate", [estimate_words(estimates, t) for t in NETWORKS]),
    ]  # fmt: skip
    shown = "\n\n".join(
        f"## {title}\n\n{picture(title, name)}\n\n" + "\n".join(words)
        for title, name, words in sections
    )
    functions = "\n\n".join(
        f"{picture('Whole spectrum over training', f'{name}_spectra')}\n\n{function_words(name)}"
        for name in FUNCTIONS
    )
    return f"""# Curvature, scale `base`

    kedro run --pipelines=curvature

Written by `docs/build_curvature.py` from `docs/results/base/curvature/`. The networks are the small ones of `make run`, the first run
of every published arm; Rahimi–Recht has its published size. How everything is computed:
[method.md](method.md#curvature-of-networks). One run an arm, so differences between arms are of these runs alone.

{shown}

## Rahimi–Recht: the whole spectrum

{functions}

{cost()}

## Tables

{legend}

{tables}"""


def main() -> None:
    """Collect if asked to, and write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--collect", action="store_true", help="fetch records and figures first")
    if options.parse_args().collect:
        collect()
    (DOCS / "curvature.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
