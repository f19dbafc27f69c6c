"""The replication ledger: every switch of the original flipped by itself, and what it does."""

from __future__ import annotations

from functools import partial, update_wrapper

from kedro.pipeline import Node, Pipeline

from adaptive_opt.study import Task, published_arms, tasks_of
from adaptive_opt.switches import VARIANTS, Variant

from . import ledger_nodes

SECTIONS = ["params:tasks", "params:arms", "params:training"]


def create_ledger_pipeline() -> Pipeline:
    """Train the published arms with every variant of the switches."""
    return sum(
        (_train(v, t) for v in VARIANTS for t in tasks_of("rahimi_recht")),
        Pipeline([]),
    )


def searched_configurations() -> set[str]:
    """What the ledger takes from the searches, by name in the catalog."""
    return {f"tuning.{t.name}.{a}.best" for t in tasks_of("rahimi_recht") for a in published_arms()}


def _train(variant: Variant, task: Task) -> Pipeline:
    arms = published_arms() if variant.searched else []
    bests = {f"{arm}__best": f"tuning.{task.name}.{arm}.best" for arm in arms}
    function = partial(ledger_nodes.train, variant.name, task.name)
    node = Node(
        update_wrapper(function, ledger_nodes.train),
        ["tensors", "folder", *SECTIONS, *bests],
        ["history", "weights", "summary"],
        name="train",
    )
    return Pipeline(
        [node],
        namespace=f"analysis.ledger.{variant.name}.{task.name}",
        inputs={"tensors": task.dataset, **bests},
        parameters=set(SECTIONS),
        tags=[task.name, task.half],
    )
