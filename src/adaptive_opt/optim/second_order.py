"""Second-order step size adaptation: the skeleton that all methods share.

At every step t = 0, 1, 2, …

    m ← β1 m + (1−β1) g                                  (no bias correction)
    if t mod k == 0:  c ← estimate(H, v);  D ← β2 D + (1−β2) s(c)
    u ← clip(m / denom(D), −ρ, ρ)                        (elementwise)
    θ ← (1 − ηλ) θ − η u

The methods (:mod:`.methods`) differ in the step rule (:mod:`.rules`), in the probe v
(:mod:`.probes`) and in the estimate; where the curvature comes from (:mod:`.sources`) is
independent of all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._lists import Tensors
from .base import check_betas, check_range
from .curvature_estimate import CurvatureEstimation, DiagonalFn, is_due
from .probes import PROBES
from .rules import StepRule
from .sources import check_source, estimate_statistics

__all__ = ["SecondOrderOptimizer"]


class SecondOrderOptimizer(CurvatureEstimation):
    """The skeleton of the family; use Sophia, SADH, SSDH or SSVP.

    ::

        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        optimizer.backward(loss)      # not loss.backward(): builds the graph only when due
        optimizer.step()

    ``backward`` may be called several times before a step to accumulate gradients: the
    same probe is used each time, so that the curvature is that of the summed loss. If a
    tensor's gradient is scaled between ``backward`` and ``step`` (``clip_grad_norm_``,
    ``GradScaler``), its curvature is scaled by the same factor, the ratio of the norms. With
    ``max_grad_norm`` the optimizer clips by itself, and a momentum probe then also sees the
    clipped gradient. Every leaf that the loss depends on gets its gradient, also one of another
    optimizer, and hooks are called as ``loss.backward()`` calls them.

    Under DistributedDataParallel the curvature is averaged over the ranks, as gradients are.
    Without second derivatives (``torch.compile``, fused attention, FSDP), use
    ``hvp="finite_difference"`` and hand ``step`` or ``backward`` a closure::

        def closure():
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)

    Args:
        params: parameters, or groups of them.
        lr: η ≥ 0.
        betas: (β1, β2) in [0, 1): smoothing of the gradient and of the curvature.
        rho: ρ ≥ 0, the clip radius of the update.
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0, decoupled.
        update_period: k ≥ 1: the curvature is refreshed at every k-th step.
        probe: ``rademacher``, ``gaussian``, ``constant``, ``momentum_sign`` or
            ``momentum_sign_cumulative``; None: the method's own.
        seed: of the probes; for an ensemble one seed for each member.
        foreach: multi-tensor kernels (default) or a plain loop.
        curvature: the curvature source, a rung of the ladder in :mod:`.sources`.
        diagonal_fn: for ``curvature="exact"``: returns the exact diagonal, one tensor for
            each parameter with a gradient; without it one Hessian-vector product for each
            parameter is made.
        max_grad_norm: clip the gradient, and the curvature alike, to this global norm.
        clip_curvature: whether the curvature is scaled as the gradient is, by whatever means.
            False: it stays that of the loss, so that a clipped step is shorter by the factor
            (:class:`~adaptive_opt.optim.SSDH` and the like, which divide one by the other).
        members: size of the ensemble; lr, betas, rho, eps and weight_decay may then be
            tensors of shape ``[members]``.
        hvp: ``autograd``: the product of Hessian and probe by differentiating twice;
            ``finite_difference``: (g(θ + εv) − g(θ)) / ε, from one more gradient of a closure
            at the steps where curvature is due, with ε = 0.05 √u (1 + ‖θ‖) / ‖v‖ and u the machine
            epsilon (:func:`.finite_differences.step_length`). Same batch, same dropout: the
            random state is put back.
        buffers: with ``hvp="finite_difference"``: ``model.buffers``, so that running statistics
            of batch normalisation move once at the steps where curvature is due.
        process_group: over which curvature is averaged; ``"auto"``: the default group of
            ``torch.distributed`` where that is initialised; None: it is not averaged.
        rank_probes: each rank draws a probe of its own, so that W ranks average W probes and
            the variance of the estimate falls by W at no cost. False: all draw the same, and W
            ranks step as one process on the joined batch does. Not with sharded parameters.
        maximize: maximize the loss: gradient and curvature are those of its negative.
        capturable, differentiable, fused: not supported, see :class:`.base.EnsembleOptimizer`.

    Raises:
        ValueError: a hyperparameter out of range, an unknown probe or source.
        RuntimeError: in ``step`` when curvature was due but ``backward`` was not used.
    """

    rule: ClassVar[StepRule]
    default_probe: ClassVar[str] = "rademacher"
    hyperparameters = ("lr", "betas", "rho", "eps", "weight_decay")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 6e-2,
        betas: tuple[float | Tensor, float | Tensor] = (0.96, 0.99),
        rho: float | Tensor = 1e-2,
        eps: float | Tensor = 1e-12,
        weight_decay: float | Tensor = 0.0,
        update_period: int = 10,
        probe: str | None = None,
        seed: int | Sequence[int] = 0,
        foreach: bool | None = None,
        *,
        curvature: str = "estimate",
        diagonal_fn: DiagonalFn | None = None,
        max_grad_norm: float | None = None,
        clip_curvature: bool = True,
        members: int | None = None,
        hvp: str = "autograd",
        buffers: Callable[[], Iterable[Tensor]] | None = None,
        process_group: Any = "auto",
        rank_probes: bool = False,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_source(curvature, diagonal_fn)
        defaults = {
            "lr": lr,
            "betas": betas,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "update_period": update_period,
            "probe": self.default_probe if probe is None else probe,
            "curvature": curvature,
            "clip_curvature": clip_curvature,
        }
        super().__init__(
            params,
            defaults,
            seed=seed,
            diagonal_fn=diagonal_fn,
            members=members,
            hvp=hvp,
            buffers=buffers,
            process_group=process_group,
            rank_probes=rank_probes,
            max_grad_norm=max_grad_norm,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        for name in ("lr", "rho", "eps", "weight_decay"):
            check_range(name, group[name], 0)
        check_betas(group["betas"])
        if group["update_period"] != int(group["update_period"]) or group["update_period"] < 1:
            raise ValueError(
                f"update_period must be a whole number ≥ 1, got {group['update_period']}"
            )
        if group["probe"] not in PROBES:
            raise ValueError(f"unknown probe {group['probe']!r}; choose from {PROBES}")
        for name in ("probe", "curvature", "clip_curvature"):
            if group[name] != self.param_groups[0][name]:
                raise ValueError(f"all parameter groups must share one {name}")
        periods = {g["update_period"] for g in self.param_groups}
        if group["curvature"] == "per_model" and len(periods) > 1:
            raise ValueError("curvature='per_model' needs one update_period for all groups")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        sums = ("sign_sum",) if group["probe"] == "momentum_sign_cumulative" else ()
        return ("momentum", "curvature", *sums)

    def _prepare(self, group: dict[str, Any], params: Tensors, grads: Tensors) -> Tensors | None:
        if not is_due(group):
            return None
        c = self._curvature(group["curvature"], params, grads)
        self._last_estimate = estimate_statistics(c, self.members)
        return c

    def _step_group(
        self, group: dict[str, Any], params: Tensors, grads: Tensors, prepared: Tensors | None
    ) -> None:
        ops = self.ops
        m, curvature = self._states(params, "momentum", "curvature")
        ops.lerp_(m, grads, self._factor(1 - group["betas"][0], params))
        if prepared is not None:
            # Where a product overflowed (half precision), D stays as it was.
            smoothed = [
                torch.where(s.isfinite(), s, d)
                for s, d in zip(map(self.rule.smooth, prepared), curvature, strict=True)
            ]
            ops.lerp_(curvature, smoothed, self._factor(1 - group["betas"][1], params))
        if group["probe"] == "momentum_sign_cumulative":
            self._accumulate_signs(group, params, m)
        update = self._direction(group, params)
        ops.clip_(update, self._factor(group["rho"], params))
        lr, decay = group["lr"], group["weight_decay"]
        if isinstance(decay, Tensor) or decay != 0:
            ops.mul_(params, self._factor(1 - lr * decay, params))
        ops.sub_scaled_(params, update, self._factor(lr, params))

    def _direction(self, group: dict[str, Any], params: Tensors) -> Tensors:
        """``m / denom(D)``, before the clip."""
        m, curvature = self._states(params, "momentum", "curvature")
        eps = self._factor(group["eps"], params)
        return self.ops.div_into(m, self.rule.denominator(self.ops, curvature, eps))

    def _accumulate_signs(self, group: dict[str, Any], params: Tensors, m: Tensors) -> None:
        (sums,) = self._states(params, "sign_sum")
        if is_due(group):
            torch._foreach_zero_(sums)
        else:
            self.ops.add_(sums, [mi.sign() for mi in m])

    @torch.no_grad()
    def denominators(self) -> dict[Tensor, Tensor]:
        """``denom(D)`` of each parameter, as at the last step."""
        found: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            params = [p for p in group["params"] if "curvature" in self.state.get(p, {})]
            if params:
                (curvature,) = self._states(params, "curvature")
                eps = self._factor(group["eps"], params)
                made = self.rule.denominator(self.ops, curvature, eps)
                found |= dict(zip(params, made, strict=True))
        return found

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """Of the last step: clipped fraction, norms of denom(D), of D and of the estimate.

        ``clipped_fraction`` is the share of elements with ``|m / denom(D)| > ρ``;
        ``estimate_norm`` and ``positive_estimate_share`` are of c at the last refresh (of
        the last group, if there are several).
        """
        rows = self.members or 1
        clipped, denominators, curvatures = [], [], []
        for group in self.param_groups:
            params = [p for p in group["params"] if "curvature" in self.state.get(p, {})]
            if not params:
                continue
            eps = self._factor(group["eps"], params)
            (curvature,) = self._states(params, "curvature")
            rho = self._factor(group["rho"], params)
            radii = rho if isinstance(rho, list) else [rho] * len(params)
            for u, r in zip(self._direction(group, params), radii, strict=True):
                clipped.append((u.abs() > r).reshape(rows, -1))
            denominators += self.rule.denominator(self.ops, curvature, eps)
            curvatures += curvature
        if not clipped:
            return {}
        fraction = torch.cat(clipped, dim=1).float().mean(1)
        return {
            "clipped_fraction": fraction if self.members else fraction[0],
            "denominator_norm": self._norm(denominators),
            "curvature_norm": self._norm(curvatures),
            **self._last_estimate,
        }
