"""Kedro project settings."""

import os
from pathlib import Path

from kedro.config import OmegaConfigLoader

from adaptive_opt.io.hooks import CheckpointHooks, ValidationHooks
from adaptive_opt.io.tracking.hooks import TrackingHooks

# No usage statistics of Kedro's or MLflow's leave this machine.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# TrackingHooks stand in for the hooks of kedro-mlflow.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry", "kedro_mlflow")

HOOKS = (TrackingHooks(), ValidationHooks(), CheckpointHooks())

CONFIG_LOADER_CLASS = OmegaConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment changes the keys it names and leaves their siblings.
    "merge_strategy": {"parameters": "soft"},
    "custom_resolvers": {
        "project_path": lambda name: str(Path(__file__).parents[2] / name),
    },
}
