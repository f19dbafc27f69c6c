"""Kedro, MLflow and the disk.

- :mod:`.datasets`, :mod:`.runs`: what the catalog loads and saves;
- ``configuration``, :mod:`.hooks`: parameters are read and checked before the first node;
- :mod:`.runners`: nodes run in other processes or on other machines;
- ``tracking``: runs and their curves are sent to MLflow;
- :mod:`.status`: what is finished, what is left, where results are;
- :mod:`.viz`: the project's page of kedro-viz.
"""

from importlib import import_module
from typing import Any

__all__ = ["RayRunner", "StudyRunner", "load_runs"]

_MODULES = {
    "RayRunner": "runners.ray_runner",
    "StudyRunner": "runners.local_runner",
    "load_runs": "status.outcome",
}


def __getattr__(name: str) -> Any:
    """Import on first use, because ``adaptive_opt.io`` alone must not import Kedro."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
