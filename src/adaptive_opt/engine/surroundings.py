"""Loss of a network in the neighbourhood of weights that training saved."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from adaptive_opt.curvature.spectrum import eigenpairs
from adaptive_opt.curvature.surface import along_line, buffers_of, extent, on_plane
from adaptive_opt.parameters import CurvatureParameters

from .curvature import CurvatureOfNetwork
from .results import Progress
from .snapshots import Snapshot

__all__ = ["network_line", "network_surface"]


def network_surface(
    place: CurvatureOfNetwork, snapshot: Snapshot, settings: CurvatureParameters, label: str
) -> pd.DataFrame:
    """Loss on the plane of the Hessian's top two eigenvectors, one row per (a, b).

    Args:
        place: loss of the network.
        snapshot: centre of the plane.
        settings: resolution and tolerance.
        label: for the progress bar.
    """
    loss = place.at(snapshot)
    value = loss.value()
    pairs = eigenpairs(loss.operator("hessian"), 2, tolerance=settings.tolerance)
    first, second = (extent(value, float(v)) for v in pairs.values)
    points = settings.surface_points
    with Progress(label, points**2, "losses") as progress:
        a, b, found = on_plane(loss, pairs.vectors, (first, second), points, progress.update)
    rows = [
        {"a": float(x), "b": float(y), "loss": float(found[i, j])}
        for i, y in enumerate(b)
        for j, x in enumerate(a)
    ]
    eigenvalues = dict(zip(("eigenvalue_a", "eigenvalue_b"), pairs.values.tolist(), strict=True))
    return pd.DataFrame(rows).assign(**eigenvalues)


def network_line(
    place: CurvatureOfNetwork,
    first: Snapshot,
    second: Snapshot,
    settings: CurvatureParameters,
    label: str,
) -> pd.DataFrame:
    """Loss on the line between two solutions, extended by half its length at both ends.

    Args:
        place: loss of the network.
        first, second: the solutions, at positions 0 and 1.
        settings: resolution.
        label: for the progress bar.
    """
    loss = place.at(first)

    def tensors_at(snapshot: Snapshot) -> list[Tensor]:
        network_loss = place.at(snapshot)
        return [
            t.detach().clone()
            for t in (*network_loss.parameters, *buffers_of(network_loss.network))
        ]

    start, end = tensors_at(first), tensors_at(second)
    positions = torch.linspace(-0.5, 1.5, settings.line_points, dtype=torch.float64)
    with Progress(label, len(positions), "losses") as progress:
        found = along_line(loss, start, end, positions, progress.update)
    return pd.DataFrame({"position": positions.tolist(), "loss": found.tolist()})
