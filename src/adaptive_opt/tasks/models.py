"""Networks of the study, in any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

__all__ = ["ResNet", "TransformerLanguageModel"]


class ResNet(nn.Module):
    """Residual network of basic blocks for small images.

    A 3×3 convolution with stride 1 and no max-pooling, stages of torchvision's
    :class:`~torchvision.models.resnet.BasicBlock`, global average pooling and a linear layer. All
    stages but the first halve the resolution. With widths 64, 128, 256, 512 and two blocks per
    stage, this is ResNet-18 as trained on CIFAR.

    Args:
        channels: channels of the images.
        classes: number of classes.
        widths: channels of each stage.
        blocks: number of blocks in each stage.

    Raises:
        ValueError: ``widths`` and ``blocks`` differ in length.

    Source: He et al., *Deep residual learning for image recognition* (2016).

    Example:
        >>> net = ResNet(3, 10, [64, 128, 256, 512], [2, 2, 2, 2])
        >>> sum(p.numel() for p in net.parameters())
        11173962
    """

    def __init__(
        self, channels: int, classes: int, widths: Sequence[int], blocks: Sequence[int]
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"{len(widths)} widths but {len(blocks)} numbers of blocks")
        width = widths[0]
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        for i, (out, count) in enumerate(zip(widths, blocks, strict=True)):
            stride = 1 if i == 0 else 2
            first = BasicBlock(width, out, stride, _shortcut(width, out, stride))
            stages.append(nn.Sequential(first, *(BasicBlock(out, out) for _ in range(count - 1))))
            width = out
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[batch, channels, height, width]`` to logits ``[batch, classes]``."""
        x = self.relu(self.bn1(self.conv1(images)))
        logits: Tensor = self.fc(self.stages(x).mean((2, 3)))
        return logits


def _shortcut(width: int, out: int, stride: int) -> nn.Module | None:
    if stride == 1 and width == out:
        return None
    return nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class TransformerLanguageModel(nn.Module):
    """Causal Transformer encoder for language modelling.

    ``embedding · √d`` plus sinusoidal positions, dropout, post-norm encoder layers with a causal
    mask, and a linear layer. Embedding and output weights start from U(−0.1, 0.1), the output
    bias from 0. All encoder layers start with the same weights, because
    :class:`torch.nn.TransformerEncoder` copies one layer.

    Args:
        words: size of the vocabulary.
        width: model dimension d, even.
        heads: number of attention heads; divides d.
        feedforward: hidden width of each feed-forward block.
        layers: number of encoder layers.
        dropout: rate for the embedded input, attention weights, feed-forward and residual
            branches.
        window: maximum input length in tokens.

    Source: Vaswani et al., *Attention is all you need* (2017).
    """

    positions: Tensor
    mask: Tensor

    def __init__(
        self,
        words: int,
        *,
        width: int,
        heads: int,
        feedforward: int,
        layers: int,
        dropout: float,
        window: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, heads, feedforward, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, words)
        self.register_buffer("positions", sinusoids(window, width), persistent=False)
        mask = nn.Transformer.generate_square_subsequent_mask(window)
        self.register_buffer("mask", mask, persistent=False)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        self._scale = math.sqrt(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[batch, length ≤ window]`` to logits ``[batch, length, words]``."""
        length = tokens.shape[1]
        x = self.embedding(tokens) * self._scale + self.positions[:length]
        mask = self.mask[:length, :length]
        x = self.encoder(self.dropout(x), mask=mask, is_causal=True)
        logits: Tensor = self.output(x)
        return logits


def sinusoids(length: int, width: int) -> Tensor:
    """Sines and cosines of positions, at geometrically spaced frequencies, ``[length, width]``.

    Example:
        >>> sinusoids(2, 2)
        tensor([[0.0000, 1.0000],
                [0.8415, 0.5403]])
    """
    position = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = torch.exp(-math.log(1e4) / width * torch.arange(0, width, 2, dtype=torch.float64))
    angles = position * frequency
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()
