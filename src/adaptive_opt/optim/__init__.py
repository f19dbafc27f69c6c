"""Optimizers with second-order step size adaptation, for one model or an ensemble.

    from adaptive_opt.optim import SSDH

This subpackage imports only torch, no other part of the project.
"""

from .base import EnsembleOptimizer
from .double_backward import FastDoubleBackward
from .empirical_fisher import squared_sample_gradients
from .first_order import SGDM, Adam
from .gauss_newton import SampledLoss, sampled_cross_entropy, sampled_squared_error
from .memberwise import Memberwise
from .methods import SADH, SSDH, SSVP, Sophia
from .probes import PROBES
from .saddle_free_newton import SaddleFreeNewton
from .second_order import SecondOrderOptimizer
from .sources import CURVATURE_SOURCES

__all__ = [
    "CURVATURE_SOURCES",
    "PROBES",
    "SADH",
    "SGDM",
    "SSDH",
    "SSVP",
    "Adam",
    "EnsembleOptimizer",
    "FastDoubleBackward",
    "Memberwise",
    "SaddleFreeNewton",
    "SampledLoss",
    "SecondOrderOptimizer",
    "Sophia",
    "sampled_cross_entropy",
    "sampled_squared_error",
    "squared_sample_gradients",
]
