"""State of an optimizer that estimates curvature: probe generators and pending estimates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._lists import Tensors
from .base import EnsembleOptimizer
from .finite_differences import Point
from .probes import MOMENTUM_PROBES, ProbeGenerator, draw
from .ranks import Ranks
from .sources import STATISTICS, Permutation

__all__ = ["CurvatureState"]


class CurvatureState(EnsembleOptimizer):
    """Optimizer with probe generators and an estimate that is kept until ``step``.

    Args:
        seed: seed of the probes; for an ensemble one seed for each member.
        members: ensemble size; None: a single model.
        **rest: see :class:`.base.EnsembleOptimizer`.

    Raises:
        ValueError: the number of seeds is not the number of members.
    """

    extras = ("probe_state", "last_estimate")
    _ranks: Ranks
    _has_estimate = False
    """Whether an estimate was made for the next step."""
    _start_point: Point | None = None
    """Gradients and random state before a finite difference; None at other times."""

    def __init__(
        self, *args: Any, seed: int | Sequence[int], members: int | None, **rest: Any
    ) -> None:
        self._generator = ProbeGenerator(seed)
        seeds = self._generator.seeds
        if members is not None and self._generator.members is None:
            raise ValueError(f"an ensemble of {members} needs {members} seeds, got one")
        if self._generator.members != members:
            raise ValueError(f"{len(seeds)} seeds for an ensemble of {members}")
        self._permutation = Permutation(seeds)
        self._pending_estimates: dict[Tensor, Tensor] = {}
        self._probe: dict[Tensor, Tensor] = {}
        self._recorded_norms: dict[Tensor, Tensor] = {}
        self._last_estimate: dict[str, Tensor] = {}
        super().__init__(*args, members=members, **rest)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and the curvature estimates that belong to them."""
        super().zero_grad(set_to_none)
        if self._start_point is not None:
            self._start_point.forget_gradients()

    def _clear_step_state(self) -> None:
        super()._clear_step_state()
        self._pending_estimates.clear()
        self._has_estimate = False
        self._probe.clear()
        self._recorded_norms.clear()

    @torch.no_grad()
    def _record_norms(self, due: Tensors) -> None:
        """Record the gradients' norms, to find out at ``step`` whether they were scaled."""
        for p in due:
            if p.grad is not None:
                self._recorded_norms[p] = self._tensor_norm(p.grad)

    def _add_estimate(self, params: Tensors, estimate: Tensors, *, signed: bool = True) -> None:
        self._has_estimate = True
        groups = [g for g in self.param_groups if g["maximize"] and signed]
        flipped = {p for g in groups for p in g["params"]}
        for p, c in zip(params, estimate, strict=True):
            c = -c.detach() if p in flipped else c.detach()
            self._pending_estimates[p] = (
                self._pending_estimates[p] + c if p in self._pending_estimates else c
            )

    @torch.no_grad()
    def _make_probe(self, params: Tensors, all_grads: list[Tensor]) -> Tensors:
        if all(p in self._probe for p in params):
            return [self._probe[p] for p in params]
        group = self.param_groups[0]
        if group["probe"] not in MOMENTUM_PROBES:
            return draw(group["probe"], self._ranks.generator(self._generator), params)
        limit = group["max_grad_norm"]
        clip = 1.0 if limit is None else self._clip_factor(all_grads, limit)
        return [self._momentum_probe(p, clip) for p in params]

    def _momentum_probe(self, p: Tensor, clip: float | Tensor) -> Tensor:
        """``−ρ sign(m)`` with m of this step, or ``−(ρ/k) Σ sign(m)`` over the last k steps."""
        group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
        state = self.state[p]
        m = torch.zeros_like(p) if "momentum" not in state else state["momentum"].clone()
        grad = p.grad if p.grad is not None else torch.zeros_like(p)
        grad = -grad if group["maximize"] else grad
        if isinstance(clip, Tensor):
            grad = grad * self._expand(clip, [p])[0]
        self.ops.lerp_([m], [grad], self._factor(1 - group["betas"][0], [p]))
        direction = m.sign()
        rho = group["rho"]
        if group["probe"] == "momentum_sign_cumulative":
            rho = rho / group["update_period"]
            if "sign_sum" in state:
                direction += state["sign_sum"]
        self.ops.mul_([direction], self._factor(-rho, [p]))
        return direction

    def _extras(self) -> dict[str, Any]:
        # As text, because torch.distributed.checkpoint requires all tensors on one device and
        # all lists of the same length.
        probes = json.dumps(self._generator.state_dict())
        return {"probe_state": probes, "last_estimate": dict(self._last_estimate)}

    def _load_extras(self, extras: dict[str, Any]) -> None:
        probes = extras["probe_state"]
        if probes is not None:
            self._generator.load_state_dict(
                json.loads(probes) if isinstance(probes, str) else probes
            )
            self._permutation = Permutation(self._generator.seeds)
        device = self.param_groups[0]["params"][0].device
        last = extras["last_estimate"] or {}
        self._last_estimate = {name: value.to(device) for name, value in last.items()}

    def _create_state(self) -> None:
        super()._create_state()
        first = self.param_groups[0]["params"][0]
        shape = () if self.members is None else (self.members,)
        zero = torch.zeros(shape, dtype=first.dtype, device=first.device)
        self._last_estimate = dict.fromkeys(STATISTICS, zero)

    def __getstate__(self) -> dict[str, Any]:
        names = ("_permutation", "diagonal_fn", "hvp", "buffers", "_ranks", "_same_batch_checked")
        extra = {name: getattr(self, name) for name in names}
        return {**super().__getstate__(), **extra, "_generator": self._generator.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_generator", None)
        if saved is not None:
            seeds = saved["seeds"]
            self._generator = ProbeGenerator(seeds[0] if saved["members"] is None else seeds)
            self._generator.load_state_dict(saved)
            self._pending_estimates, self._probe, self._recorded_norms = {}, {}, {}
        super().__setstate__(state)
