"""Schema of the parameters ``resources``: cores and GPUs of nodes on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from adaptive_opt.study import ARMS, EVERY_TASK, HALVES, KINDS

from .fields import Count, NonNegative, Strict, Whole

__all__ = ["ResourcesParameters", "node_resources"]


def _check_gpus(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"must be at most 1 or a whole number, got {gpus}")
    return gpus


GPUs = Annotated[NonNegative, AfterValidator(_check_gpus)]


class _TagResources(Strict):
    """Resources of the nodes with a tag; None: the general value."""

    cpus: Count | None = None
    gpus: GPUs | None = None


class ResourcesParameters(Strict):
    """``resources``: cores and GPUs of a node on a Ray cluster.

    Attributes:
        cpus: number of cores of a node, and of threads of torch. Results depend on it as they
            depend on the number of cores of a machine.
        gpus: number of GPUs of a training or search node, if ``training.device`` is a GPU. Nodes
            with a fraction share a GPU; a node with 0 sees no GPU.
        retries: how often a node is restarted after its process or machine died.
        tags: other values for nodes with a task, arm, kind or half as a tag. If several entries
            match a node, the last one applies.
    """

    cpus: Count = 1
    gpus: GPUs = 1.0
    retries: Whole = 3
    tags: dict[str, _TagResources] = Field(default={})

    @field_validator("tags")
    @classmethod
    def _check_tags(cls, tags: dict[str, _TagResources]) -> dict[str, _TagResources]:
        known = [*(t.name for t in EVERY_TASK), *(a.name for a in ARMS), *KINDS, *HALVES]
        if unknown := sorted({*tags} - {*known}):
            raise ValueError(f"unknown task, arm, kind or half: {', '.join(unknown)}")
        return tags


def node_resources(given: ResourcesParameters, tags: Iterable[str]) -> dict[str, Any]:
    """Return ``cpus`` and ``gpus`` of a node with these tags.

    Example:
        >>> given = ResourcesParameters(cpus=2, tags={"resnet18": {"gpus": 0.25}})
        >>> node_resources(given, {"resnet18", "ssdh"})
        {'cpus': 2, 'gpus': 0.25}
    """
    found: dict[str, Any] = {"cpus": given.cpus, "gpus": given.gpus}
    present = set(tags)
    for tag, values in given.tags.items():
        if tag in present:
            found |= values.model_dump(exclude_none=True)
    return found
