"""Flat records of the parameters that a run depends on, to detect stale results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .arms import lengths_of, resolve_arm, training_parameters
from .models import task_parameters

__all__ = ["configuration", "configuration_digest", "logging_configuration"]

EVERY_RUN = ("schedule", "schedule_floor", "clip_curvature", "diverged_above")
NETWORKS = ("precision", "channels_last", "curvature_share")
SNAPSHOTS = ("snapshot_epochs", "snapshot_seeds")
LOGGING = ("log_every", "statistics_every")


def configuration(
    task: str,
    arm: str,
    parameters: dict[str, Any],
    studies: Sequence[dict[str, Any] | None] = (),
) -> dict[str, Any]:
    """Return the parameters that the losses of a run depend on.

    Args:
        task, arm: names.
        parameters: the sections ``tasks``, ``arms`` and ``training``.
        studies: configurations found by the searches, see :func:`.tuning.studies_of`.
    """
    training = training_parameters(arm, parameters["training"])
    resolved = resolve_arm(arm, parameters["arms"][task], training)
    settings = task_parameters(task, parameters["tasks"])
    kept = EVERY_RUN + (NETWORKS if hasattr(settings, "evaluate_every") else ())
    logged = {"target", "log_every", "evaluate_every", *SNAPSHOTS}
    return {
        **settings.model_dump(exclude=logged),
        **{name: getattr(training, name) for name in kept},
        "optimizer": resolved["optimizer"],
        **resolved["hyperparameters"],
        **({"studies": list(studies)} if studies else {}),
    }


def logging_configuration(task: str, arm: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that change what is logged or how it is computed, not the losses."""
    training = training_parameters(arm, parameters["training"])
    settings = task_parameters(task, parameters["tasks"])
    kept = {name: getattr(training, name) for name in LOGGING}
    kept |= {name: getattr(settings, name) for name in SNAPSHOTS}
    kept["lengths"] = lengths_of(task, arm, training)
    if hasattr(settings, "evaluate_every"):
        kept["log_every"] = settings.log_every or training.log_every
        kept["evaluate_every"] = settings.evaluate_every
        kept |= {"compile": training.compile, "ensemble": training.ensemble}
    else:
        kept["hessian_every"] = training.hessian_every
    return kept


def configuration_digest(configuration: dict[str, Any]) -> str:
    """Return a digest of a configuration. The order of the keys does not matter.

    Example:
        >>> a, b = {"lr": 0.1, "seeds": 3}, {"seeds": 3, "lr": 0.1}
        >>> configuration_digest(a) == configuration_digest(b)
        True
        >>> configuration_digest(a) == configuration_digest({**a, "lr": 0.2})
        False
    """
    text = json.dumps(configuration, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


DIGESTS = ("code", "data")
"""Keys whose values are hashes, which are not printed."""


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the keys that differ between two configurations; empty if ``then`` is empty.

    Example:
        >>> changes({"lr": 0.1, "code": "a1"}, {"lr": 0.2, "code": "b2"})
        'lr: 0.1, now 0.2, code'
    """
    now = json.loads(json.dumps(now))
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)] if then else []
    return ", ".join(
        key if key in DIGESTS else f"{key}: {_short(then.get(key))}, now {_short(now.get(key))}"
        for key in keys
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
