"""The only module that uses interfaces which Kedro, kedro-viz and Ray do not document.

Such an interface may change in any release. ``REQUIREMENTS`` has the versions that this
module was tested with; ``pyproject.toml`` has the same bounds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kedro_datasets._typing import HTMLPreview, JSONPreview, TablePreview
from packaging.specifiers import SpecifierSet

from adaptive_opt.errors import StudyError

__all__ = [
    "REQUIREMENTS",
    "HTMLPreview",
    "JSONPreview",
    "TablePreview",
    "check_versions",
    "create_viz_app",
    "load_into_viz",
    "local_ray_options",
    "replace_viz_commands",
    "write_viz_site",
]

REQUIREMENTS = {
    "kedro": ">=1.7,<1.8",
    "kedro-datasets": ">=9.6,<10",
    "kedro-mlflow": ">=2.0,<2.1",
    "kedro-viz": ">=12.5,<12.6",
    "ray": ">=2.40,<3",
}


def check_versions() -> None:
    """Compare the installed versions with ``REQUIREMENTS``.

    Raises:
        StudyError: a version is outside its bounds.
    """
    for package, bounds in REQUIREMENTS.items():
        try:
            found = version(package)
        except PackageNotFoundError:  # an extra, such as ray
            continue
        if found not in SpecifierSet(bounds):
            raise StudyError(
                f"{package} {found} is installed, and this project works with {bounds}: "
                f"pip install '{package}{bounds}'"
            )


def replace_viz_commands(commands: Mapping[str, str]) -> None:
    """Set the commands of ``kedro viz``, each by its import path.

    They are global, and a project cannot define them anew.
    """
    from kedro_viz.launchers.cli.main import viz

    viz.lazy_subcommands = dict(commands)


def load_into_viz(project: Path, env: str | None, names: Sequence[str]) -> None:
    """Load pipelines of a project into kedro-viz, which keeps them for the whole process."""
    from kedro.framework.project import PACKAGE_NAME
    from kedro_viz.data_access import data_access_manager
    from kedro_viz.integrations.kedro.data_loader import load_data
    from kedro_viz.server import populate_data

    catalog, pipelines, extras = load_data(project, env, package_name=PACKAGE_NAME)
    populate_data(data_access_manager, catalog, {n: pipelines[n] for n in names}, extras)
    for node in (node for name in names for node in pipelines[name].nodes):
        if isinstance(node.func, partial):  # kedro-viz shows the source of functions only
            node.func = node.func.func


def create_viz_app(project: Path) -> Any:
    """Return kedro-viz's FastAPI application for the pipelines that are loaded."""
    from kedro_viz.api.apps import create_api_app_from_project

    return create_api_app_from_project(project)


def write_viz_site(folder: Path, *, previews: bool) -> None:
    """Write kedro-viz's static site for the pipelines that are loaded."""
    import fsspec
    from kedro_viz.integrations.deployment.base_deployer import BaseDeployer

    deployer = BaseDeployer()
    deployer._path, deployer._fs = folder, fsspec.filesystem("file")
    deployer.deploy(previews)


def local_ray_options(folder: str, cores: int | None) -> dict[str, Any]:
    """Return options of ``ray.init`` for a Ray of this machine that no other machine can reach.

    Call it before Ray is imported.

    Args:
        folder: for sockets and logs.
        cores: how many Ray may use; None: all of them.
    """
    # Elsewhere than on Linux, Ray would replace the loopback address if this were 1.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    local = {"address": "local", "num_cpus": cores, "include_dashboard": False}
    return {**local, "_temp_dir": folder, "_node_ip_address": "127.0.0.1"}
