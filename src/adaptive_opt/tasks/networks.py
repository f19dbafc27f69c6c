"""Network tasks: losses and batches of an ensemble of networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from adaptive_opt.curvature.arithmetic import matrix_units, written_out_encoder
from adaptive_opt.errors import StudyError
from adaptive_opt.optim import FastDoubleBackward, SampledLoss, sampled_cross_entropy

__all__ = ["Execution", "NetworkTask", "fixed_sample", "frequency_loss"]

Batch = tuple[Tensor, Tensor]


def fixed_sample(total: int, size: int) -> Tensor:
    """Sorted indices of a random sample without replacement; the same in every call.

    Example:
        >>> fixed_sample(3, size=5).tolist()
        [0, 1, 2]
    """
    if total <= size:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(total, generator=generator)[:size].sort().values


def frequency_loss(training: Tensor, targets: Tensor) -> float:
    r"""Cross-entropy of always predicting the training frequencies, with add-one smoothing.

    −mean over the targets y of ln((n_y + 1) / (Σ n_c + C)), where n_c is the number of training
    targets of class c among C classes.

    Example:
        >>> balanced = torch.tensor([0, 1, 0, 1])
        >>> round(frequency_loss(balanced, balanced), 4)
        0.6931
    """
    training, targets = training.reshape(-1), targets.reshape(-1)
    classes = int(torch.maximum(training.max(), targets.max())) + 1
    counts = torch.bincount(training, minlength=classes).double() + 1
    return float(-(counts / counts.sum()).log()[targets].mean())


NOT_HIDDEN = ("embedding", "output", "fc")
"""First and last modules of the networks in :mod:`.models`, by attribute name."""


@dataclass(frozen=True)
class Execution:
    """Device, precision and memory format; the same for every arm.

    Attributes:
        device: device of parameters and data.
        precision: of first-order passes: ``fp32``; ``tf32`` (CUDA's matrix units on 32-bit
            numbers; elsewhere like fp32); ``bf16`` (autocast). Hessian-vector products always
            use fp32.
        channels_last: whether images and convolution weights use this memory format.
        compile: whether ``torch.compile`` compiles first-order forward and backward passes.
        curvature_share: fraction of each batch that curvature is computed on.
    """

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    curvature_share: float = 1.0


class NetworkTask:
    """An ensemble of networks and its losses.

    Parameters and buffers have a leading member dimension. A single member runs as a plain
    module; several run through ``vmap``, each with its own buffers (running statistics of batch
    normalisation). Subclasses define the batches.

    Args:
        build: returns a new module with initial weights from torch's global generator.
        weight_seeds: one per member.
        execution: device and precision.

    Raises:
        RuntimeError: members differ in shape.
    """

    measures_train_loss = False
    resumes_within_epoch = True
    batches_per_epoch: int

    def __init__(
        self, build: Callable[[], nn.Module], weight_seeds: Sequence[int], execution: Execution
    ) -> None:
        self.build = build
        self.execution, self.device = execution, execution.device
        self.members = len(weight_seeds)
        modules = []
        with torch.random.fork_rng(devices=[]):
            for seed in weight_seeds:
                torch.manual_seed(seed)
                modules.append(build())
        self.names = [name for name, _ in modules[0].named_parameters()]
        self.hidden = [
            p.ndim >= 2 and name.split(".")[0] not in NOT_HIDDEN
            for name, p in modules[0].named_parameters()
        ]
        self._initial = [self._stack(modules, "parameters", name) for name in self.names]
        buffers = [name for name, _ in modules[0].named_buffers()]
        self.buffers = {name: self._stack(modules, "buffers", name) for name in buffers}
        self._module = modules[0].to("meta")
        self.batch_metrics: dict[str, Tensor] = {}
        self._compiled = torch.compile(self._losses) if execution.compile else self._losses

    def _stack(self, modules: list[nn.Module], kind: str, name: str) -> Tensor:
        each = [dict(getattr(m, f"named_{kind}")())[name].detach() for m in modules]
        stacked = torch.stack(each).to(self.device)
        if self.execution.channels_last and stacked.ndim == 5 and self.members == 1:
            stacked = stacked[0].to(memory_format=torch.channels_last).unsqueeze(0)
        return stacked

    def initial_parameters(self) -> list[Tensor]:
        """Initial parameters, ``[members, ...]`` each, as leaves that require grad."""
        return [
            p.clone(memory_format=torch.preserve_format).requires_grad_() for p in self._initial
        ]

    # Defined by subclasses.

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, beginning at index ``start``."""
        raise NotImplementedError

    def part(self, batch: Batch, share: float) -> Batch:
        """The first ``share`` of each member's batch, at least one sample."""
        raise NotImplementedError

    def evaluation(self, split: str) -> Iterator[Batch]:
        """Batches of a split, without a member dimension."""
        raise NotImplementedError

    def metrics(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Means over a batch, in addition to the loss."""
        del logits, targets
        return {}

    own_batches = True
    """Whether each member has its own batches, with a leading member dimension."""

    # Losses.

    def loss(self, weights: Sequence[Tensor], batch: Batch) -> Tensor:
        """Loss of each member on its batch, ``[members]``, twice differentiable."""
        with self._twice_differentiable():
            losses, metrics = self._losses(weights, self.buffers, batch, self.own_batches)
        self.batch_metrics = {k: v.detach() for k, v in metrics.items()}
        return losses

    def curvature_loss(self, weights: Sequence[Tensor], batch: Batch) -> Tensor:
        """Loss on the part of the batch for curvature, ``[members]``, twice differentiable.

        Running statistics, metrics and torch's random state stay unchanged, so that dropout is
        the same for every arm.
        """
        with self._curvature_inputs(batch) as (buffers, part), self._twice_differentiable():
            return self._losses(weights, buffers, part, self.own_batches)[0]

    @contextmanager
    def _curvature_inputs(self, batch: Batch) -> Iterator[tuple[dict[str, Tensor], Batch]]:
        """Copies of the buffers and the part of the batch, in a forked random state."""
        buffers = {name: b.clone() for name, b in self.buffers.items()}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(torch.randint(2**62, ())))
            yield buffers, self.part(batch, self.execution.curvature_share)

    def loss_and_gradient(
        self, weights: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss ``[members]`` and gradients, in the precision of first-order passes."""
        with self._first_order():
            losses, metrics = self._compiled(weights, self.buffers, batch, self.own_batches)
            grads = torch.autograd.grad(losses.sum(), weights)
        self.batch_metrics = {k: v.detach() for k, v in metrics.items()}
        return losses.detach(), list(grads)

    def loss_and_sampled_loss(
        self, weights: Sequence[Tensor], batch: Batch, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, SampledLoss]:
        """Loss of each member, and its cross-entropy with labels sampled from the model.

        Both come from one forward pass in the precision of first-order passes. If
        ``curvature_share`` is below 1, the sampled loss has its own pass over part of the batch.

        Args:
            weights: ``[members, ...]`` each.
            batch: a batch of :meth:`epoch`.
            generators: one per member, to sample labels.
        """
        with self._first_order():
            losses, metrics, logits = self._outputs(weights, self.buffers, batch, self.own_batches)
        if self.execution.curvature_share < 1:
            with self._curvature_inputs(batch) as (buffers, part), self._first_order():
                logits = self._outputs(weights, buffers, part, self.own_batches)[2]
        sampled = sampled_cross_entropy(logits, members=self.members, generator=generators)
        self.batch_metrics = {k: v.detach() for k, v in metrics.items()}
        return losses, sampled

    def sample_gradients(self, weights: Sequence[Tensor], batch: Batch) -> dict[Tensor, Tensor]:
        """Mean of the squared gradients of the samples of a batch, by parameter.

        A sample is a row of the batch: for text a window of a stream, with its mean loss.

        Raises:
            StudyError: the network has batch normalisation, so no sample has a gradient alone.
        """
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self._module.modules()):
            raise StudyError(
                "curvature: empirical_fisher needs the gradient of each sample alone, but batch "
                "normalisation makes samples depend on each other; use gauss_newton"
            )

        with ExitStack() as stack:
            buffers, (x, y) = stack.enter_context(self._curvature_inputs(batch))
            stack.enter_context(self._twice_differentiable())
            stack.enter_context(written_out_encoder())
            if not self.own_batches:
                x, y = (t.expand(self.members, *t.shape) for t in (x, y))
            samples = x.shape[1]
            # Train every sample as a member of its own, with a copy of its member's weights.
            copies = {
                n: p.detach().repeat_interleave(samples, 0).requires_grad_()
                for n, p in zip(self.names, weights, strict=True)
            }
            repeated = {n: b.repeat_interleave(samples, 0) for n, b in buffers.items()}
            alone = (t.flatten(0, 1)[:, None] for t in (x, y))
            losses = vmap(self._member_loss, randomness="different")(copies, repeated, *alone)[0]
            grads = torch.autograd.grad(losses.sum(), list(copies.values()))
        squares = (g.unflatten(0, (self.members, samples)).square().mean(1) for g in grads)
        return dict(zip(weights, squares, strict=True))

    def _losses(
        self,
        weights: Sequence[Tensor],
        buffers: dict[str, Tensor],
        batch: Batch,
        own_batches: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self._outputs(weights, buffers, batch, own_batches)[:2]

    def _outputs(
        self,
        weights: Sequence[Tensor],
        buffers: dict[str, Tensor],
        batch: Batch,
        own_batches: bool,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Losses and metrics ``[members]``, logits ``[members, predictions, classes]``."""
        named = dict(zip(self.names, weights, strict=True))
        if self.members == 1:
            one = {k: v.squeeze(0) for k, v in named.items()}
            kept = {k: v.squeeze(0) for k, v in buffers.items()}
            inputs, targets = (t.squeeze(0) for t in batch) if own_batches else batch
            loss, metrics, logits = self._member_loss(one, kept, inputs, targets)
            return loss[None], {k: v[None] for k, v in metrics.items()}, logits[None]
        dims = 0 if own_batches else None
        batched = vmap(self._member_loss, in_dims=(0, 0, dims, dims), randomness="different")
        result: tuple[Tensor, dict[str, Tensor], Tensor] = batched(named, buffers, *batch)
        return result

    def _member_loss(
        self, weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        logits = functional_call(self._module, (weights, buffers), (x,))
        classes = logits.shape[-1]
        flat, targets = logits.reshape(-1, classes).float(), y.reshape(-1)
        return nn.functional.cross_entropy(flat, targets), self.metrics(flat, targets), flat

    @contextmanager
    def _first_order(self) -> Iterator[None]:
        precision, device = self.execution.precision, self.device.type
        with ExitStack() as stack:
            if precision == "bf16":
                stack.enter_context(torch.autocast(device, torch.bfloat16, cache_enabled=False))
            stack.enter_context(matrix_units("tf32" if precision == "tf32" else "ieee"))
            if self.members > 1:  # implementations that vmap can batch
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(written_out_encoder())
            yield

    def _twice_differentiable(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(matrix_units("ieee"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(FastDoubleBackward() if self.members == 1 else nullcontext())
        return stack

    def constant_loss(self, split: str) -> float:
        """Loss over a split of the best prediction that ignores the input."""
        raise NotImplementedError

    def train_loss(self, weights: Sequence[Tensor]) -> Tensor:
        """Not available: it would need a pass over all training data."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self, weights: Sequence[Tensor], split: str) -> dict[str, Tensor]:
        """Loss and metrics over a split in evaluation mode, ``[members]`` each."""
        self._module.eval()
        try:
            sums: dict[str, Tensor] = {}
            count = 0
            for batch in self.evaluation(split):
                size = batch[1].numel()
                with self._first_order():
                    losses, metrics = self._losses(weights, self.buffers, batch, False)
                for name, value in {"loss": losses, **metrics}.items():
                    sums[name] = sums.get(name, 0.0) + size * value.double()
                count += size
        finally:
            self._module.train()
        return {f"{split}_{name}": total / count for name, total in sums.items()}

    def prepare(self, weights: Sequence[Tensor]) -> None:
        """Compile for every batch shape before the clock starts."""
        if not self.execution.compile:
            return
        kept = {name: b.clone() for name, b in self.buffers.items()}
        devices = [self.device] if self.device.type == "cuda" else []
        seen = set()
        with torch.random.fork_rng(devices=devices):
            for batch in self.epoch(0):
                if batch[1].shape not in seen:
                    seen.add(batch[1].shape)
                    self.loss_and_gradient(weights, batch)
        for name, b in self.buffers.items():
            b.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        """Buffers only: seeds and epoch determine the batches."""
        return {"buffers": {name: b.cpu().clone() for name, b in self.buffers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name, b in self.buffers.items():
            b.copy_(state["buffers"][name])
