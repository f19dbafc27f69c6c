"""The section ``analysis`` of the parameters."""

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
    """``analysis.verdict``: how arms are compared.

    Attributes:
        margin: arms whose speeds differ by no more than this share are equivalent.
        confidence: of the intervals; tests are at one minus it.
        constant_margin: a search, or a run, has learnt nothing whose validation loss is not at
            least this share below that of a constant prediction.
    """

    margin: Annotated[float, Field(gt=0, lt=1)] = 0.1
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    constant_margin: Annotated[float, Field(ge=0, lt=1)] = 0.02


class CalibrationParameters(Strict):
    """``analysis.calibration``: seconds a step of every arm, measured side by side.

    Attributes:
        rounds: in each, every arm has a turn, in alternating order.
        update_periods: of a turn.
    """

    rounds: Annotated[int, Field(ge=3, strict=True)] = 5
    update_periods: Count = 2


class FidelityParameters(Strict):
    """``analysis.fidelity``: curvature estimates against the exact diagonal.

    Attributes:
        seeds: runs that are followed, the first ones of the task.
        iterations: where to look; of each the last refresh up to it, so that those beyond the
            end of a run come to its last refresh.
        draws: of each random probe, for what one draw is worth.
        paths: independent sequences of draws, for what their running mean is worth.
    """

    seeds: Count = 2
    iterations: Annotated[list[Whole], Field(min_length=1)]
    draws: Annotated[int, Field(ge=2, strict=True)] = 256
    paths: Annotated[int, Field(ge=2, strict=True)] = 8


class LossParameters(Strict):
    """Of which loss curvature is measured, and how well.

    Attributes:
        batches: of training data, as many as there are at most.
        samples: images, or streams of text, of each batch, the first ones; None: all.
        micro_batch: images, or streams of text, at a time.
        precision: ``fp32`` or ``fp64``.
        tolerance: of the residual ``‖Hv − λv‖ / |λ|`` above which a pair is marked.
    """

    batches: Count = 4
    samples: Count | None = None
    micro_batch: Count = 64
    precision: Literal["fp32", "fp64"] = "fp32"
    tolerance: Positive = 1e-2


class SharpnessParameters(LossParameters):
    """``analysis.sharpness``: top eigenvalues along training, of every study.

    Attributes:
        products: with a matrix, at most, for its top eigenvalue.
    """

    batches: Count = 1
    products: Count = 30


class CurvatureParameters(LossParameters):
    """``analysis.curvature``: spectra at the weights that training left on the way.

    Attributes:
        eigenpairs: number of them.
        trace_draws: random vectors for trace and Frobenius norm.
        density_steps, density_draws: Lanczos steps, and random vectors, for the spectral density.
        diagonal_draws: random vectors for the diagonal that estimates are compared with.
        estimate_draws: of each random probe.
        surface_points: along each of the two eigenvectors, odd.
        line_points: between two solutions.
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
    """``analysis``: how histories become tables.

    Attributes:
        settled_within: the loss has stopped moving where it first comes within this factor
            of its final level.
        train_accuracy_level: the training accuracy, a share, whose first passage is told of
            networks that classify.
        verdict: how arms are compared.
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
