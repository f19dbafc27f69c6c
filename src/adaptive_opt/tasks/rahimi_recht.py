"""The Rahimi–Recht task: a deep linear network for a whole ensemble of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from adaptive_opt.curvature import deep_linear
from adaptive_opt.optim import SampledLoss

from .rr_functions import RRFunction, draw_weights

__all__ = ["RahimiRecht"]


class RahimiRecht:
    """Minibatch training of a deep linear network on one function, many members at once.

    A batch is passed on as its Gram matrix, which is all that the loss needs of it (see
    :mod:`adaptive_opt.curvature.deep_linear`); the last batch of an epoch may be smaller,
    as with a DataLoader. Everything random about a member comes from its own two seeds.

    Args:
        function: what is to be learnt.
        loss: ``"rmse"`` or ``"mse"``.
        batch_size: samples in a batch.
        weight_seeds: one for each member, for its initial weights; None to start every
            member from the function's own.
        order_seeds: one for each member, for the order of its batches.
        device, dtype: where and in which precision to train.
    """

    measures_train_loss = True
    resumes_within_epoch = False  # its streams of random numbers have only moved on at an end

    def __init__(
        self,
        function: RRFunction,
        *,
        loss: str,
        batch_size: int,
        weight_seeds: Sequence[int] | None,
        order_seeds: Sequence[int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.function, self.kind = function, loss
        self.members = len(order_seeds)
        self.batch_metrics: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.hidden = [True] * len(function.weights)
        self.device, self.dtype = device, dtype
        samples = len(function.inputs)
        self.batch_size = min(batch_size, samples)
        self.batches_per_epoch = -(-samples // self.batch_size)
        self._weight_seeds = weight_seeds
        # Members that share a seed (trials of a search) share their batches.
        distinct = list(dict.fromkeys(order_seeds))
        self._orders = [torch.Generator().manual_seed(s) for s in distinct]
        order_of = torch.tensor([distinct.index(s) for s in order_seeds], device=device)
        self._order_of = order_of if len(distinct) < self.members else None
        self._target = function.target.to(device, dtype)
        self._gram = function.gram.to(device, dtype)
        # Short last batch: filled up with rows of zeros, which add nothing to a Gram matrix.
        padded = self.batches_per_epoch * self.batch_size
        index = torch.full((len(distinct), padded), samples)
        self._index, self._rows = index.view(-1), [row[:samples] for row in index]
        self._samples = samples
        x = function.inputs.to(device, dtype)
        self._inputs = torch.cat([x, x.new_zeros(1, x.shape[1])])
        sizes = torch.full((self.batches_per_epoch, 1, 1), float(self.batch_size))
        sizes[-1] -= padded - samples
        self._scale = sizes.reciprocal().to(device, dtype)

    def initial_parameters(self) -> list[Tensor]:
        """Weights ``[members, d_out, d_in]``, layer by layer, as leaves that require grad."""
        if self._weight_seeds is None:
            single = [[*self.function.weights]] * self.members
        else:
            streams = [torch.Generator().manual_seed(s) for s in self._weight_seeds]
            single = [draw_weights(self.function.dims, g) for g in streams]
        stacked = [torch.stack(layer) for layer in zip(*single, strict=True)]
        return [w.to(self.device, self.dtype).requires_grad_() for w in stacked]

    def epoch(self, number: int = 0, start: int = 0) -> Iterator[Tensor]:
        """Gram matrices ``[members, d_x, d_x]`` of the next epoch's batches, in random order.

        The order is where the streams of random numbers stand, whatever the ``number``.
        """
        del number
        if start:
            raise ValueError("an epoch of Rahimi–Recht batches starts at its first")
        for row, stream in zip(self._rows, self._orders, strict=True):
            torch.randperm(self._samples, generator=stream, out=row)
        x = self._inputs.index_select(0, self._index.to(self.device))
        x = x.view(len(self._orders) * self.batches_per_epoch, self.batch_size, -1)
        gram = torch.bmm(x.mT, x).view(-1, self.batches_per_epoch, *self._gram.shape)
        gram *= self._scale
        batches = gram.transpose(0, 1).contiguous()
        if self._order_of is None:
            yield from batches
        else:
            yield from (batch.index_select(0, self._order_of) for batch in batches)

    def loss(self, weights: Sequence[Tensor], gram: Tensor) -> Tensor:
        """Loss of every member on its batch, ``[members]``, differentiable twice."""
        return deep_linear.loss(weights, self._target, gram, self.kind)

    def loss_and_gradient(
        self, weights: Sequence[Tensor], gram: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The same loss with its gradient, in closed form."""
        return deep_linear.loss_and_gradient(weights, self._target, gram, self.kind)

    def loss_and_sampled_loss(
        self, weights: Sequence[Tensor], gram: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, SampledLoss]:
        """Loss of every member, and one whose squared gradient estimates the Gauss–Newton diagonal.

        Args:
            weights: ``[members, d_out, d_in]`` each.
            gram: the batch.
            generators: of the noise, one for each member.
        """
        noise = torch.empty(self.members, *self._target.shape, device=self.device, dtype=self.dtype)
        for row, generator in zip(noise, generators, strict=True):
            row.normal_(generator=generator)
        factor = deep_linear.gauss_newton_factor(weights, self._target, gram, self.kind, noise)
        product = reduce(lambda done, w: torch.bmm(w, done), weights)
        return self.loss(weights, gram), SampledLoss(product, terms=1.0, gradient=factor)

    def curvature_loss(self, weights: Sequence[Tensor], gram: Tensor) -> Tensor:
        """As :meth:`loss`: a Gram matrix has no parts."""
        return self.loss(weights, gram)

    @torch.no_grad()
    def evaluate(self, weights: Sequence[Tensor], split: str) -> dict[str, Tensor]:
        """``train``: the loss over all samples; the task has no held-out samples."""
        return {"train_loss": self.train_loss(weights)} if split == "train" else {}

    def constant_loss(self, split: str) -> float:
        """Loss of the output 0, which is the mean of the targets over all inputs."""
        del split  # there is one
        zeros = [torch.zeros_like(w)[None].to(self._gram) for w in self.function.weights]
        return float(deep_linear.loss(zeros, self._target, self._gram, self.kind))

    def prepare(self, weights: Sequence[Tensor]) -> None:
        """Nothing."""

    def hessian_diagonal(self, weights: Sequence[Tensor], gram: Tensor) -> list[Tensor]:
        """Exact diagonal of the Hessian on the batch, in closed form."""
        return deep_linear.hessian_diagonal(weights, self._target, gram, self.kind)

    def train_loss(self, weights: Sequence[Tensor]) -> Tensor:
        """Loss over all samples, ``[members]``."""
        return deep_linear.loss(weights, self._target, self._gram, self.kind)

    def hessian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Exact Hessians and gradients over all samples, in the precision of ``points``.

        Args:
            points: ``[count, n]``, each row all weights of one network.

        Returns:
            ``[count, n, n]`` and ``[count, n]``.
        """
        sizes = [w.numel() for w in self.function.weights]
        weights = [
            part.view(len(points), *w.shape)
            for part, w in zip(points.split(sizes, dim=1), self.function.weights, strict=True)
        ]
        target = self.function.target.to(points)
        gram = self.function.gram.to(points)
        hessian = deep_linear.hessian(weights, target, gram, self.kind)
        return hessian, deep_linear.gradient(weights, target, gram, self.kind)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Position in the random streams of the batch order."""
        return {"orders": [g.get_state() for g in self._orders]}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Inverse of :meth:`state_dict`."""
        for stream, saved in zip(self._orders, state["orders"], strict=True):
            stream.set_state(saved)
