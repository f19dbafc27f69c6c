"""Kedro project settings."""

import os

from adaptive_opt.io.configuration import LOADER_ARGUMENTS, ConfigurationLoader
from adaptive_opt.io.hooks import ValidationHooks
from adaptive_opt.io.status.outcome import OutcomeHooks
from adaptive_opt.io.tracking.hooks import TrackingHooks

# No usage statistics of Kedro's or MLflow's leave this machine.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# TrackingHooks stand in for the hooks of kedro-mlflow.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry", "kedro_mlflow")

# OutcomeHooks come last: of hooks that ask to be, the last one is called after all others.
HOOKS = (TrackingHooks(), ValidationHooks(), OutcomeHooks())

CONFIG_LOADER_CLASS = ConfigurationLoader
CONFIG_LOADER_ARGS = LOADER_ARGUMENTS
