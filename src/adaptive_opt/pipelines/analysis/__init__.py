"""Pipeline ``analysis``."""

from .pipeline import create_network_pipeline, create_pipeline

__all__ = ["create_network_pipeline", "create_pipeline"]
