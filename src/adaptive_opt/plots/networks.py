"""The figures of the network tasks, from histories as they come out of the catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from adaptive_opt.evidence.passage import epoch_means

from .curves import Histories, arm_line, band_line, panels
from .figure import Figure, Line

__all__ = ["CLOCKS", "FIGURES", "loss_figure", "optimizer_figure", "training_figure"]
__all__ += ["valid_loss_figure", "validation_figure"]

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


def training_figure(histories: Histories) -> Figure:
    """Training loss, and accuracy where there is one, smoothed over an epoch as published."""

    def smoothed(column: str) -> Callable[[pd.DataFrame], Line]:
        def line(history: pd.DataFrame) -> Line:
            if column not in history:
                return arm_line(history, [], [])
            means = epoch_means(history, column)
            band = {"low": means.min(axis=1), "high": means.max(axis=1)}
            return arm_line(history, means.index, means.mean(axis=1), **band)

        return line

    drawn = panels(histories, smoothed("train_loss"), "training loss")
    accurate = [h for h in histories if "train_accuracy" in h]
    drawn += panels(accurate, smoothed("train_accuracy"), "training accuracy", log=False)
    note = "running mean over an epoch's iterations; line: mean over seeds, band: their range"
    return Figure("Training, smoothed", drawn, columns=len(drawn), note=note)


def validation_figure(histories: Histories, metric: str) -> Figure:
    """Accuracy or perplexity on validation data by epoch, of the tasks that have it.

    The original drew test data, which are read once here, at the end of a run.
    """
    having = [h for h in histories if f"valid_{metric}" in h]
    drawn = panels(
        having,
        lambda h: band_line(h, f"valid_{metric}"),
        f"validation {metric}",
        log=metric == "perplexity",
    )
    note = "line: mean over seeds, band: their range; test data are read once, at the end"
    return Figure(f"Validation {metric}", drawn, note=note)


def optimizer_figure(histories: Histories, column: str) -> Figure:
    """``clipped_fraction`` or ``denominator_norm`` of the arms that have one."""
    having = [h for h in histories if column in h]
    label = column.replace("_", " ")
    drawn = panels(having, lambda h: band_line(h, column), label, log=column == "denominator_norm")
    return Figure(label.capitalize(), drawn, note="line: mean over seeds, band: their range")


FIGURES: dict[str, Callable[[Histories], Figure]] = {
    "training": training_figure,
    "valid_loss": valid_loss_figure,
    "valid_accuracy": lambda histories: validation_figure(histories, "accuracy"),
    "valid_perplexity": lambda histories: validation_figure(histories, "perplexity"),
}
"""Figures that need histories alone, by the name of their output."""
