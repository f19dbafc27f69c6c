"""Kedro project settings."""

import os

from adaptive_opt.io.configuration import LOADER_ARGUMENTS, ConfigurationLoader
from adaptive_opt.io.hooks import CheckpointHooks, ValidationHooks
from adaptive_opt.io.outcome import OutcomeHooks
from adaptive_opt.io.tracking.hooks import TrackingHooks

# Send no usage statistics to Kedro or MLflow.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# TrackingHooks replace the hooks of kedro-mlflow.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry", "kedro_mlflow")

# OutcomeHooks are last, so that they are called after all other hooks marked trylast.
HOOKS = (TrackingHooks(), ValidationHooks(), CheckpointHooks(), OutcomeHooks())

CONFIG_LOADER_CLASS = ConfigurationLoader
CONFIG_LOADER_ARGS = LOADER_ARGUMENTS
