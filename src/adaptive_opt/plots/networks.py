"""The figures of the network tasks, from histories as they come out of the catalog."""

from __future__ import annotations

from collections.abc import Mapping

from .curves import Histories, band_line, median_line, panels
from .figure import Figure

__all__ = ["CLOCKS", "loss_figure", "optimizer_figure", "valid_loss_figure"]

CLOCKS = {
    "iteration": "iteration",
    "gradient_equivalents": "gradient-equivalents",
    "device_seconds": "device seconds",
}
"""Columns of a history that time can be measured by, and their labels."""


def loss_figure(histories: Histories, targets: Mapping[str, float], clock: str) -> Figure:
    """Training loss on one of the three clocks, mean and range over seeds."""
    drawn = panels(
        histories,
        lambda h: band_line(h, "train_loss", clock),
        "training loss",
        x_label=CLOCKS[clock],
        levels=targets,
    )
    note = "mean over the batches since the last point; line: mean over seeds, band: their range"
    return Figure(f"Training loss by {CLOCKS[clock]}", drawn, note=note + "; dotted: the target")


def valid_loss_figure(histories: Histories) -> Figure:
    """Loss on validation data, mean and range over seeds."""
    drawn = panels(histories, lambda h: band_line(h, "valid_loss"), "validation loss")
    return Figure("Validation loss", drawn, note="line: mean over seeds, band: their range")


def optimizer_figure(histories: Histories, column: str) -> Figure:
    """``clipped_fraction`` or ``denominator_norm`` of the arms that have one, median over seeds."""
    having = [h for h in histories if column in h]
    label = column.replace("_", " ")
    drawn = panels(
        having, lambda h: median_line(h, column), label, log=column == "denominator_norm"
    )
    return Figure(label.capitalize(), drawn, note="median over seeds")
