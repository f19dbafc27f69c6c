"""Where the study meets Kedro, MLflow and the disk.

- datasets, ``runs``, ``studies``, ``checksums``: what the catalog loads and saves;
- ``configuration``, ``hooks``: parameters are read and checked before the first node;
- :mod:`.runners`: nodes run in other processes or on other machines;
- :mod:`.tracking`: runs and their curves go to MLflow;
- :mod:`.status`: what is finished, what is left, where results are;
- :mod:`.viz`: the project's page of kedro-viz.
"""

from importlib import import_module
from typing import Any

__all__ = ["RayRunner", "StudyRunner", "load_runs"]

_MODULES = {
    "RayRunner": "runners.ray_runner",
    "StudyRunner": "runners.local_runner",
    "load_runs": "status.results",
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``--runner=adaptive_opt.io.RayRunner`` needs Kedro, the package not."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
