"""Next-word prediction with a Transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from adaptive_opt.errors import StudyError

from .models import TransformerLanguageModel
from .networks import Batch, Execution, NetworkTask, fixed_sample, frequency_loss
from .text import TextData

__all__ = ["LanguageModelling"]

EVALUATION_WINDOWS = 256

TRAINING_SAMPLE = 16_384
"""Approximate number of training tokens in the sample for the final training loss."""


class LanguageModelling(NetworkTask):
    """Train a Transformer on text, window by window.

    The training text is cut into ``streams`` of equal length. A batch holds the next ``window``
    tokens of every stream (truncated backpropagation through time; a Transformer carries no state
    between windows). All members read the same batches, in the order of the text. They differ in
    initial weights and in dropout, which uses torch's global generator. The last window of an
    epoch may be shorter. Held-out text is read in windows of the same length, each token once.

    Args:
        data: the text.
        width, heads, feedforward, layers, dropout: see :class:`.models.TransformerLanguageModel`.
        streams: number of streams, the batch size.
        window: tokens per window.
        weight_seeds: one per member, for its initial weights.
        execution: device and precision.

    Raises:
        StudyError: the training text is shorter than one batch, or a held-out text than two
            tokens.
    """

    own_batches = False

    def __init__(
        self,
        data: TextData,
        *,
        width: int,
        heads: int,
        feedforward: int,
        layers: int,
        dropout: float,
        streams: int,
        window: int,
        weight_seeds: Sequence[int],
        execution: Execution,
    ) -> None:
        check_length(data, streams, window)
        super().__init__(
            lambda: TransformerLanguageModel(
                data.vocabulary_size,
                width=width,
                heads=heads,
                feedforward=feedforward,
                layers=layers,
                dropout=dropout,
                window=window,
            ),
            weight_seeds,
            execution,
        )
        length = len(data.train) // streams
        self._window = window
        self._train = data.train[: streams * length].view(streams, length).to(self.device)
        self._held_out = {"valid": data.valid.to(self.device), "test": data.test.to(self.device)}
        # A sample of windows from the whole text, each with the token that follows it.
        windows = (len(data.train) - 1) // window
        sample = fixed_sample(windows, max(1, TRAINING_SAMPLE // window))
        self._sample = data.train.unfold(0, window + 1, window)[sample].to(self.device)
        self.batches_per_epoch = -(-(length - 1) // window)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Windows and their next tokens, ``[streams, window]`` each; the same in every epoch."""
        del number
        last = self._train.shape[1] - 1
        for first in range(start * self._window, last, self._window):
            end = min(first + self._window, last)
            yield self._train[:, first:end], self._train[:, first + 1 : end + 1]

    def part(self, batch: Batch, share: float) -> Batch:
        """The first streams of a batch, at least one."""
        count = max(1, round(share * len(batch[0])))
        return batch[0][:count], batch[1][:count]

    def evaluation(self, split: str) -> Iterator[Batch]:
        """All windows of a split; of ``train``, a fixed sample of windows."""
        if split == "train":
            for piece in self._sample.split(EVALUATION_WINDOWS):
                yield piece[:, :-1], piece[:, 1:]
            return
        tokens, window = self._held_out[split], self._window
        whole = (len(tokens) - 1) // window * window
        inputs, targets = tokens[:whole].view(-1, window), tokens[1 : whole + 1].view(-1, window)
        if whole:
            yield from zip(
                inputs.split(EVALUATION_WINDOWS), targets.split(EVALUATION_WINDOWS), strict=True
            )
        if whole < len(tokens) - 1:
            yield tokens[None, whole:-1], tokens[None, whole + 1 :]

    def constant_loss(self, split: str) -> float:
        """Cross-entropy of always predicting the word frequencies of the training text."""
        targets = self._sample[:, 1:] if split == "train" else self._held_out[split][1:]
        return frequency_loss(self._train, targets)

    def evaluate(self, weights: Sequence[Tensor], split: str) -> dict[str, Tensor]:
        """Loss and perplexity (its exponential) over a split, ``[members]`` each."""
        found = super().evaluate(weights, split)
        return {**found, f"{split}_perplexity": found[f"{split}_loss"].exp()}


def check_length(data: TextData, streams: int, window: int) -> None:
    """Check that every split has enough tokens.

    Raises:
        StudyError: the training text has fewer than ``streams · (window + 1)`` tokens, or a
            held-out text fewer than two.
    """
    if len(data.train) < streams * (window + 1):
        raise StudyError(
            f"the training text has {len(data.train):,} tokens, too few for one batch of "
            f"{streams} streams of {window} tokens; lower streams or window, or give more text"
        )
    for name, tokens in (("validation", data.valid), ("test", data.test)):
        if len(tokens) < 2:
            raise StudyError(f"the {name} text has {len(tokens)} tokens; at least 2 are needed")
