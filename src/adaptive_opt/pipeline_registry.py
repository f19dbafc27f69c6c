"""The pipelines that ``kedro run --pipelines=…`` knows."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from adaptive_opt.pipelines import analysis, rr_synthesis, training
from adaptive_opt.study import arm_names, published_arms


def register_pipelines() -> dict[str, Pipeline]:
    """The parts of the study, and two whole ones.

    Returns:
        ``rr_synthesis``, ``training`` (the whole grid), ``analysis`` (of the six published
        arms); ``__default__``: all of these for the published arms; ``ladder``: likewise
        for every placebo arm beside the arms they are made from; ``all``: for every arm.
    """
    functions = rr_synthesis.create_pipeline()
    published = published_arms()
    analyse = analysis.create_pipeline("rahimi_recht", published)
    ladder = ["ssdh", "sadh", *arm_names("ladder")]
    return {
        "rr_synthesis": functions,
        "training": training.create_pipeline(),
        "analysis": analyse,
        "ladder": functions
        + training.create_pipeline(ladder)
        + analysis.create_pipeline("ladder", ladder),
        "all": functions
        + training.create_pipeline()
        + analysis.create_pipeline("all", arm_names()),
        "__default__": functions + training.create_pipeline(published) + analyse,
    }
