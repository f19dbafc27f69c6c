"""When the curvature is due, and how it is estimated from the loss.

What the second-order methods share besides their step rule: :meth:`CurvatureEstimation.backward`
makes gradient and estimate, holds the estimate until ``step``, scales it as the gradient is
scaled, and puts it down to a rung of the ladder in :mod:`.sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._lists import Tensors
from .base import _gradients
from .curvature_state import CurvatureState
from .derivatives import (
    NOT_REACHED,
    explained,
    free,
    hand_over,
    hessian_vector_product,
    other_leaves,
    without_hooks,
)
from .double_backward import twice_differentiable
from .finite_differences import Point, difference, step_length
from .gauss_newton import NO_LABELS, SampledLoss, gauss_newton_diagonal
from .probes import MOMENTUM_PROBES, is_sharded
from .ranks import Ranks
from .sources import HESSIAN_SOURCES, degrade, exact_diagonal

__all__ = ["CurvatureEstimation", "DiagonalFn", "is_due"]

DiagonalFn = Callable[[], Sequence[Tensor]]

HVPS = ("autograd", "finite_difference")
"""How products of the Hessian with a vector are made."""


class CurvatureEstimation(CurvatureState):
    """An optimizer that estimates curvature at every ``update_period``-th step.

    Args:
        seed: of the probes; for an ensemble one seed for each member.
        diagonal_fn: the exact diagonal, for ``curvature="exact"``.
        members: size of the ensemble.
        hvp: ``autograd`` or ``finite_difference``.
        buffers: gives the tensors that an evaluation changes, for ``finite_difference``.
        process_group, rank_probes: see :class:`.ranks.Ranks`.
        **rest: of :class:`.base.EnsembleOptimizer`.

    Raises:
        ValueError: an unknown ``hvp``, or one that cannot be had from the curvature source.
    """

    estimates_diagonal: ClassVar[bool] = True
    """Whether c = v ⊙ Hv, an estimate of the diagonal; otherwise c = Hv."""

    def __init__(
        self,
        *args: Any,
        seed: int | Sequence[int],
        diagonal_fn: DiagonalFn | None,
        members: int | None,
        hvp: str = "autograd",
        buffers: Callable[[], Iterable[Tensor]] | None = None,
        process_group: Any = "auto",
        rank_probes: bool = False,
        **rest: Any,
    ) -> None:
        if hvp not in HVPS:
            raise ValueError(f"unknown hvp {hvp!r}; choose from {HVPS}")
        if rank_probes and hvp == "finite_difference":
            raise ValueError("rank_probes=True needs hvp='autograd'")
        if buffers is not None and hvp != "finite_difference":
            raise ValueError("buffers is only used with hvp='finite_difference'")
        self.hvp, self.buffers = hvp, buffers
        self._ranks = Ranks(process_group, own_probes=rank_probes)
        self._checked = False
        self.diagonal_fn = diagonal_fn
        super().__init__(*args, seed=seed, members=members, **rest)
        if hvp != "autograd" and self.param_groups[0]["curvature"] == "exact":
            raise ValueError("curvature='exact' needs hvp='autograd'")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its shapes and hyperparameters are checked here."""
        super().add_param_group(param_group)
        if self._ranks.own_probes and any(map(is_sharded, self.param_groups[-1]["params"])):
            raise ValueError(
                "rank_probes=True needs whole parameters on each rank: with sharded parameters "
                "(FSDP2) all ranks together make one product with one probe"
            )

    @property
    def curvature_due(self) -> bool:  # type: ignore[override]
        """Whether the coming step refreshes the curvature of some group."""
        return any(is_due(g) for g in self.param_groups)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Around the forward pass: makes a second derivative possible and fast, where one is due.

        See ``double_backward.twice_differentiable``.
        """
        return twice_differentiable() if self.graph_due else nullcontext()

    @property
    def hessian_due(self) -> bool:
        """Whether the coming step needs second derivatives, from wherever."""
        return self.curvature_due and self.param_groups[0]["curvature"] in HESSIAN_SOURCES

    @property
    def graph_due(self) -> bool:
        """Whether the coming ``backward`` differentiates twice."""
        return self.hessian_due and self.diagonal_fn is None and self.hvp == "autograd"

    @property
    def sampling_due(self) -> bool:
        """Whether the coming step needs labels drawn from the model."""
        return self.curvature_due and self.param_groups[0]["curvature"] == "gauss_newton"

    def label_generators(self) -> list[torch.Generator]:
        """Random streams for labels, one for each member; saved with the optimizer's state."""
        return self._ranks.generator(self._generator).on(self.param_groups[0]["params"][0].device)

    def backward(  # type: ignore[override]
        self,
        loss: Tensor | Callable[[], Tensor],
        curvature_loss: Tensor | SampledLoss | Callable[[], SampledLoss] | None = None,
        curvature_share: float = 1.0,
    ) -> Tensor | None:
        """Gradient of ``loss`` into ``.grad``, and the curvature estimate when it is due.

        When it was, ``loss`` is detached from its graph, which could not be used again, so
        that holding on to it holds no activations.

        Args:
            loss: a scalar, or ``[members]``; or a closure that evaluates the model on the batch
                and returns it, without a backward, which finite differences need.
            curvature_loss: the curvature is that of this loss instead, over part of the
                batch; looked at only where :attr:`graph_due`. For ``gauss_newton`` a
                :class:`.gauss_newton.SampledLoss`, or a function that returns it and is called
                only where :attr:`curvature_due`.
            curvature_share: which part of the batch that is, to count its cost.

        Returns:
            The loss of a closure.

        Raises:
            RuntimeError: the loss has no second derivative; the message names the ways out.
        """
        if not isinstance(loss, Tensor):
            return self._backward_closure(loss)
        if self.param_groups[0]["curvature"] == "gauss_newton":
            self._sampled(loss, curvature_loss, curvature_share)
            super().backward(loss)
            self._hold(list(self._pending))
            return None
        if curvature_loss is not None and not isinstance(curvature_loss, Tensor):
            raise TypeError("a sampled loss needs curvature='gauss_newton'")
        if not self.curvature_due or (curvature_loss is not None and self.graph_due):
            super().backward(loss)
            if curvature_loss is not None and self.graph_due:
                self.estimate_curvature(curvature_loss, curvature_share)
            return None
        if self.hessian_due and self.hvp != "autograd":
            super().backward(loss)
            return None
        total = self._total(loss)
        own = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
        params = [*own, *other_leaves(total, own)]
        graph = self.graph_due
        with explained():
            grads = torch.autograd.grad(total, params, create_graph=graph, allow_unused=True)
        seen = {p: g for p, g in zip(params, grads, strict=True) if g is not None}
        if own and not any(p in seen for p in own):
            raise RuntimeError(NOT_REACHED)
        hand_over(seen)
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p in seen]
        if graph:
            self._estimate([(p, seen[p]) for p in due], [p.grad for p in own if p in seen])
        elif self.diagonal_fn is not None:
            # Charged as what it costs when no closed form is at hand.
            self._count_products(sum(p.numel() for p in own if p in seen) // (self.members or 1))
            self._set_pending(due, list(self.diagonal_fn()))
        self._backwards += 1
        self._hold(due)
        free(loss)
        return None

    def _sampled(self, loss: Tensor, draw: Any, share: float) -> None:
        """The Gauss–Newton estimate; before the gradient, which frees the graph they share."""
        if not self.curvature_due or draw is None:  # step says what is missing
            return
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p.requires_grad]
        found = gauss_newton_diagonal(draw, due, loss)
        self.curvature_cost += share  # one more gradient
        # Never negative: with maximize it is that of the negative loss already.
        self._set_pending(list(found), list(found.values()), signed=False)

    def estimate_curvature(self, loss: Tensor, share: float = 1.0) -> None:
        """The curvature estimate of ``loss`` alone, the gradients being in ``.grad`` already.

        Args:
            loss: over part of the batch the gradients are of.
            share: which part, to count its cost: a gradient and a product of that size.
        """
        own = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        grads = torch.autograd.grad(self._total(loss), own, create_graph=True, allow_unused=True)
        seen = {p: g for p, g in zip(own, grads, strict=True) if g is not None}
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p in seen]
        self.curvature_cost += share
        self._estimate([(p, seen[p]) for p in due], _gradients(own), share)
        self._hold(due)
        free(loss)

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        if not (self.hessian_due and self.hvp == "finite_difference"):
            return closure()
        return self._differences(closure)

    def _backward_closure(self, closure: Callable[[], Tensor]) -> Tensor:
        """Gradient, and curvature if it is due, of a closure that does not differentiate."""
        if not (self.hessian_due and self.hvp == "finite_difference"):
            with self.forward_context():
                loss = closure()
            value = loss.detach()
            self.backward(loss)
            return value
        own = [p for g in self.param_groups for p in g["params"] if p.requires_grad]

        def gradient() -> Tensor:
            loss = closure()
            self._total(loss).backward()  # adds to what is there, which ranks then average too
            return loss.detach()

        found: Tensor = self._differences(gradient)
        self._backwards += 1
        self._hold([p for p in own if p in self._pending])
        return found

    def _differences(self, gradient: Callable[[], Any]) -> Any:
        """Hv = (g(θ + εv) − g(θ)) / ε, see :func:`.finite_differences.difference`."""
        backwards: list[int] = []

        def evaluate() -> Any:
            loss = gradient()
            backwards.append(self._backwards)
            return loss

        own = [p for g in self.param_groups for p in g["params"]]
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p.requires_grad]
        kept, stream = dict(self._probe), self._generator.state_dict()

        def make_probe(params: Tensors) -> Tensors:
            self._probe.update(kept)
            self._generator.load_state_dict(stream)
            return self._make_probe(params, [p.grad for p in own if p.grad is not None])

        self._start = Point.of(own)
        try:
            found = difference(
                evaluate,
                self._start,
                due,
                make_probe,
                self._step_size,
                gradient_first=self.param_groups[0]["probe"] in MOMENTUM_PROBES,
                buffers=() if self.buffers is None else self.buffers(),
                check=not self._checked,
            )
        finally:
            self._start = None
        if found is None:  # wrappers hand over an empty closure where the user gave none
            self._generator.load_state_dict(stream)
            return None
        self._checked |= found.checked
        self._backwards = backwards[0]  # the second evaluation is charged below
        if len(backwards) > 1:
            self.hvp_count += 1
            self.curvature_cost += 1  # one more gradient
        product = found.product
        if self.estimates_diagonal:
            product = [v * h for v, h in zip(found.probe, product, strict=True)]
        self._probe.update(zip(found.params, found.probe, strict=True))
        self._set_pending(found.params, product)
        self._hold(found.params)
        return found.loss

    def _step_size(self, params: Tensors, probe: Tensors) -> list[Tensor]:
        """ε of :func:`.finite_differences.step_length`, shaped to multiply each tensor."""
        size = step_length(self._norm(params), self._norm(probe), params[0].dtype)
        return self._expand(size, params)

    @torch.no_grad()
    def _average_over_ranks(self) -> None:
        """The mean of the ranks' estimates, as DistributedDataParallel has that of gradients."""
        needed = (*HESSIAN_SOURCES, "gauss_newton")
        if not self._ranks.active or self.param_groups[0]["curvature"] not in needed:
            return
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p.requires_grad]
        differences = self.hessian_due and self.hvp == "finite_difference"
        if not due or (differences and any(map(is_sharded, due))):
            return  # each rank has its own shard, of a difference of reduced gradients
        reached = [p.grad is not None for p in due]
        self._ranks.check(self._estimated, reached, due[0].device)
        if self._estimated:  # else the step says what is missing
            # The same parameters on every rank, also of those that this rank's loss left out.
            estimates = [self._pending.get(p, torch.zeros_like(p)) for p in due]
            self._pending = dict(zip(due, self._ranks.mean(estimates), strict=True))

    def _estimate(
        self, due: list[tuple[Tensor, Tensor]], all_grads: list[Tensor], share: float = 1.0
    ) -> None:
        """Hessian-vector product along the probe; the gradient's graph is freed by it."""
        params, gradients = [p for p, _ in due], [g for _, g in due]
        exact = self.param_groups[0]["curvature"] == "exact"

        def hvp(v: Sequence[Tensor]) -> list[Tensor]:
            self._count_products(1, share)
            with explained(), without_hooks(params):
                return hessian_vector_product(gradients, params, v, keep_graph=exact)

        if exact:
            self._set_pending(params, exact_diagonal(hvp, params, self.members))
            return
        probe = self._make_probe(params, all_grads)
        self._probe.update(zip(params, probe, strict=True))
        product = hvp(probe)
        if self.estimates_diagonal:
            product = [v * h for v, h in zip(probe, product, strict=True)]
        self._set_pending(params, product)

    def _before_step(self) -> None:
        self._average_over_ranks()
        if self.param_groups[0]["clip_curvature"]:
            self._scale_curvature()
        super()._before_step()

    def _scale_curvature(self) -> None:
        """As the gradient was since ``backward``, or will be."""
        # Also where nothing says that the gradient was touched: GradScaler does not.
        for p, norm in self._held.items():
            if p in self._pending and p.grad is not None:
                factor = torch.where(norm > 0, self._tensor_norm(p.grad) / norm, 1.0)
                self._pending[p] = self._pending[p] * self._expand(factor, [p])[0]
        limit = self.param_groups[0]["max_grad_norm"]
        if limit is not None and self._pending:
            grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
            factor = self._clip_factor(grads, limit)
            for p, c in self._pending.items():
                self._pending[p] = c * self._expand(factor, [c])[0]

    def _curvature(self, source: str, params: Tensors, grads: Tensors) -> Tensors:
        if source == "squared_gradient":
            return [g * g for g in grads]
        if source == "constant":
            return [torch.ones_like(g) for g in grads]
        if not self._pending:
            ways = "call optimizer.backward(loss) instead of loss.backward()"
            if source == "gauss_newton":
                ways = NO_LABELS
            elif self.hvp != "autograd":
                ways = (
                    "hvp='finite_difference' needs a closure: optimizer.step(closure), "
                    "where closure() calls backward and returns the loss"
                )
            raise RuntimeError(f"curvature is due at this step, but no estimate was made: {ways}")
        # A parameter that the loss did not reach has no curvature.
        missing = [p for p in params if p not in self._pending]
        estimate = {**{p: torch.zeros_like(p) for p in missing}, **self._pending}
        position = {p: i for i, p in enumerate(q for g in self.param_groups for q in g["params"])}
        rung = degrade(
            source,
            list(estimate.values()),
            positions=[position[p] for p in estimate],
            members=self.members,
            permutation=self._permutation,
        )
        by_param = dict(zip(estimate, rung, strict=True))
        return [by_param[p] for p in params]


def is_due(group: dict[str, Any]) -> bool:
    """Whether the coming step refreshes the curvature of the parameter group."""
    return bool(group["step"] % group["update_period"] == 0)
