"""Loads the files under ``conf/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.config import MissingConfigException, OmegaConfigLoader

from adaptive_opt.errors import StudyError, first_line, nearest
from adaptive_opt.files import CHECKOUT, PROJECT

__all__ = ["LOADER_ARGUMENTS", "ConfigurationLoader"]

LOADER_ARGUMENTS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment changes the keys that it names and keeps their siblings.
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {
        "project_path": lambda name: str(PROJECT / name),
        "checkout_path": lambda name: str(CHECKOUT / name),
    },
}


class ConfigurationLoader(OmegaConfigLoader):
    """Kedro's loader, which reports errors in files as :class:`.StudyError`.

    Args:
        conf_source: folder of the environments.
        env: the environment.
        runtime_params, arguments: see :class:`kedro.config.OmegaConfigLoader`.

    Raises:
        StudyError: the environment has no folder. Kedro alone would use ``base``.
    """

    def __init__(
        self,
        conf_source: str | Path,
        env: str | None = None,
        runtime_params: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        source = Path(conf_source)
        if env and source.is_dir() and not (source / env).is_dir():
            known = sorted(folder.name for folder in source.iterdir() if folder.is_dir())
            raise StudyError(
                f"no environment is called {env!r}, because the folder {source.name}/{env} does "
                f"not exist; {nearest(env, known)}"
            )
        super().__init__(conf_source, env, runtime_params, **arguments)

    def __getitem__(self, key: str) -> Any:
        try:
            return super().__getitem__(key)
        except (MissingConfigException, KeyError, StudyError):
            raise  # Kedro handles the first two
        except Exception as error:  # of YAML, of OmegaConf, and any if a file is not a mapping
            raise StudyError(
                f"The configuration ({key}) cannot be read; nothing was run: {first_line(error)}"
            ) from error
