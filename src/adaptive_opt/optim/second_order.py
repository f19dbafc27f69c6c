"""Second-order step size adaptation: the algorithm that all methods share.

At step t = 0, 1, 2, …

    m ← β1 m + (1−β1) g                                  (no bias correction)
    if t mod k == 0:  c ← estimate(H, v);  D ← β2 D + (1−β2) s(c)
    u ← clip(m / denom(D), −ρ, ρ)                        (elementwise)
    θ ← (1 − ηλ) θ − η u

The methods (:mod:`.methods`) differ in the step rule (s and denom, :mod:`.rules`), the probe v
(:mod:`.probes`) and the estimate. Each can be combined with any curvature source
(:mod:`.sources`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._lists import Tensors
from .curvature_estimate import CurvatureEstimation, DiagonalFn
from .curvature_state import is_due
from .probes import PROBES, RANDOM_PROBES
from .rules import StepRule
from .sources import HESSIAN_SOURCES, check_source, estimate_statistics

__all__ = ["SecondOrderOptimizer"]


class SecondOrderOptimizer(CurvatureEstimation):
    """Base class of Sophia, SADH, SSDH and SSVP.

    ::

        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        optimizer.backward(loss)      # not loss.backward(); estimates curvature when due
        optimizer.step()

    To accumulate gradients, call ``backward`` several times before ``step``. All calls use the
    same probe, so the curvature is that of the summed loss.

    If a tensor's gradient is scaled between ``backward`` and ``step`` (``clip_grad_norm_``,
    ``GradScaler``), its curvature is scaled by the same factor, the ratio of the norms. With
    ``max_grad_norm`` the optimizer clips the gradient, and a momentum probe uses the clipped one.

    Like ``loss.backward()``, ``backward`` computes the gradient of every leaf, also those of
    other optimizers, and calls hooks.

    DistributedDataParallel averages gradients over the ranks; the optimizer averages curvature.
    Without second derivatives (``torch.compile``, fused attention, FSDP), use
    ``hvp="finite_difference"`` and pass a closure to ``step`` or ``backward``::

        def closure():
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)

    Args:
        params: parameters, or parameter groups.
        lr: η ≥ 0.
        betas: (β1, β2) in [0, 1): smoothing factors of the gradient and of the curvature.
        rho: ρ ≥ 0, the clip radius of the update.
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0, decoupled.
        update_period: k ≥ 1: refresh the curvature every k steps.
        probe: ``rademacher``, ``gaussian``, ``constant``, ``momentum_sign`` or
            ``momentum_sign_cumulative``; None (default): that of the method.
        probes: number of random probes at each refresh; default: 1. The estimate is the mean over
            them: n probes cost n Hessian-vector products and divide its variance by n.
        seed: seed of the probes; for an ensemble one seed for each member.
        foreach: use multi-tensor kernels; default: True.
        curvature: curvature source, see :mod:`.sources`; default ``estimate``.
        diagonal_fn: for ``curvature="exact"``: returns the exact diagonal, one tensor for each
            parameter with a gradient; default: one Hessian-vector product for each element.
        max_grad_norm: clip the gradient to this global norm; default: no clipping.
        clip_curvature: scale the curvature as the gradient is scaled (default). If False, a
            clipped gradient makes a shorter step, because it is divided by the curvature.
        members: ensemble size; lr, betas, rho, eps and weight_decay may then be tensors
            ``[members]``. None (default): a single model.
        hvp: ``autograd`` (default) differentiates twice. ``finite_difference`` computes
            (g(θ + εv) − g(θ)) / ε when curvature is due, with one more gradient of a closure
            and ε = 0.05 √u (1 + ‖θ‖) / ‖v‖, u the machine epsilon
            (:func:`.finite_differences.step_length`). The closure must evaluate the same batch;
            its random state is restored, so dropout is the same.
        buffers: with ``hvp="finite_difference"``: pass ``model.buffers``, so that the second
            gradient does not update running statistics of batch normalisation again.
        process_group: process group to average curvature over; ``"auto"`` (default): torch's
            default group if initialised; None: do not average.
        rank_probes: draw another probe on each rank; averaging over W ranks then divides the
            variance of the estimate by W. If False (default), W ranks step like one process on
            the joined batch. Not supported with sharded parameters.
        maximize: maximize the loss instead of minimizing it.
        capturable, differentiable, fused: not supported, see :class:`.base.EnsembleOptimizer`.

    Raises:
        ValueError: a hyperparameter is out of range, an option is unknown, or two do not fit.
        RuntimeError: in ``step``, if curvature is due but ``backward`` made no estimate.
    """

    rule: ClassVar[StepRule]
    default_probe: ClassVar[str] = "rademacher"

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
        probes: int = 1,
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
            "probes": probes,
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
        super()._check_group(group)
        if group["probe"] not in PROBES:
            raise ValueError(f"unknown probe {group['probe']!r}; choose from {PROBES}")
        self._check_probes(group)
        for name in ("probe", "probes"):
            if group[name] != self.param_groups[0][name]:
                raise ValueError(f"all parameter groups must share one {name}")
        periods = {g["update_period"] for g in self.param_groups}
        if group["curvature"] == "per_model" and len(periods) > 1:
            raise ValueError("curvature='per_model' needs one update_period for all groups")

    def _check_probes(self, group: dict[str, Any]) -> None:
        number = group["probes"]
        if number != int(number) or number < 1:
            raise ValueError(f"probes must be a whole number ≥ 1, got {number}")
        random = group["probe"] in RANDOM_PROBES and self.estimates_diagonal
        estimated = group["curvature"] in HESSIAN_SOURCES and group["curvature"] != "exact"
        if number > 1 and not (random and estimated and self.hvp == "autograd"):
            raise ValueError(
                f"probes={number} averages estimates v ⊙ Hv; it needs a random probe "
                f"{RANDOM_PROBES}, a Hutchinson estimate and hvp='autograd'"
            )

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        sums = ("sign_sum",) if group["probe"] == "momentum_sign_cumulative" else ()
        return ("momentum", "curvature", *sums)

    def _prepare(self, group: dict[str, Any], params: Tensors, grads: Tensors) -> Tensors | None:
        if not is_due(group):
            return None
        c = self._curvature_from_source(group["curvature"], params, grads)
        self._last_estimate = estimate_statistics(c, self.members)
        return c

    def _step_group(
        self, group: dict[str, Any], params: Tensors, grads: Tensors, prepared: Tensors | None
    ) -> None:
        ops = self.ops
        m, curvature = self._states(params, "momentum", "curvature")
        ops.lerp_(m, grads, self._factor(1 - group["betas"][0], params))
        if prepared is not None:
            # Keep D where a product overflows (half precision).
            smoothed = [
                torch.where(s.isfinite(), s, d)
                for s, d in zip(map(self.rule.smooth, prepared), curvature, strict=True)
            ]
            ops.lerp_(curvature, smoothed, self._factor(1 - group["betas"][1], params))
        if group["probe"] == "momentum_sign_cumulative":
            self._accumulate_signs(group, params, m)
        update = self._direction(group, params)
        ops.clip_(update, self._factor(group["rho"], params))
        self._apply(group, params, update)

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
        """``denom(D)`` of the last step for each parameter."""
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
        """Statistics of the last step; each is 0-dim, or ``[members]``.

        ``clipped_fraction`` is the share of elements with ``|m / denom(D)| > ρ``.
        ``denominator_norm`` and ``curvature_norm`` are the norms of denom(D) and D.
        ``estimate_norm`` and ``positive_estimate_share`` describe c of the last parameter group
        at the last refresh. Empty before the first step.
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
