"""The pipelines that ``kedro run --pipelines=…`` knows."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Pipeline

from adaptive_opt.pipelines import analysis, data, rr_synthesis, training
from adaptive_opt.study import arm_names, published_arms


def register_pipelines() -> dict[str, Pipeline]:
    """The parts of the study, and whole ones.

    Returns:
        ``data``, ``rr_synthesis``, ``training`` (the whole grid), ``analysis`` (of the six
        published arms); ``__default__``: all of these for the published arms; ``ladder``:
        likewise for every placebo arm beside the arms they are made from; ``all``: for
        every arm.
    """
    sources = data.create_pipeline() + rr_synthesis.create_pipeline()
    published = published_arms()
    analyse = _analysis(published)
    ladder = ["ssdh", "sadh", *arm_names("ladder")]
    return {
        "data": data.create_pipeline(),
        "rr_synthesis": rr_synthesis.create_pipeline(),
        "training": training.create_pipeline(),
        "analysis": analyse,
        "ladder": sources + training.create_pipeline(ladder) + _analysis(ladder, "ladder"),
        "all": sources + training.create_pipeline() + _analysis(arm_names(), "all"),
        "__default__": sources + training.create_pipeline(published) + analyse,
    }


def _analysis(arms: Iterable[str], name: str = "") -> Pipeline:
    """Of both halves of the study, each under a name of its own."""
    arms, prefix = list(arms), f"{name}_" if name else ""
    return analysis.create_pipeline(
        f"{prefix}rahimi_recht", arms
    ) + analysis.create_network_pipeline(f"{prefix}networks", arms)
