"""Pipeline ``analysis``."""

from .curvature import create_curvature_pipeline
from .fidelity import create_fidelity_pipeline
from .ledger import create_ledger_pipeline, searched_configurations
from .pipeline import create_network_pipeline, create_pipeline
from .sharpness import create_sharpness_pipeline
from .verdict import create_verdict_pipeline

__all__ = [
    "create_curvature_pipeline",
    "create_fidelity_pipeline",
    "create_ledger_pipeline",
    "create_network_pipeline",
    "create_pipeline",
    "create_sharpness_pipeline",
    "create_verdict_pipeline",
    "searched_configurations",
]
