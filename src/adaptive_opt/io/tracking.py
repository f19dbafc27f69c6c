"""kedro-mlflow's hooks, without its two requests to the tracking server before every node."""

from __future__ import annotations

from kedro.framework.hooks import hook_impl
from kedro_mlflow.framework.hooks.mlflow_hook import MlflowHook

__all__ = ["TrackingHooks"]


class TrackingHooks(MlflowHook):
    """Opens a run for a pipeline and closes it.

    Before each node kedro-mlflow asks for the run again, for runners with threads, which this
    project refuses, and logs the node's parameters, which
    :class:`adaptive_opt.io.hooks.ParameterHooks` has logged at once. With 180 nodes that is a
    tenth of a short run.
    """

    @hook_impl
    def before_node_run(self) -> None:
        """Nothing."""
