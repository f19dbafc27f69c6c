"""Schemas of the parameters: types, ranges, defaults and meaning.

They are validated before the first node runs. All faults are reported together, each with the
path of its key and, for an unknown key, the nearest valid name.
"""

from .analysis import (
    AnalysisParameters,
    CalibrationParameters,
    CurvatureParameters,
    FidelityParameters,
    LossParameters,
    SharpnessParameters,
    VerdictParameters,
)
from .arms import lengths_of, resolve_arm, training_parameters
from .configuration import configuration, configuration_digest, logging_configuration
from .faults import Fault, find_faults
from .models import (
    ImageTaskParameters,
    RRFunctionParameters,
    TaskParameters,
    TextTaskParameters,
    TrainingParameters,
    target_losses,
    task_parameters,
)
from .tuning import (
    TaskTuningParameters,
    TuningParameters,
    search_space,
    studies_of,
    values_of_seed,
    with_values,
)

__all__ = [
    "AnalysisParameters",
    "CalibrationParameters",
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
    "VerdictParameters",
    "configuration",
    "configuration_digest",
    "find_faults",
    "lengths_of",
    "logging_configuration",
    "resolve_arm",
    "search_space",
    "studies_of",
    "target_losses",
    "task_parameters",
    "training_parameters",
    "values_of_seed",
    "with_values",
]
