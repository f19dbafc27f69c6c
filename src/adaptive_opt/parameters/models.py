"""Schemas of the parameters, one class a section; :mod:`.arms` has those of ``arms``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from adaptive_opt.study import get_task

from .analysis import AnalysisParameters
from .fields import Beta, Count, NonNegative, Positive, Share, Strict, Whole
from .resources import ResourcesParameters

__all__ = [
    "TASK_MODELS",
    "ImageTaskParameters",
    "LengthsParameters",
    "RRFunctionParameters",
    "StudyParameters",
    "TaskParameters",
    "TextTaskParameters",
    "TrackingParameters",
    "TrainingParameters",
    "target_losses",
    "task_parameters",
]


class RRFunctionParameters(Strict):
    """``rr_synthesis.<task>``: source of the task's function.

    Attributes:
        source: ``singular_values``, ``row_scaled`` or ``file``.
        path: an ``.npz`` or ``.pth`` file, for ``file``.
        condition: condition number of A. Above 1e10, float64 does not represent it to a relative
            error of 1e-6.
        x_dim, hidden_dim, y_dim: layer widths.
        layers: number of weight matrices.
        samples: number of rows of X.
        seed: seed of A and X.
    """

    source: Literal["singular_values", "row_scaled", "file"]
    path: str | None = None
    condition: Annotated[float, Field(ge=1, le=1e10)]
    x_dim: Count = 12
    hidden_dim: Count = 13
    y_dim: Count = 14
    layers: Annotated[int, Field(ge=2, strict=True)] = 2
    samples: Count = 1000
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0


class TaskParameters(Strict):
    """``tasks.<task>`` of a Rahimi–Recht task: training settings.

    Attributes:
        loss: ``rmse`` (as published) or ``mse``.
        batch_size: samples in a batch.
        epochs: length of a run.
        seeds: number of runs of each arm, trained as one ensemble.
        initialisation: ``per_seed``: each run has its own initial weights; ``shared`` (as
            published): all runs start from the function's weights.
        max_grad_norm: global norm to which gradients are clipped; None (as published): no
            clipping.
        target: root mean squared error of the time to target, for both losses.
        snapshot_epochs: epochs after which the weights are saved for the curvature analysis;
            epochs beyond the end of the run are ignored.
        snapshot_seeds: number of runs with snapshots, starting with the first seed.
    """

    loss: Literal["rmse", "mse"] = "rmse"
    batch_size: Count = 128
    epochs: Count
    seeds: Count
    initialisation: Literal["per_seed", "shared"] = "per_seed"
    max_grad_norm: Positive | None = None
    target: Positive
    snapshot_epochs: list[Whole] = Field(default=[])
    snapshot_seeds: Count = 1

    @property
    def target_loss(self) -> float:
        """The target as a value of the loss."""
        return self.target if self.loss == "rmse" else self.target**2


class NetworkTaskParameters(Strict):
    """Training settings of all network tasks.

    Attributes:
        epochs: length of a run.
        seeds: number of runs of each arm.
        log_every: iterations between two rows of the history; None: ``training.log_every``.
        evaluate_every: epochs between two evaluations on the validation data; can be a fraction.
        max_grad_norm: global norm to which gradients are clipped; None: no clipping. See also
            ``training.clip_curvature``.
        target: training loss of the time to target.
        snapshot_epochs, snapshot_seeds: see :class:`TaskParameters`.
    """

    epochs: Count
    seeds: Count
    log_every: Count | None = None
    evaluate_every: Positive = 1
    max_grad_norm: Positive | None = None
    target: Positive
    snapshot_epochs: list[Whole] = Field(default=[])
    snapshot_seeds: Count = 1

    @property
    def target_loss(self) -> float:
        """The target as a value of the loss."""
        return self.target


class ImageTaskParameters(NetworkTaskParameters):
    """``tasks.<task>`` of a residual network on images.

    Attributes:
        widths: number of channels of each stage.
        blocks: number of residual blocks of each stage.
        batch_size: images in a batch.
        crop_padding: maximum random shift of training images, in pixels.
        flip: whether to mirror training images at random.
    """

    widths: Annotated[list[Count], Field(min_length=1)]
    blocks: Annotated[list[Count], Field(min_length=1)]
    batch_size: Annotated[int, Field(ge=2, strict=True)]
    crop_padding: Whole = 0
    flip: bool = False

    @model_validator(mode="after")
    def _one_number_a_stage(self) -> ImageTaskParameters:
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths has {len(self.widths)} stages and blocks {len(self.blocks)}; "
                "give both the same number"
            )
        return self


class TextTaskParameters(NetworkTaskParameters):
    """``tasks.<task>`` of a Transformer on text.

    Attributes:
        width: width of embeddings and layers; even.
        heads: number of attention heads; a divisor of ``width``.
        feedforward: hidden width of the feedforward networks.
        layers: number of encoder layers.
        dropout: dropout rate.
        streams: number of text streams in a batch.
        window: tokens of each stream in a batch.
    """

    width: Annotated[int, Field(ge=2, multiple_of=2, strict=True)]
    heads: Count
    feedforward: Count
    layers: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    streams: Count
    window: Count

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TextTaskParameters:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        return self


AnyTaskParameters = TaskParameters | ImageTaskParameters | TextTaskParameters

TASK_MODELS: dict[str, type[AnyTaskParameters]] = {
    "rahimi_recht": TaskParameters,
    "images": ImageTaskParameters,
    "text": TextTaskParameters,
}


def task_parameters(task: str, tasks: dict[str, Any]) -> Any:
    """Return ``tasks.<task>`` in the schema of the task's family."""
    return TASK_MODELS[get_task(task).family](**tasks[task])


def target_losses(tasks: dict[str, Any]) -> dict[str, float]:
    """Return the target of every task under ``tasks``, as a training loss."""
    return {name: float(task_parameters(name, tasks).target_loss) for name in tasks}


class LengthsParameters(Strict):
    """``training.lengths.<task>``: additional training lengths, as shares of the full length.

    Attributes:
        arms: lengths of all arms except placebos; at most 1.
        placebos: lengths of placebo arms; at most 1.
        reference: further lengths of the published first-order arms. At lengths above 1, one
            seed of each search is trained.
    """

    arms: list[Share] = Field(default=[0.0625, 0.125, 0.25, 0.5])
    placebos: list[Share] = Field(default=[0.25, 0.5])
    reference: list[Annotated[float, Field(gt=0, le=16)]] = Field(default=[2.0])


class TrainingParameters(Strict):
    """``training``: settings of all runs.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        schedule: learning rate schedule: ``cosine`` by iteration, ``cosine_by_epoch`` (as
            published) or ``constant``.
        schedule_floor: final learning rate of the cosine, as a share of the initial one.
        log_every: iterations between two rows of the history.
        statistics_every: iterations between two measurements of the optimizer's statistics.
        hessian_every: iterations between two exact Hessians on Rahimi–Recht tasks; 0: none.
        hessian_of: arms with exact Hessians: ``every_arm``, or ``published`` (all but placebos).
        diverged_above: a run whose loss exceeds this multiple of its first loss is frozen.
        beta1: default decay rate of the gradient's moving average, for arms without their own.
        update_period: default k, the number of iterations between two curvature updates.
        clip_curvature: whether clipping a gradient also scales the curvature by the same factor;
            false as published.
        precision: precision of first-order computations on networks: ``fp32``, ``tf32`` or
            ``bf16``. Curvature is always computed in fp32.
        channels_last: whether images have the memory format ``torch.channels_last``.
        compile: whether first-order computations on networks use ``torch.compile``.
        curvature_share: share of each batch used for a network's curvature.
        ensemble: whether the seeds of a network train ``together`` as one program, ``apart`` one
            after the other, or ``auto``: together if the network is small.
        lengths: additional training lengths by task, each with a complete schedule; the default
            of a task is :class:`LengthsParameters`.
        checkpoint_seconds: seconds between two checkpoints.
        resume: whether interrupted runs resume from their checkpoints and finished runs are
            kept; false: every run starts again.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    schedule: Literal["cosine", "cosine_by_epoch", "constant"] = "cosine"
    schedule_floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    log_every: Count = 10
    statistics_every: Count = 100
    hessian_every: Whole = 100
    hessian_of: Literal["every_arm", "published"] = "every_arm"
    diverged_above: Annotated[float, Field(gt=1)] = 1e6
    beta1: Beta = 0.9
    update_period: Count = 10
    clip_curvature: bool = True
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    curvature_share: Share = 1.0
    ensemble: Literal["auto", "together", "apart"] = "auto"
    lengths: dict[str, LengthsParameters] = Field(default={})
    checkpoint_seconds: NonNegative = 60.0
    resume: bool = True


class TrackingParameters(Strict):
    """``tracking``: recording in MLflow; no result depends on it.

    Attributes:
        enabled: whether to record at all.
        points: number of intervals of a curve; the first point of each is kept, and the last.
        live_seconds: seconds between two updates of a training's curves.
        wait_seconds: how long the end of a run waits for MLflow to accept the remaining records.
        artifacts: whether to copy reports, tables, figures and best configurations to MLflow.
    """

    enabled: bool = True
    points: Count = 60
    live_seconds: NonNegative = 10.0
    wait_seconds: NonNegative = 20.0
    artifacts: bool = True


class StudyParameters(Strict):
    """All parameters. The entries of ``data``, ``tasks`` and ``arms`` have their own schemas."""

    scale: str
    rr_synthesis: dict[str, RRFunctionParameters]
    data: dict[str, dict[str, Any]]
    tasks: dict[str, dict[str, Any]]
    training: TrainingParameters
    analysis: AnalysisParameters
    arms: dict[str, dict[str, dict[str, Any]]]
    tuning: dict[str, Any]
    tracking: TrackingParameters = TrackingParameters()
    resources: ResourcesParameters = ResourcesParameters()
