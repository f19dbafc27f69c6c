"""Schema of the parameters ``analysis``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .fields import Count, Positive, Share, Strict, Whole

__all__ = [
    "AnalysisParameters",
    "CalibrationParameters",
    "CurvatureParameters",
    "FidelityParameters",
    "LossParameters",
    "SharpnessParameters",
    "VerdictParameters",
]


class VerdictParameters(Strict):
    """``analysis.verdict``: comparison of arms.

    Attributes:
        margin: arms whose speeds differ by at most this share are equivalent.
        confidence: confidence level of intervals; tests use the level 1 − ``confidence``.
        constant_margin: a search or a run fails unless its loss is at least this share below
            that of a constant prediction.
    """

    margin: Annotated[float, Field(gt=0, lt=1)] = 0.1
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    constant_margin: Annotated[float, Field(ge=0, lt=1)] = 0.02


class CalibrationParameters(Strict):
    """``analysis.calibration``: measurement of the seconds that a step of each arm takes.

    Attributes:
        rounds: number of rounds; every arm has one turn a round, in alternating order.
        update_periods: length of a turn, in curvature update periods.
    """

    rounds: Annotated[int, Field(ge=3, strict=True)] = 5
    update_periods: Count = 2


class FidelityParameters(Strict):
    """``analysis.fidelity``: error of curvature estimates against the exact diagonal.

    Attributes:
        seeds: number of runs to analyse, starting with the task's first seed.
        iterations: where to measure. Each stands for the last curvature refresh up to it, and
            one beyond the end of a run for the run's last refresh.
        draws: number of draws of each random probe, to measure the error of one draw.
        paths: number of independent sequences of draws, to measure the error of their running
            mean.
    """

    seeds: Count = 2
    iterations: Annotated[list[Whole], Field(min_length=1)]
    draws: Annotated[int, Field(ge=2, strict=True)] = 256
    paths: Annotated[int, Field(ge=2, strict=True)] = 8


class LossParameters(Strict):
    """The loss whose curvature is measured, and the accuracy.

    Attributes:
        batches: maximum number of training batches.
        samples: number of images or text streams of each batch, from its start; None: all.
        micro_batch: number of images or text streams computed together.
        precision: ``fp32`` or ``fp64``.
        tolerance: an eigenpair with a relative residual ``‖Hv − λv‖ / |λ|`` above this is marked.
    """

    batches: Count = 4
    samples: Count | None = None
    micro_batch: Count = 64
    precision: Literal["fp32", "fp64"] = "fp32"
    tolerance: Positive = 1e-2


class SharpnessParameters(LossParameters):
    """``analysis.sharpness``: top eigenvalues during training, in every study.

    Attributes:
        products: maximum number of matrix-vector products for a top eigenvalue.
    """

    batches: Count = 1
    products: Count = 30


class CurvatureParameters(LossParameters):
    """``analysis.curvature``: Hessian spectra at weight snapshots of the pipeline ``curvature``.

    Attributes:
        eigenpairs: number of top eigenpairs.
        trace_draws: random vectors for trace and Frobenius norm.
        density_steps, density_draws: Lanczos steps, and random vectors, for the spectral density.
        diagonal_draws: random vectors for the diagonal that estimates are compared with.
        estimate_draws: draws of each random probe.
        surface_points: grid points along each of the two eigenvectors; odd.
        line_points: grid points on the line between two solutions.
    """

    eigenpairs: Annotated[int, Field(ge=2, strict=True)] = 2
    trace_draws: Annotated[int, Field(ge=2, strict=True)] = 16
    density_steps: Annotated[int, Field(ge=2, strict=True)] = 40
    density_draws: Annotated[int, Field(ge=2, strict=True)] = 4
    diagonal_draws: Annotated[int, Field(ge=8, strict=True)] = 128
    estimate_draws: Annotated[int, Field(ge=2, strict=True)] = 8
    surface_points: Annotated[int, Field(ge=3, strict=True)] = 21
    line_points: Annotated[int, Field(ge=3, strict=True)] = 41

    @model_validator(mode="after")
    def _centre_is_a_point(self) -> CurvatureParameters:
        if self.surface_points % 2 == 0:
            raise ValueError(f"surface_points must be odd, got {self.surface_points}")
        return self


class AnalysisParameters(Strict):
    """``analysis``: evaluation of training histories.

    Attributes:
        settled_within: a loss has converged when it first comes within this factor of its final
            level.
        train_accuracy_level: for classifiers, the first iteration with this training accuracy
            (a share) is reported.
        verdict: see :class:`VerdictParameters`.
        calibration: see :class:`CalibrationParameters`.
        fidelity: see :class:`FidelityParameters`.
        sharpness: see :class:`SharpnessParameters`.
        curvature: see :class:`CurvatureParameters`.
    """

    settled_within: Annotated[float, Field(gt=1)] = 10.0
    train_accuracy_level: Share = 0.999
    verdict: VerdictParameters = VerdictParameters()
    calibration: CalibrationParameters = CalibrationParameters()
    fidelity: FidelityParameters
    sharpness: SharpnessParameters = SharpnessParameters()
    curvature: CurvatureParameters = CurvatureParameters()
