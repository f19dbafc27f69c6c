"""Curvature estimation: the part of a second-order optimizer besides its step rule.

:meth:`CurvatureEstimation.backward` computes the gradient and, when it is due, a curvature
estimate, which is kept until ``step``. There it is scaled as the gradient was scaled, and
transformed by the curvature source (:mod:`.sources`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ._lists import Tensors
from .base import _gradients, check_betas, check_range
from .curvature_state import CurvatureState, is_due
from .derivatives import (
    NO_PARAMETER_REACHED,
    accumulate_gradients,
    explain_errors,
    hessian_vector_product,
    other_leaves,
    release_graph,
    without_hooks,
)
from .double_backward import twice_differentiable
from .empirical_fisher import MISSING_SAMPLES, SampleGradients, check_sample_gradients
from .gauss_newton import MISSING_LABELS, SampledLoss, gauss_newton_diagonal
from .probes import is_sharded
from .ranks import Ranks
from .sources import HESSIAN_SOURCES, HVP, SAMPLE_SOURCES, apply_source, exact_diagonal

__all__ = ["CurvatureEstimation", "DiagonalFn"]

DiagonalFn = Callable[[], Sequence[Tensor]]

HVPS = ("autograd", "finite_difference")
"""Ways to compute a Hessian-vector product."""


class CurvatureEstimation(CurvatureState):
    """Optimizer that estimates the curvature every ``update_period`` steps.

    The arguments are described in :class:`~adaptive_opt.optim.SecondOrderOptimizer`.

    Raises:
        ValueError: ``hvp`` is unknown, or does not fit the curvature source or another option.
    """

    hyperparameters = ("lr", "betas", "rho", "eps", "weight_decay")

    def __init__(
        self,
        *args: Any,
        seed: int | Sequence[int],
        diagonal_fn: Callable[[], Any] | None,
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
        self._same_batch_checked = False
        self.diagonal_fn = diagonal_fn
        super().__init__(*args, seed=seed, members=members, **rest)
        if hvp != "autograd" and self.param_groups[0]["curvature"] == "exact":
            raise ValueError("curvature='exact' needs hvp='autograd'")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check the shapes and hyperparameters of a parameter group, and add it."""
        super().add_param_group(param_group)
        if self._ranks.own_probes and any(map(is_sharded, self.param_groups[-1]["params"])):
            raise ValueError(
                "rank_probes=True needs unsharded parameters: with sharded ones (FSDP2) all ranks "
                "compute one product with one probe; set rank_probes=False"
            )

    def _check_group(self, group: dict[str, Any]) -> None:
        for name in ("lr", "rho", "eps", "weight_decay"):
            check_range(name, group[name], 0)
        check_betas(group["betas"])
        if group["update_period"] != int(group["update_period"]) or group["update_period"] < 1:
            raise ValueError(
                f"update_period must be a whole number ≥ 1, got {group['update_period']}"
            )
        for name in ("curvature", "clip_curvature"):
            if group[name] != self.param_groups[0][name]:
                raise ValueError(f"all parameter groups must share one {name}")

    @property
    def curvature_due(self) -> bool:  # type: ignore[override]
        """Whether the next step refreshes the curvature of a parameter group."""
        return any(is_due(g) for g in self.param_groups)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Context for the forward pass that makes second derivatives possible and fast.

        It selects the math kernel of attention, and enters
        :class:`~adaptive_opt.optim.FastDoubleBackward`; unless :attr:`graph_due`, it does nothing.
        """
        return twice_differentiable() if self.graph_due else nullcontext()

    @property
    def hessian_due(self) -> bool:
        """Whether the next step needs the Hessian, computed by any method."""
        return self.curvature_due and self.param_groups[0]["curvature"] in HESSIAN_SOURCES

    @property
    def graph_due(self) -> bool:
        """Whether the next ``backward`` differentiates twice by automatic differentiation."""
        return self.hessian_due and self.diagonal_fn is None and self.hvp == "autograd"

    @property
    def sampling_due(self) -> bool:
        """Whether the next step needs labels sampled from the model."""
        return self.curvature_due and self.param_groups[0]["curvature"] == "gauss_newton"

    @property
    def samples_due(self) -> bool:
        """Whether the next step needs squared gradients of each sample."""
        return self.curvature_due and self.param_groups[0]["curvature"] == "empirical_fisher"

    def label_generators(self) -> list[torch.Generator]:
        """Random generators for sampling labels, one for each member; ``state_dict`` saves them."""
        return self._ranks.generator(self._generator).on(self.param_groups[0]["params"][0].device)

    def backward(  # type: ignore[override]
        self,
        loss: Tensor | Callable[[], Tensor],
        curvature_loss: Tensor | SampledLoss | Callable[[], Any] | None = None,
        curvature_share: float = 1.0,
    ) -> Tensor | None:
        """Accumulate the gradient of ``loss`` into ``.grad``, and estimate curvature when due.

        After an estimate the graph of ``loss`` cannot be used again. ``loss`` is then detached,
        so keeping it does not keep activations in memory.

        Args:
            loss: a scalar, or ``[members]``. Finite differences need a closure that evaluates the
                model on the batch and returns the loss, without a backward pass.
            curvature_loss: estimate the curvature of this loss instead, for example over part of
                the batch; ignored unless :attr:`graph_due`. For ``gauss_newton``: a
                :class:`.gauss_newton.SampledLoss`, or a function that returns one, called
                only if :attr:`curvature_due`. For ``empirical_fisher``: a function that returns
                the mean of the squared gradients of the samples, by parameter. If ``loss`` is a
                closure too, this function is called first and its graph freed.
            curvature_share: share of the batch in ``curvature_loss``, to count its cost.

        Returns:
            The loss of a closure; None otherwise.

        Raises:
            RuntimeError: the loss depends on no parameter of this optimizer, or has no second
                derivative; the message names alternatives.
            TypeError: ``curvature_loss`` does not fit the curvature source.
        """
        if not isinstance(loss, Tensor):
            return self._backward_closure(loss, curvature_loss, curvature_share)
        if self.param_groups[0]["curvature"] in SAMPLE_SOURCES:
            self._estimate_from_samples(loss, curvature_loss, curvature_share)
            super().backward(loss)
            self._record_norms(list(self._pending_estimates))
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
        total = self._summed_loss(loss)
        own_params = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
        params = [*own_params, *other_leaves(total, own_params)]
        graph = self.graph_due
        with explain_errors():
            grads = torch.autograd.grad(total, params, create_graph=graph, allow_unused=True)
        gradient_of = {p: g for p, g in zip(params, grads, strict=True) if g is not None}
        if own_params and not any(p in gradient_of for p in own_params):
            raise RuntimeError(NO_PARAMETER_REACHED)
        accumulate_gradients(gradient_of)
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p in gradient_of]
        if graph:
            self._estimate_by_autograd(
                [(p, gradient_of[p]) for p in due], [p.grad for p in own_params if p in gradient_of]
            )
        elif self.diagonal_fn is not None:
            # Count what the exact diagonal costs without a closed form.
            self._count_products(
                sum(p.numel() for p in own_params if p in gradient_of) // (self.members or 1)
            )
            self._add_estimate(due, self._given_estimate(due))
        self._backward_calls += 1
        self._record_norms(due)
        release_graph(loss)
        return None

    def _given_estimate(self, due: Tensors) -> Tensors:
        """What ``diagonal_fn`` returns, for the parameters whose curvature is due."""
        del due
        return list(self.diagonal_fn()) if self.diagonal_fn is not None else []

    def _exact_estimate(self, hvp: HVP, due: Tensors) -> Tensors:
        """The exact curvature, by Hessian-vector products with a kept graph."""
        return exact_diagonal(hvp, due, self.members)

    def _estimate_from_samples(self, loss: Tensor | None, draw: Any, share: float) -> None:
        """Estimate from gradients besides that of the loss, before its graph is freed."""
        if not self.curvature_due or draw is None:  # step raises an error for a missing estimate
            return
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p.requires_grad]
        found: SampleGradients
        if self.samples_due:
            found = check_sample_gradients(draw, due)
        else:
            found = gauss_newton_diagonal(draw, due, loss)
        self.curvature_cost += share  # one more gradient
        # With maximize it already belongs to the negative loss, so it is not negated.
        self._add_estimate(list(found), list(found.values()), signed=False)

    def estimate_curvature(self, loss: Tensor, share: float = 1.0) -> None:
        """Estimate the curvature of ``loss`` alone; call it after the gradients are in ``.grad``.

        Args:
            loss: a scalar, or ``[members]``, over a part of the batch.
            share: share of the batch in ``loss``, to count the cost of a gradient and a product.
        """
        own_params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        grads = torch.autograd.grad(
            self._summed_loss(loss), own_params, create_graph=True, allow_unused=True
        )
        gradient_of = {p: g for p, g in zip(own_params, grads, strict=True) if g is not None}
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p in gradient_of]
        self.curvature_cost += share
        self._estimate_by_autograd(
            [(p, gradient_of[p]) for p in due], _gradients(own_params), share
        )
        self._record_norms(due)
        release_graph(loss)

    def _call_closure(self, closure: Callable[[], Any]) -> Any:
        if not (self.hessian_due and self.hvp == "finite_difference"):
            return closure()
        return self._estimate_by_differences(closure)

    def _backward_closure(self, closure: Callable[[], Tensor], draw: Any, share: float) -> Tensor:
        """Do ``backward`` for a closure that returns the loss without differentiating it."""
        if not (self.hessian_due and self.hvp == "finite_difference"):
            if self.param_groups[0]["curvature"] in SAMPLE_SOURCES and callable(draw):
                self._estimate_from_samples(None, draw, share)  # before there is another graph
                draw = None
            with self.forward_context():
                loss = closure()
            value = loss.detach()
            self.backward(loss, draw, share)
            return value
        own_params = [p for g in self.param_groups for p in g["params"] if p.requires_grad]

        def gradient() -> Tensor:
            loss = closure()
            self._summed_loss(loss).backward()  # accumulates, so that DDP averages the sum
            return loss.detach()

        detached_loss: Tensor = self._estimate_by_differences(gradient)
        self._backward_calls += 1
        self._record_norms([p for p in own_params if p in self._pending_estimates])
        return detached_loss

    @torch.no_grad()
    def _average_over_ranks(self) -> None:
        """Average the estimates over the ranks, as DistributedDataParallel averages gradients."""
        needed = (*HESSIAN_SOURCES, *SAMPLE_SOURCES)
        if not self._ranks.active or self.param_groups[0]["curvature"] not in needed:
            return
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p.requires_grad]
        differences = self.hessian_due and self.hvp == "finite_difference"
        if not due or (differences and any(map(is_sharded, due))):
            return  # FSDP has reduced both gradients, and each rank owns its shard
        reached = [p.grad is not None for p in due]
        self._ranks.check(self._has_estimate, reached, due[0].device)
        if self._has_estimate:  # otherwise the step raises an error
            # Every rank must reduce the same parameters, also those that its loss does not reach.
            estimates = [self._pending_estimates.get(p, torch.zeros_like(p)) for p in due]
            self._pending_estimates = dict(zip(due, self._ranks.mean(estimates), strict=True))

    def _estimate_by_autograd(
        self, due: list[tuple[Tensor, Tensor]], all_grads: list[Tensor], share: float = 1.0
    ) -> None:
        """Estimate with a Hessian-vector product, which frees the gradient's graph."""
        params, gradients = [p for p, _ in due], [g for _, g in due]

        def hvp(v: Sequence[Tensor], *, last: bool = False) -> list[Tensor]:
            self._count_products(1, share)
            with explain_errors(), without_hooks(params):
                return hessian_vector_product(gradients, params, v, keep_graph=not last)

        if self.param_groups[0]["curvature"] == "exact":
            self._add_estimate(params, self._exact_estimate(hvp, params))
            return
        probes = self._make_probes(params, all_grads)
        for i, probe in enumerate(probes, 1):
            product = hvp(probe, last=i == len(probes))
            if self.estimates_diagonal:
                product = [v * h for v, h in zip(probe, product, strict=True)]
            if len(probes) > 1:
                product = [c / len(probes) for c in product]
            self._add_estimate(params, product)

    def _before_step(self) -> None:
        self._average_over_ranks()
        if self.param_groups[0]["clip_curvature"]:
            self._scale_curvature()
        super()._before_step()

    def _scale_curvature(self) -> None:
        """Scale the estimate by the factor that scaled the gradient or will clip it."""
        # Compare norms, because some tools (GradScaler) rescale gradients without notice.
        for p, norm in self._recorded_norms.items():
            if p in self._pending_estimates and p.grad is not None:
                factor = torch.where(norm > 0, self._tensor_norm(p.grad) / norm, 1.0)
                self._scale_estimate(p, factor)
        limit = self.param_groups[0]["max_grad_norm"]
        if limit is not None and self._pending_estimates:
            grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
            factor = self._clip_factor(grads, limit)
            for p in self._pending_estimates:
                self._scale_estimate(p, factor)

    def _scale_estimate(self, p: Tensor, factor: Tensor) -> None:
        c = self._pending_estimates[p]
        self._pending_estimates[p] = c * self._expand(factor, [c])[0]

    def _curvature_from_source(self, source: str, params: Tensors, grads: Tensors) -> Tensors:
        if source == "squared_gradient":
            return [g * g for g in grads]
        if source == "constant":
            return [torch.ones_like(g) for g in grads]
        if not self._pending_estimates:
            remedy = "call optimizer.backward(loss) instead of loss.backward()"
            if source in SAMPLE_SOURCES:
                remedy = MISSING_LABELS if source == "gauss_newton" else MISSING_SAMPLES
            elif self.hvp != "autograd":
                remedy = (
                    "hvp='finite_difference' needs a closure: optimizer.step(closure), "
                    "where closure() calls backward and returns the loss"
                )
            raise RuntimeError(f"curvature is due at this step, but no estimate was made: {remedy}")
        # A parameter that the loss does not reach has zero curvature.
        missing = [p for p in params if p not in self._pending_estimates]
        estimate = {**{p: torch.zeros_like(p) for p in missing}, **self._pending_estimates}
        position = {p: i for i, p in enumerate(q for g in self.param_groups for q in g["params"])}
        rung = apply_source(
            source,
            list(estimate.values()),
            positions=[position[p] for p in estimate],
            members=self.members,
            permutation=self._permutation,
        )
        by_param = dict(zip(estimate, rung, strict=True))
        return [by_param[p] for p in params]

    def _apply(self, group: dict[str, Any], params: Tensors, update: Tensors) -> None:
        """``θ ← (1 − ηλ) θ − η u``."""
        lr, decay = group["lr"], group["weight_decay"]
        if isinstance(decay, Tensor) or decay != 0:
            self.ops.mul_(params, self._factor(1 - lr * decay, params))
        self.ops.sub_scaled_(params, update, self._factor(lr, params))
