"""Which test accuracy and perplexity does a plain loop with Adam reach at a scale of the study?

The loop below uses nothing of this project but the models and the readers of the data, so it checks
the study's own training. It trains with ``torch.optim.Adam`` and a cosine schedule down to a tenth
of the learning rate. It tries some learning rates, takes the one with the lowest validation loss,
and trains further seeds with it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from _common import parser, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from adaptive_opt.parameters.data import ImageDataParameters, TextDataParameters
from adaptive_opt.tasks.images import load_images
from adaptive_opt.tasks.models import ResNet, TransformerLanguageModel
from adaptive_opt.tasks.text import load_text

PROJECT = Path(__file__).parents[1]
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
EVALUATION_BATCH = 500

Batches = Iterator[tuple[Tensor, Tensor]]


def parameters(scale: str) -> dict[str, Any]:
    """Return a section of each task: the file of ``base``, then that of the scale."""
    merged: dict[str, Any] = {"data": {}, "tasks": {}}
    files = sorted((PROJECT / "conf" / "base").glob("parameters_*.yml"))
    for file in [*files, PROJECT / "conf" / scale / "parameters.yml"]:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for section, own in merged.items():
            for task in ("resnet18", "transformer"):
                own[task] = own.get(task, {}) | content.get(section, {}).get(task, {})
    return merged


class Images:
    """ResNet: random crops and flips of the training images."""

    name, measure = "resnet18", "test accuracy"

    def __init__(self, data: dict[str, Any], task: dict[str, Any], raw: Path) -> None:
        self.data, classes = load_images(ImageDataParameters(**data), raw)
        self.task, self.classes = task, len(classes)

    def model(self) -> nn.Module:
        """Make a new network."""
        channels = self.data.x_train.shape[1]
        return ResNet(channels, self.classes, self.task["widths"], self.task["blocks"])

    def _scaled(self, x: Tensor) -> Tensor:
        scaled = x.float() / 255
        return (scaled - self.data.mean.view(1, -1, 1, 1)) / self.data.std.view(1, -1, 1, 1)

    def train(self) -> Batches:
        """Yield the batches of one epoch."""
        size, padding = self.task["batch_size"], self.task["crop_padding"]
        x, y = self.data.x_train, self.data.y_train
        for rows in torch.randperm(len(y)).split(size):
            if len(rows) < size:
                return
            images = pad(self._scaled(x[rows]), [padding] * 4)
            side = x.shape[-1]
            down, right = torch.randint(2 * padding + 1, (2, size)).tolist()
            crops = [
                i[:, d : d + side, r : r + side]
                for i, d, r in zip(images, down, right, strict=True)
            ]
            flipped = [c.flip(-1) if torch.rand(()) < 0.5 else c for c in crops]
            yield torch.stack(flipped if self.task["flip"] else crops), y[rows]

    def held_out(self, split: str) -> Batches:
        """Yield a held-out split without random changes."""
        x, y = getattr(self.data, f"x_{split}"), getattr(self.data, f"y_{split}")
        for rows in torch.arange(len(y)).split(EVALUATION_BATCH):
            yield self._scaled(x[rows]), y[rows]

    @staticmethod
    def value(loss_and_accuracy: tuple[float, float]) -> float:
        """Accuracy in percent."""
        return 100 * loss_and_accuracy[1]


class Text:
    """Transformer: consecutive windows of parallel streams."""

    name, measure = "transformer", "test perplexity"

    def __init__(self, data: dict[str, Any], task: dict[str, Any], raw: Path) -> None:
        self.data, self.task = load_text(TextDataParameters(**data), raw), task

    def model(self) -> nn.Module:
        """Make a new network."""
        names = ("width", "heads", "feedforward", "layers", "dropout", "window")
        options = {name: self.task[name] for name in names}
        return TransformerLanguageModel(self.data.vocabulary_size, **options)

    def _windows(self, words: Tensor) -> Batches:
        streams, window = self.task["streams"], self.task["window"]
        length = (len(words) - 1) // streams
        x = words[: streams * length].view(streams, length)
        y = words[1 : streams * length + 1].view(streams, length)
        for start in range(0, length, window):
            yield x[:, start : start + window], y[:, start : start + window]

    def train(self) -> Batches:
        """Yield the batches of one epoch."""
        return self._windows(self.data.train)

    def held_out(self, split: str) -> Batches:
        """Yield a held-out split."""
        return self._windows(getattr(self.data, split))

    @staticmethod
    def value(loss_and_accuracy: tuple[float, float]) -> float:
        """Perplexity."""
        return math.exp(loss_and_accuracy[0])


def train(task: Images | Text, rate: float, seed: int) -> nn.Module:
    """Train a new network with Adam."""
    torch.manual_seed(seed)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    epochs = task.task["epochs"]
    steps = epochs * sum(1 for _ in task.train())
    torch.manual_seed(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=rate / 10)
    for _ in range(epochs):
        for x, y in task.train():
            optimizer.zero_grad()
            cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
            optimizer.step()
            schedule.step()
    return model


@torch.no_grad()
def evaluate(task: Images | Text, model: nn.Module, split: str) -> tuple[float, float]:
    """Mean loss and accuracy over a held-out split."""
    model.eval()
    loss = right = terms = 0.0
    for x, y in task.held_out(split):
        logits, labels = model(x).flatten(0, -2), y.flatten()
        loss += float(cross_entropy(logits, labels, reduction="sum"))
        right += float((logits.argmax(-1) == labels).sum())
        terms += len(labels)
    return loss / terms, right / terms


def measure(task: Images | Text, rates: list[float], seeds: int, say: Callable[[str], Any]) -> Any:
    """Choose the learning rate, then train the seeds."""
    losses = {}
    for rate in rates:
        losses[rate], _ = evaluate(task, train(task, rate, 0), "valid")
        say(f"{task.name}: learning rate {rate:g}, validation loss {losses[rate]:.4f}")
    best = min(losses, key=losses.__getitem__)
    found = []
    for seed in range(1, seeds + 1):
        found.append(task.value(evaluate(task, train(task, best, seed), "test")))
        say(f"{task.name}: learning rate {best:g}, seed {seed}, {task.measure} {found[-1]:.2f}")
    spread = statistics.stdev(found) if seeds > 1 else 0.0
    say(f"{task.name}: {task.measure} {statistics.fmean(found):.2f} ± {spread:.2f}")
    return {"valid_losses": losses, "lr": best, "measure": task.measure, "values": found}


def main() -> None:
    """Train and print."""
    line = parser(__doc__, "--scale evening --images data/01_raw/cifar10.npz")
    line.add_argument("--scale", default="evening", help="folder of conf/")
    line.add_argument("--images", type=Path, help="an .npz file in place of the scale's images")
    line.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates")
    line.add_argument("--seeds", type=int, default=3)
    options = line.parse_args()
    torch.set_num_threads(1)
    given = parameters(options.scale)
    if options.images:
        given["data"]["resnet18"] |= {"source": "npz", "path": str(options.images)}
    raw = PROJECT / "data" / "01_raw"
    found = {}
    for kind in (Images, Text):
        task = kind(given["data"][kind.name], given["tasks"][kind.name], raw)
        found[kind.name] = measure(task, list(options.rates), options.seeds, print)
    write(options.json, {"scale": options.scale, "tasks": found})


if __name__ == "__main__":
    main()
