"""The parameters of a study: their types, ranges and meaning.

Validated before the first node runs; every fault is reported at once, by the path of its
key, with the nearest valid name where a key is unknown.
"""

from .arms import resolve_arm, training_parameters
from .configuration import configuration, configuration_digest, logging_configuration
from .faults import Fault, find_faults
from .models import (
    AnalysisParameters,
    CurvatureParameters,
    FidelityParameters,
    ImageTaskParameters,
    LossParameters,
    RRFunctionParameters,
    SharpnessParameters,
    TaskParameters,
    TextTaskParameters,
    TrainingParameters,
    target_losses,
    task_parameters,
)
from .tuning import TaskTuningParameters, TuningParameters, search_space, with_values

__all__ = [
    "AnalysisParameters",
    "CurvatureParameters",
    "Fault",
    "FidelityParameters",
    "ImageTaskParameters",
    "LossParameters",
    "RRFunctionParameters",
    "SharpnessParameters",
    "TaskParameters",
    "TaskTuningParameters",
    "TextTaskParameters",
    "TrainingParameters",
    "TuningParameters",
    "configuration",
    "configuration_digest",
    "find_faults",
    "logging_configuration",
    "resolve_arm",
    "search_space",
    "target_losses",
    "task_parameters",
    "training_parameters",
    "with_values",
]
