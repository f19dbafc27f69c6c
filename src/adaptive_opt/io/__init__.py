"""Where the study meets Kedro and the disk: datasets, hooks, runners."""

from typing import Any

__all__ = ["RayRunner", "StudyRunner"]

_MODULES = {"RayRunner": "ray_runner", "StudyRunner": "runner"}


def __getattr__(name: str) -> Any:
    """The runners, imported when they are asked for: ``--runner=adaptive_opt.io.RayRunner``."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
