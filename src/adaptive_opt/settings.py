"""Kedro project settings."""

import os
import warnings

from adaptive_opt.io.configuration import LOADER_ARGUMENTS, ConfigurationLoader
from adaptive_opt.io.hooks import ValidationHooks
from adaptive_opt.io.status.outcome import OutcomeHooks
from adaptive_opt.io.tracking.hooks import TrackingHooks

# No usage statistics of Kedro's or MLflow's leave this machine.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
with warnings.catch_warnings(record=True):
    # MLflow warns of a class of kedro-mlflow, which Kedro imports in any case, after this file.
    import kedro_mlflow.mlflow  # noqa: F401
# TrackingHooks replace the hooks of kedro-mlflow.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry", "kedro_mlflow")

# OutcomeHooks come last: of hooks that ask to be, the last one is called after all others.
_tracking = TrackingHooks()
HOOKS = (_tracking, ValidationHooks(), OutcomeHooks(lambda: _tracking.address))

CONFIG_LOADER_CLASS = ConfigurationLoader
CONFIG_LOADER_ARGS = LOADER_ARGUMENTS
