"""What nodes take of a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from adaptive_opt.study import ARMS, EVERY_TASK, HALVES, KINDS

from .fields import Count, NonNegative, Strict, Whole

__all__ = ["ResourcesParameters", "node_resources"]


def _is_grantable(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("a part of a GPU, or whole ones")
    return gpus


GPUs = Annotated[NonNegative, AfterValidator(_is_grantable)]


class _Some(Strict):
    """Those of some nodes; None: as all have."""

    cpus: Count | None = None
    gpus: GPUs | None = None


class ResourcesParameters(Strict):
    """``resources``: what a node takes of a Ray cluster.

    No result depends on it but by the number of cores, as by those of a machine.

    Attributes:
        cpus: cores of a node, and threads of torch there.
        gpus: of a node that trains or searches, where ``training.device`` is a GPU; a part of
            one is shared with others. A node with 0 sees no GPU.
        retries: how often a node is begun again whose process or machine died.
        tags: other numbers for the nodes of some tasks, arms, kinds or halves; of those that
            fit a node the last one holds.
    """

    cpus: Count = 1
    gpus: GPUs = 1.0
    retries: Whole = 3
    tags: dict[str, _Some] = Field(default={})

    @field_validator("tags")
    @classmethod
    def _known(cls, tags: dict[str, _Some]) -> dict[str, _Some]:
        known = [*(t.name for t in EVERY_TASK), *(a.name for a in ARMS), *KINDS, *HALVES]
        if unknown := sorted({*tags} - {*known}):
            raise ValueError(f"no task, arm, kind or half is called {', '.join(unknown)}")
        return tags


def node_resources(given: ResourcesParameters, tags: Iterable[str]) -> dict[str, Any]:
    """``cpus`` and ``gpus`` of a node with some tags.

    Example:
        >>> given = ResourcesParameters(cpus=2, tags={"resnet18": {"gpus": 0.25}})
        >>> node_resources(given, {"resnet18", "ssdh"})
        {'cpus': 2, 'gpus': 0.25}
    """
    found: dict[str, Any] = {"cpus": given.cpus, "gpus": given.gpus}
    present = set(tags)
    for tag, some in given.tags.items():
        if tag in present:
            found |= some.model_dump(exclude_none=True)
    return found
