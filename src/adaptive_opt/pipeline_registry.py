"""The pipelines that ``kedro run --pipelines=…`` knows."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Pipeline

from adaptive_opt.pipelines import analysis, data, rr_synthesis, training, tuning
from adaptive_opt.study import arm_names, published_arms


def register_pipelines() -> dict[str, Pipeline]:
    """The parts of the study, and whole ones.

    Returns:
        ``data``, ``rr_synthesis``, ``tuning`` and ``training`` (the whole grid), ``analysis``
        (of the six published arms); ``__default__``: all of these for the published arms;
        ``ladder``: likewise for every placebo arm beside the arms they are made from; ``all``:
        for every arm; ``zoo``: for the published arms and those of pytorch_optimizer;
        ``ledger``: what each thing that the original did otherwise changes.
    """
    sources = data.create_pipeline() + rr_synthesis.create_pipeline()

    def study(arms: Iterable[str], name: str = "") -> Pipeline:
        chosen = list(arms)
        searches = tuning.create_pipeline(chosen) + _search_report(chosen, name)
        runs = training.create_pipeline(chosen)
        return Pipeline([sources, searches, runs, _analysis(chosen, name)])

    published, every = published_arms(), arm_names()
    return {
        "data": data.create_pipeline(),
        "rr_synthesis": rr_synthesis.create_pipeline(),
        "tuning": tuning.create_pipeline(every),
        "training": training.create_pipeline(every),
        "analysis": _search_report(published) + _analysis(published),
        "ladder": study(["ssdh", "sadh", *arm_names("ladder")], "ladder"),
        "all": study(every, "all"),
        "ledger": _ledger(),
        "zoo": study([*published, *arm_names("zoo")], "zoo"),
        "__default__": study(published),
    }


def _ledger() -> Pipeline:
    """The replication ledger, with the functions and searches that it takes."""
    searches = tuning.create_pipeline(published_arms())
    needed = searches.to_outputs(*sorted(analysis.searched_configurations()))
    return rr_synthesis.create_pipeline() + needed + analysis.create_ledger_pipeline()


def _search_report(arms: Iterable[str], name: str = "") -> Pipeline:
    return tuning.create_report(f"{name}_search" if name else "search", arms)


def _analysis(arms: Iterable[str], name: str = "") -> Pipeline:
    """Of both halves of the study, each under a name of its own."""
    arms, prefix = list(arms), f"{name}_" if name else ""
    return analysis.create_pipeline(
        f"{prefix}rahimi_recht", arms
    ) + analysis.create_network_pipeline(f"{prefix}networks", arms)
