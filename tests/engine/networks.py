"""Small networks and data for tests of the engine."""

import torch

from adaptive_opt.engine.network import run_network
from adaptive_opt.parameters import (
    ImageTaskParameters,
    TextTaskParameters,
    TrainingParameters,
    resolve_arm,
)
from adaptive_opt.tasks.images import ImageData
from adaptive_opt.tasks.text import TextData

SECOND = {"lr": 0.05, "beta2": 0.9, "rho": 0.1}
ARMS = {
    "sgdm": {"lr": 0.02},
    "adam": {"lr": 0.01, "beta2": 0.99},
    "sgd": {"lr": 0.1},
    "custom": {"optimizer": "torch.optim.Adamax", "lr": 0.01},
    **dict.fromkeys(("sophia", "sadh", "ssdh", "ssvp"), SECOND),
    **{arm: {"lr": 0.01} for arm in ("adamw", "amsgrad", "nadam")},
}


def images():
    """Three classes of noisy stripes, easy to classify."""
    generator = torch.Generator().manual_seed(0)

    def split(n):
        y = torch.arange(n) % 3
        x = 20 + 80 * torch.rand(n, 1, 6, 6, generator=generator)
        for k in range(3):
            x[y == k, :, 2 * k : 2 * k + 2] += 120
        return x.to(torch.uint8), y

    (x, y), valid, test = split(48), split(12), split(15)
    return ImageData(x, y, *valid, *test, torch.full((1,), 0.4), torch.full((1,), 0.25))


def text():
    """Words that mostly follow each other in order."""
    g = torch.Generator().manual_seed(0)

    def split(n):
        jumps = (torch.rand(n, generator=g) < 0.1) * torch.randint(7, (n,), generator=g)
        return (torch.arange(n) + jumps.cumsum(0)) % 7

    return TextData(split(400), split(60), split(61), vocabulary_size=7, sha256="00" * 32)


def task_parameters(task, **changes):
    """Parameters of the smallest networks that have every part."""
    common = {"epochs": 3, "seeds": 2, "log_every": 2, "target": 0.5, **changes}
    if task == "resnet18":
        sizes = {"widths": [4, 6], "blocks": [1, 1], "batch_size": 16, "crop_padding": 1}
        return ImageTaskParameters(**{**sizes, "flip": True, **common})
    sizes = {"width": 8, "heads": 2, "feedforward": 8, "layers": 1, "dropout": 0.1}
    sizes |= {"streams": 8, "window": 7, "max_grad_norm": 1.0}
    return TextTaskParameters(**{**sizes, **common})


def training_parameters(**changes):
    """Training on the CPU, with frequent statistics."""
    return TrainingParameters(**{"device": "cpu", "statistics_every": 4, **changes})


def train(
    task, arm, seeds=(0, 1), checkpoint=None, hyperparameters=None, sizes=None, snapshots=None,
    **training,
):  # fmt: skip
    """Train one arm on ``resnet18`` or ``transformer``."""
    settings = training_parameters(**training)
    arms = {**ARMS, arm: hyperparameters} if hyperparameters else ARMS
    return run_network(
        images() if task == "resnet18" else text(),
        task=task,
        arm=arm,
        **resolve_arm(arm, arms, settings),
        task_parameters=task_parameters(task, **(sizes or {})),
        training=settings,
        checkpoint=checkpoint,
        seeds=seeds,
        snapshots=snapshots,
    )
