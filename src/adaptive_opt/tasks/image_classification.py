"""Image classification with a residual network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .images import ImageData
from .models import ResNet
from .networks import Batch, Execution, NetworkTask, fixed_sample, frequency_loss

__all__ = ["ImageClassification"]

EVALUATION_BATCH = 1000

TRAINING_SAMPLE = 1024
"""Number of training images in the sample for the final training loss."""

SAFE_WIDTH = 16
"""Minimum number of channels for the channels-last memory format on CPUs.

Below it, oneDNN's weight gradient of a strided 1×1 convolution writes past the end of a buffer
(oneDNN #6035, as of 3.12)."""


class ImageClassification(NetworkTask):
    """Train a ResNet on images that stay on the device.

    Each member has its own random order of the training images. In every epoch, each image is
    shifted at random within a margin of ``crop_padding`` black pixels and, if ``flip``, mirrored
    with probability ½; one gather augments a whole batch. The last batch of an epoch may be
    smaller. Pixels are normalised with the channel means and standard deviations of the training
    images. The member's seed and the epoch determine order, shifts and mirroring.

    Args:
        data: the images.
        widths, blocks: see :class:`.models.ResNet`.
        batch_size: images per batch.
        crop_padding: margin in pixels; 0 disables shifts.
        flip: whether to mirror images.
        weight_seeds: one per member, for its initial weights.
        order_seed: maps (member, epoch) to the seed of that epoch's random choices.
        execution: device and precision. On a CPU, ``channels_last`` is ignored if a stage is
            narrower than :data:`SAFE_WIDTH`.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        batch_size: int,
        crop_padding: int,
        flip: bool,
        weight_seeds: Sequence[int],
        order_seed: Callable[[int, int], int],
        execution: Execution,
    ) -> None:
        channels, classes = data.x_train.shape[1], data.classes
        if execution.device.type == "cpu" and min(widths[:-1], default=SAFE_WIDTH) < SAFE_WIDTH:
            execution = replace(execution, channels_last=False)
        super().__init__(lambda: ResNet(channels, classes, widths, blocks), weight_seeds, execution)
        self.samples = len(data.y_train)
        self.batch_size = min(batch_size, self.samples)
        # A single last image joins the batch before: it has no batch statistics.
        whole, rest = divmod(self.samples, self.batch_size)
        self.batches_per_epoch = max(1, whole + (rest > 1))
        self._padding, self._flip, self._order_seed = crop_padding, flip, order_seed
        self._size = (data.x_train.shape[2], data.x_train.shape[3])
        # Channels last, so that gathered batches are in this memory format without a copy.
        images = data.x_train.permute(0, 2, 3, 1)
        margin = (0, 0, crop_padding, crop_padding, crop_padding, crop_padding)
        self._images = torch.nn.functional.pad(images, margin).to(self.device)
        self._labels = data.y_train.to(self.device)
        sample = fixed_sample(self.samples, TRAINING_SAMPLE)
        held_out = {
            "train": (data.x_train[sample], data.y_train[sample]),
            "valid": (data.x_valid, data.y_valid),
            "test": (data.x_test, data.y_test),
        }
        self._held_out = {
            name: (x.permute(0, 2, 3, 1).contiguous().to(self.device), y.to(self.device))
            for name, (x, y) in held_out.items()
        }
        self._mean = (255 * data.mean).to(self.device)
        self._scale = (255 * data.std.clamp_min(1e-3)).reciprocal().to(self.device)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches of images ``[members, batch, C, H, W]`` and labels ``[members, batch]``."""
        draws = [self._draw_augmentation(m, number) for m in range(self.members)]
        index, shift, mirror = (
            torch.stack(part).to(self.device) for part in zip(*draws, strict=True)
        )
        for i in range(start, self.batches_per_epoch):
            last = i == self.batches_per_epoch - 1
            end = self.samples if last else (i + 1) * self.batch_size
            chosen = slice(i * self.batch_size, end)
            yield self._gather_batch(index[:, chosen], shift[:, chosen], mirror[:, chosen])

    def _draw_augmentation(self, member: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Order ``[N]``, shifts ``[N, 2]`` and mirror flags ``[N]`` of a member in an epoch."""
        stream = torch.Generator().manual_seed(self._order_seed(member, epoch))
        order = torch.randperm(self.samples, generator=stream)
        shift = torch.randint(2 * self._padding + 1, (self.samples, 2), generator=stream)
        mirror = torch.rand(self.samples, generator=stream) < 0.5 * self._flip
        return order, shift, mirror

    def _gather_batch(self, index: Tensor, shift: Tensor, mirror: Tensor) -> Batch:
        height, width = self._size
        rows = shift[..., 0, None] + torch.arange(height, device=self.device)
        columns = torch.arange(width, device=self.device).expand(*index.shape, width)
        columns = torch.where(mirror[..., None], width - 1 - columns, columns)
        columns = shift[..., 1, None] + columns
        pixels = self._images[index[..., None, None], rows[..., None], columns[..., None, :]]
        return self._normalise(pixels), self._labels[index]

    def _normalise(self, pixels: Tensor) -> Tensor:
        images = (pixels.float() - self._mean).mul_(self._scale).movedim(-1, -3)
        if self.execution.channels_last:
            return images
        # contiguous() would not copy one-channel images: they are contiguous in both formats,
        # and convolutions would use channels last.
        return images.clone(memory_format=torch.contiguous_format)

    def part(self, batch: Batch, share: float) -> Batch:
        """The first images of each member's batch, at least two; their order is random."""
        count = max(2, round(share * batch[1].shape[1]))
        return batch[0][:, :count], batch[1][:, :count]

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Unaugmented images of a split, ``[batch, C, H, W]``; of ``train``, a fixed sample."""
        images, labels = self._held_out[split]
        for x, y in zip(
            images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True
        ):
            yield self._normalise(x), y

    def constant_loss(self, split: str) -> float:
        """Cross-entropy of always predicting the class frequencies of the training images."""
        return frequency_loss(self._labels, self._held_out[split][1])

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``accuracy``: fraction of images whose largest logit is that of their class."""
        return {"accuracy": (logits.argmax(-1) == targets).float().mean()}
