"""How the files under ``conf/`` are read, and one sentence where they cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from kedro.config import MissingConfigException, OmegaConfigLoader
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adaptive_opt.errors import StudyError
from adaptive_opt.files import CHECKOUT, PROJECT

__all__ = ["LOADER_ARGUMENTS", "ConfigurationLoader", "nearest"]

LOADER_ARGUMENTS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment changes the keys it names and leaves their siblings.
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {
        "project_path": lambda name: str(PROJECT / name),
        "checkout_path": lambda name: str(CHECKOUT / name),
    },
}


class ConfigurationLoader(OmegaConfigLoader):
    """Kedro's, with faults of the files told as :class:`.StudyError`.

    Args:
        conf_source: folder of the environments.
        env: the environment; one that has no folder is a fault, where Kedro would go on without.
        runtime_params: see :class:`kedro.config.OmegaConfigLoader`, as are the others.
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
            known = sorted(f.name for f in source.iterdir() if f.is_dir())
            raise StudyError(
                f"no environment is called {env!r}, for {source.name}/{env} is no folder; "
                f"{nearest(env, known)}"
            )
        super().__init__(conf_source, env, runtime_params, **arguments)

    def __getitem__(self, key: str) -> Any:
        try:
            return super().__getitem__(key)
        except (MissingConfigException, KeyError, StudyError):
            raise  # Kedro has answers to these
        except Exception as error:  # Kedro expects a mapping, and stumbles over all else
            said = self._unreadable() or [str(error).split("\n")[0]]
            raise StudyError(
                "\n  ".join([f"The configuration ({key}) cannot be read; nothing was run.", *said])
            ) from error

    def _unreadable(self) -> list[str]:
        """Every file that is no YAML, with the line."""
        source, found = Path(self.conf_source), []
        for folder in dict.fromkeys((self.base_env, self.env or self.default_run_env)):
            for file in sorted((source / folder).rglob("*.yml")):
                name = file.relative_to(source.parent).as_posix()
                try:
                    if not OmegaConf.is_dict(OmegaConf.load(file)):
                        found.append(f"{name}: must be names with values, name: value")
                except yaml.MarkedYAMLError as error:
                    mark = error.problem_mark
                    line = f" line {mark.line + 1}:" if mark else ""
                    found.append(f"{name}:{line} {error.problem or error.context}")
                except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
                    found.append(f"{name}: {str(error).split(chr(10))[0]}")
        return found


def nearest(name: str, known: Sequence[str], many: str = "") -> str:
    """A hint at what was meant.

    Args:
        name: what was said.
        known: names, of which the nearest is told, or all where none is near.
        many: what is said instead of all of them.
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else many or f"known: {', '.join(known)}"
