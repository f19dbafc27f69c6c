"""The Rahimi–Recht task: an ensemble of deep linear networks."""

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
    """Minibatch training of an ensemble of deep linear networks on one function.

    A batch is represented by its Gram matrix, which is all that the loss needs (see
    :mod:`adaptive_opt.curvature.deep_linear`). The last batch of an epoch may be smaller, as with
    a DataLoader. All randomness of a member comes from its two seeds.

    Args:
        function: the function to learn.
        loss: ``"rmse"`` or ``"mse"``.
        batch_size: samples per batch.
        weight_seeds: one per member, for its initial weights; None starts every member from the
            function's weights.
        order_seeds: one per member, for its batch order.
        device, dtype: of parameters and batches.
    """

    measures_train_loss = True
    resumes_within_epoch = False  # an epoch draws its whole order at its start

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
        # Zero rows pad a short last batch; they add nothing to a Gram matrix.
        padded = self.batches_per_epoch * self.batch_size
        index = torch.full((len(distinct), padded), samples)
        self._index, self._rows = index.view(-1), [row[:samples] for row in index]
        self._samples = samples
        x = function.inputs.to(device, dtype)
        self._inputs = torch.cat([x, x.new_zeros(1, x.shape[1])])
        self._batch_inputs = x.new_zeros(1, 0, x.shape[1])
        sizes = torch.full((self.batches_per_epoch, 1, 1), float(self.batch_size))
        sizes[-1] -= padded - samples
        self._scale = sizes.reciprocal().to(device, dtype)
        self._sizes = [int(n) for n in sizes.flatten()]
        self._batch_samples = self.batch_size

    def initial_parameters(self) -> list[Tensor]:
        """Weights ``[members, d_out, d_in]`` of each layer, as leaves that require grad."""
        if self._weight_seeds is None:
            single = [[*self.function.weights]] * self.members
        else:
            generators = [torch.Generator().manual_seed(s) for s in self._weight_seeds]
            single = [draw_weights(self.function.dims, g) for g in generators]
        stacked = [torch.stack(layer) for layer in zip(*single, strict=True)]
        return [w.to(self.device, self.dtype).requires_grad_() for w in stacked]

    def epoch(self, number: int = 0, start: int = 0) -> Iterator[Tensor]:
        """Gram matrices ``[members, d_x, d_x]`` of the next epoch's batches, in random order.

        The states of the generators determine the order; ``number`` is ignored.
        """
        del number
        if start:
            raise ValueError(f"a Rahimi–Recht epoch starts at batch 0, not {start}")
        for row, generator in zip(self._rows, self._orders, strict=True):
            torch.randperm(self._samples, generator=generator, out=row)
        x = self._inputs.index_select(0, self._index.to(self.device))
        x = x.view(len(self._orders) * self.batches_per_epoch, self.batch_size, -1)
        gram = torch.bmm(x.mT, x).view(-1, self.batches_per_epoch, *self._gram.shape)
        gram *= self._scale
        batches = gram.transpose(0, 1).contiguous()
        inputs = x.view(-1, self.batches_per_epoch, *x.shape[1:])
        for i, batch in enumerate(batches):
            self._batch_inputs, self._batch_samples = inputs[:, i], self._sizes[i]
            yield batch if self._order_of is None else batch.index_select(0, self._order_of)

    def loss(self, weights: Sequence[Tensor], gram: Tensor) -> Tensor:
        """Loss of each member on its batch, ``[members]``, twice differentiable."""
        return deep_linear.loss(weights, self._target, gram, self.kind)

    def loss_and_gradient(
        self, weights: Sequence[Tensor], gram: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss ``[members]`` and gradients, in closed form."""
        return deep_linear.loss_and_gradient(weights, self._target, gram, self.kind)

    def loss_and_sampled_loss(
        self, weights: Sequence[Tensor], gram: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, SampledLoss]:
        """Loss of each member, and one whose squared gradient estimates the Gauss–Newton diagonal.

        Args:
            weights: ``[members, d_out, d_in]`` each.
            gram: the batch, ``[members, d_x, d_x]``.
            generators: one per member, for the noise.
        """
        noise = torch.empty(self.members, *self._target.shape, device=self.device, dtype=self.dtype)
        for row, generator in zip(noise, generators, strict=True):
            row.normal_(generator=generator)
        factor = deep_linear.gauss_newton_factor(weights, self._target, gram, self.kind, noise)
        product = reduce(lambda done, w: torch.bmm(w, done), weights)
        return self.loss(weights, gram), SampledLoss(product, terms=1.0, gradient=factor)

    def curvature_loss(self, weights: Sequence[Tensor], gram: Tensor) -> Tensor:
        """Same as :meth:`loss`: a Gram matrix cannot be split."""
        return self.loss(weights, gram)

    @torch.no_grad()
    def evaluate(self, weights: Sequence[Tensor], split: str) -> dict[str, Tensor]:
        """Loss over all samples for ``train``; empty for other splits, which do not exist."""
        return {"train_loss": self.train_loss(weights)} if split == "train" else {}

    def constant_loss(self, split: str) -> float:
        """Loss of the output 0, which is the mean of the targets over all inputs."""
        del split  # all splits are the same samples
        zeros = [torch.zeros_like(w)[None].to(self._gram) for w in self.function.weights]
        return float(deep_linear.loss(zeros, self._target, self._gram, self.kind))

    def prepare(self, weights: Sequence[Tensor]) -> None:
        """Do nothing."""

    def hessian_diagonal(self, weights: Sequence[Tensor], gram: Tensor) -> list[Tensor]:
        """Exact Hessian diagonal on the batch, in closed form, shaped like ``weights``."""
        return deep_linear.hessian_diagonal(weights, self._target, gram, self.kind)

    def curvature_matrix(self, weights: Sequence[Tensor], gram: Tensor, matrix: str) -> Tensor:
        """Exact matrix on the batch, ``[members, n, n]``, in closed form.

        Args:
            weights: ``[members, d_out, d_in]`` each.
            gram: the batch, ``[members, d_x, d_x]``.
            matrix: ``hessian`` or ``gauss_newton``.
        """
        return deep_linear.hessian(
            weights, self._target, gram, self.kind, gauss_newton=matrix == "gauss_newton"
        )

    def sample_gradients(self, weights: Sequence[Tensor], gram: Tensor) -> dict[Tensor, Tensor]:
        """Mean of the squared gradients of the samples of the last batch, by parameter.

        Args:
            weights: ``[members, d_out, d_in]`` each.
            gram: ignored. It does not determine them, so the batch is the last one of
                :meth:`epoch`.
        """
        del gram
        x = self._batch_inputs
        if self._order_of is not None:
            x = x.index_select(0, self._order_of)
        found = deep_linear.empirical_fisher(
            weights, self._target, x, self.kind, self._batch_samples
        )
        return dict(zip(weights, found, strict=True))

    def train_loss(self, weights: Sequence[Tensor]) -> Tensor:
        """Loss over all samples, ``[members]``."""
        return deep_linear.loss(weights, self._target, self._gram, self.kind)

    def hessian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Exact Hessians and gradients over all samples, in the precision of ``points``.

        Args:
            points: ``[count, n]``; each row holds all weights of one network.

        Returns:
            Hessians ``[count, n, n]`` and gradients ``[count, n]``.
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
        """States of the generators of the batch order."""
        return {"orders": [g.get_state() for g in self._orders]}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Inverse of :meth:`state_dict`."""
        for generator, saved in zip(self._orders, state["orders"], strict=True):
            generator.set_state(saved)
