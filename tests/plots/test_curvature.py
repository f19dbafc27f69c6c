"""Tables, report and figures of curvature, from measures in the format of the catalog."""

import io

import numpy as np
import pandas as pd
import pytest

from adaptive_opt.evidence.curvature import curvature_table, estimate_table, report
from adaptive_opt.plots.curvature import (
    density_figure,
    estimate_figure,
    line_figure,
    sharpness_figure,
    spectra_figure,
    stability_figure,
    surface_figure,
)
from adaptive_opt.plots.figure import to_matplotlib, to_plotly
from adaptive_opt.plots.maps import MapFigure, maps_to_matplotlib, maps_to_plotly


def measures(task, arm, top=4.0, stability=0.5):
    rows = []
    for epoch in (0, 8):
        values = {
            ("hessian", "loss", 0): 2.0,
            ("hessian", "eigenvalue", 1): top + epoch,
            ("hessian", "eigenvalue", 2): top / 2,
            ("hessian", "trace", 0): 30.0,
            ("hessian", "frobenius_norm", 0): 9.0,
            ("gauss_newton", "eigenvalue", 1): top,
            ("gauss_newton", "trace", 0): 29.0,
        }
        if epoch:  # there is no preconditioner before the first step
            values[("preconditioned", "eigenvalue", 1)] = 100.0
            values[("preconditioned", "threshold", 0)] = 100.0 / stability
            values[("preconditioned", "stability", 0)] = stability
        for (matrix, quantity, index), value in values.items():
            rows.append(
                {
                    "task": task, "arm": arm, "seed": 0, "epoch": epoch, "matrix": matrix,
                    "quantity": quantity, "index": index, "value": value, "error": 0.25,
                    "good": quantity != "eigenvalue" or index != 2,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def estimates(task, arm):
    kinds = [("raw", p) for p in ("rademacher", "gaussian", "constant", "momentum_sign")]
    rows = [
        {
            "task": task, "arm": arm, "seed": 0, "epoch": epoch, "stage": stage, "probe": probe,
            "metric": metric, "value": 0.5, "error": 0.01, "reference_noise": 0.2,
        }
        for epoch in (4, 8)
        for stage, probe in [*kinds, ("denominator", "")]
        for metric in ("cosine", "relative_error")
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def table():
    given = [
        measures("resnet18", "sgdm", top=3.0, stability=1.2),
        measures("resnet18", "ssdh"),
        measures("transformer", "adam"),
        pd.DataFrame(columns=["task", "arm", "seed", "epoch"]),
    ]
    return curvature_table(given)


def test_a_row_for_each_snapshot(table):
    assert len(table) == 6
    row = table[(table["arm"] == "ssdh") & (table["epoch"] == 8)].iloc[0]
    assert row["eigenvalue_1"] == 12
    assert row["trace_error"] == 0.25
    assert row["marked"] == "eigenvalue_2"
    assert table[table["epoch"] == 0]["stability"].isna().all()


def test_the_report_names_arms_beyond_the_edge_of_stability(table):
    written = report(table, estimate_table([estimates("resnet18", "ssdh")]), "smoke")
    assert "above the stability threshold: SGDM (of 2). SGDM finds" in written
    assert "its λ1 is 11." in written
    assert "above the stability threshold: none (of 1)" in written
    assert "| SSDH | 8 | 2 | 12 | 2* | 30 ± 0.2 |" in written
    assert "| SSDH, in the denominator | 0.5 ± 0.01 |" in written
    assert written.count("compared with the diagonal") == 1
    assert "nan" not in written


def test_line_figures_can_be_drawn(table):
    sharpness = sharpness_figure(table)
    assert [len(p.lines) for p in sharpness.panels] == [2, 2, 2, 1, 1, 1]
    stability = stability_figure(table)
    assert [p.level for p in stability.panels] == [1.0, 1.0]
    assert [list(line.x) for line in stability.panels[0].lines] == [[8], [8]]
    file = io.StringIO(estimates("resnet18", "ssdh").to_csv(index=False))
    estimate = estimate_figure(pd.read_csv(file))
    (panel,) = estimate.panels
    assert len({(line.colour, line.dash) for line in panel.lines}) == 5
    grid = np.linspace(-1, 5, 50)
    rows = {"task": "resnet18", "arm": "ssdh", "seed": 0, "epoch": 8, "matrix": "hessian"}
    density = density_figure(
        [pd.DataFrame({"eigenvalue": grid, "density": np.exp(-(grid**2)), "error": 0.01, **rows})]
    )
    first = density.panels[0].lines[0]
    assert np.isnan(first.y).any()
    assert (np.asarray(first.low)[np.isfinite(first.low)] > 0).all()  # a logarithmic axis
    line = line_figure(
        {"resnet18": pd.DataFrame({"position": [0.0, 1.0], "loss": [1.0, 2.0]})}, ("adam", "ssdh")
    )
    for figure in (sharpness, stability, estimate, density, line, estimate_figure(pd.DataFrame())):
        assert to_plotly(figure).layout.title.text == figure.title
        to_matplotlib(figure)


def test_maps_can_be_drawn():
    rows = [
        {"a": a, "b": b, "loss": 1 + a**2 + 3 * b**2, "eigenvalue_a": 2.0, "eigenvalue_b": 6.0}
        for a in (-1.0, 0.0, 1.0)
        for b in (-2.0, 0.0, 2.0)
    ]
    surface = surface_figure({"resnet18": pd.DataFrame(rows)}, "ssdh")
    (one,) = surface.maps
    assert np.asarray(one.z)[1, 1] == 0  # log of 1, at the centre
    assert np.asarray(one.z)[0, 1] == np.log10(13)  # rows are b

    spectra = pd.DataFrame(
        [
            {"task": "rr_cond29", "arm": arm, "seed": 0, "epoch": e, "index": i, "eigenvalue": v}
            for arm in ("adam", "ssdh")
            for e in (0, 10)
            for i, v in enumerate((1e3, 1e-20, -10.0), start=1)
        ]
    )
    picture = spectra_figure(spectra, "rr_cond29")
    assert [m.title for m in picture.maps] == ["Adam", "SSDH"]
    np.testing.assert_allclose(np.asarray(picture.maps[0].z)[:, 0], [12, 0, -10])
    assert dict(picture.ticks)[12] == "1e3"
    assert dict(picture.ticks)[-8] == "−1e-1"
    for figure in (surface, picture, MapFigure("nothing", [], "z")):
        assert len(maps_to_plotly(figure).data) == len(figure.maps)
        maps_to_matplotlib(figure)
