"""The sections of the parameters, one class each; those of arms are in :mod:`.arms`."""

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
    """``rr_synthesis.<task>``: where the task's function comes from.

    Attributes:
        source: ``singular_values``, ``row_scaled`` or ``file``.
        path: for ``file``: an ``.npz`` or ``.pth``.
        condition: condition number of A, at most 1e10: beyond it float64 does not hold it
            to a millionth.
        x_dim, hidden_dim, y_dim: layer widths.
        layers: number of weight matrices.
        samples: rows of X.
        seed: of the draw.
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
    """``tasks.<task>`` of a Rahimi–Recht task: how it is trained.

    Attributes:
        loss: ``rmse`` as published, or ``mse``.
        batch_size: samples a batch.
        epochs: length of a run.
        seeds: number of runs of each arm, trained as one ensemble.
        initialisation: ``per_seed``: each run draws its own weights; ``shared``: all start
            from the function's, as published.
        max_grad_norm: gradients are clipped to this global norm; None, as published: not.
        target: the root mean squared error whose first passage is reported, whichever the
            loss.
        snapshot_epochs: after so many epochs weights are kept for the analysis of curvature; those
            beyond the end are left out.
        snapshot_seeds: number of runs of which they are, the first ones.
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
    """What the tasks with networks share.

    Attributes:
        epochs: length of a run.
        seeds: number of runs of each arm.
        log_every: iterations between two rows of the history; None: as ``training`` says.
        evaluate_every: epochs, or a part of one, between two looks at the validation data.
        max_grad_norm: gradients are clipped to this global norm, and curvature as
            ``training.clip_curvature`` says.
        target: the training loss whose first passage is reported.
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
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        batch_size: images a batch.
        crop_padding: training images are shifted at random by up to this many pixels.
        flip: training images are mirrored at random.
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
        width: of embeddings and layers, even.
        heads: of the attention; a divisor of ``width``.
        feedforward: hidden width of the perceptrons.
        layers: number of them.
        dropout: rate.
        streams: of text in a batch.
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
    """The section of a task under ``tasks``, in the type of its family."""
    return TASK_MODELS[get_task(task).family](**tasks[task])


def target_losses(tasks: dict[str, Any]) -> dict[str, float]:
    """Of every task under ``tasks`` the target that its parameters name, as a training loss."""
    return {name: float(task_parameters(name, tasks).target_loss) for name in tasks}


class LengthsParameters(Strict):
    """``training.lengths.<task>``: shares of the full length at which arms are trained too.

    Attributes:
        arms: of every arm but placebos, below 1.
        placebos: of placebo arms, below 1.
        reference: of the published first-order arms besides; those above 1 only by one run of
            each search.
    """

    arms: list[Share] = Field(default=[0.0625, 0.125, 0.25, 0.5])
    placebos: list[Share] = Field(default=[0.25, 0.5])
    reference: list[Annotated[float, Field(gt=0, le=16)]] = Field(default=[2.0])


class TrainingParameters(Strict):
    """``training``: what holds for every run.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        schedule: of the learning rate: ``cosine`` by iteration, ``cosine_by_epoch`` as
            published, or ``constant``.
        schedule_floor: what the cosine falls to, as a share of the learning rate.
        log_every: iterations between two rows of the history.
        statistics_every: iterations between two looks into the optimizer.
        hessian_every: iterations between two exact Hessians on the Rahimi–Recht tasks; 0: none.
        hessian_of: which arms have those: ``every_arm``, or ``published``: all but placebos.
        diverged_above: a run whose loss exceeds this multiple of its first is frozen.
        beta1: smoothing of the gradient where an arm does not set its own.
        update_period: k, likewise.
        clip_curvature: where gradients are clipped, curvature is scaled by the same factor;
            false, as published: it is not.
        precision: of first-order work on networks: ``fp32``, ``tf32`` or ``bf16``; curvature
            is always computed in fp32.
        channels_last: memory order of images.
        compile: whether first-order passes of networks go through ``torch.compile``.
        curvature_share: part of each batch that a network's curvature is computed on.
        ensemble: seeds of a network are trained ``together`` as one program, ``apart``, or
            ``auto``: together if it is small.
        lengths: by task, the shares of its full length that arms are trained at besides, each
            with its whole schedule; a task that is not named has the defaults of
            :class:`LengthsParameters`.
        checkpoint_seconds: between two checkpoints.
        resume: whether a run goes on from its checkpoint, and is left out where it is
            finished; false: every run starts anew.
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
    """``tracking``: what is recorded in MLflow; no result depends on it.

    Attributes:
        enabled: whether anything is.
        points: parts that a curve is divided into; it keeps one point of each, and the last.
        live_seconds: between two updates of the curves of a training.
        wait_seconds: that a run waits at its end for MLflow to take the rest.
        artifacts: whether reports, tables, figures and best configurations are copied there.
    """

    enabled: bool = True
    points: Count = 60
    live_seconds: NonNegative = 10.0
    wait_seconds: NonNegative = 20.0
    artifacts: bool = True


class StudyParameters(Strict):
    """All parameters; those of tasks, data and arms are checked by their own classes."""

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
