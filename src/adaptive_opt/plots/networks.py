"""Figures of the network tasks, from histories."""

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
"""Columns of a history that serve as a clock, and their labels."""

BAND = "Lines are means over seeds, bands range from the lowest to the highest seed."

STATISTICS = {
    "clipped_fraction": "Share of the update's elements that are clipped. Where it is near 1, step "
    "sizes hardly depend on the curvature.",
    "denominator_norm": "Norm of the denominator that divides the momentum: the larger it is, the "
    "smaller the steps.",
}
"""Captions of the optimizers' statistics."""


def loss_figure(histories: Histories, targets: Mapping[str, float], clock: str) -> Figure:
    """Training loss by one of the three clocks, mean and range over seeds."""
    drawn = panels(
        histories,
        lambda h: band_line(h, "train_loss", clock),
        "training loss",
        x_label=CLOCKS[clock],
        levels=targets,
    )
    caption = f"Each point is a mean over the batches since the previous one. {BAND} The dotted "
    caption += "line is the target: the further left a curve crosses it, the faster the arm."
    return Figure(f"Training loss by {CLOCKS[clock]}", drawn, caption=caption)


def valid_loss_figure(histories: Histories) -> Figure:
    """Loss on validation data, mean and range over seeds."""
    drawn = panels(histories, lambda h: band_line(h, "valid_loss"), "validation loss")
    caption = f"Loss on validation data. {BAND} A curve that rises again shows overfitting."
    return Figure("Validation loss", drawn, caption=caption)


def training_figure(histories: Histories) -> Figure:
    """Training loss and, if known, accuracy, smoothed over one epoch as published."""

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
    caption = f"Running mean over one epoch. {BAND} Compare where each arm ends and how early it "
    caption += "gets near that value."
    return Figure("Training, smoothed", drawn, columns=len(drawn), caption=caption)


def validation_figure(histories: Histories, metric: str) -> Figure:
    """Accuracy or perplexity on validation data, for the tasks that have it.

    The original study drew test data. Here they are read once, at the end of a run.
    """
    having = [h for h in histories if f"valid_{metric}" in h]
    drawn = panels(
        having,
        lambda h: band_line(h, f"valid_{metric}"),
        f"validation {metric}",
        log=metric == "perplexity",
    )
    better = {"accuracy": "Higher", "perplexity": "Lower"}[metric]
    return Figure(f"Validation {metric}", drawn, caption=f"{better} is better. {BAND}")


def optimizer_figure(histories: Histories, column: str) -> Figure:
    """``clipped_fraction`` or ``denominator_norm``, for the arms that record it."""
    having = [h for h in histories if column in h]
    label = column.replace("_", " ")
    drawn = panels(having, lambda h: band_line(h, column), label, log=column == "denominator_norm")
    return Figure(label.capitalize(), drawn, caption=f"{STATISTICS[column]} {BAND}")


FIGURES: dict[str, Callable[[Histories], Figure]] = {
    "training": training_figure,
    "valid_loss": valid_loss_figure,
    "valid_accuracy": lambda histories: validation_figure(histories, "accuracy"),
    "valid_perplexity": lambda histories: validation_figure(histories, "perplexity"),
}
"""Figures that need only histories, by the name of their output."""
