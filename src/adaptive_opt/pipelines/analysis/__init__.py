"""Pipeline ``analysis``."""

from .ledger import create_ledger_pipeline, searched_configurations
from .pipeline import create_network_pipeline, create_pipeline

__all__ = [
    "create_ledger_pipeline",
    "create_network_pipeline",
    "create_pipeline",
    "searched_configurations",
]
