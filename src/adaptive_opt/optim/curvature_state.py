"""State of an optimizer that estimates curvature: probe generators and pending estimates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ._lists import Tensors
from .base import EnsembleOptimizer
from .finite_differences import Point, difference, step_length
from .probes import MOMENTUM_PROBES, ProbeGenerator, draw
from .ranks import Ranks
from .sources import STATISTICS, Permutation

__all__ = ["CurvatureState", "is_due"]


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
    estimates_diagonal: ClassVar[bool] = True
    """Whether the estimate is c = v ⊙ Hv, of the Hessian's diagonal; otherwise c = Hv."""
    buffers: Callable[[], Iterable[Tensor]] | None
    _ranks: Ranks
    _same_batch_checked: bool
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
        self._more_probes: list[dict[Tensor, Tensor]] = []
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
        self._more_probes.clear()
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

    @torch.no_grad()
    def _make_probes(self, params: Tensors, all_grads: list[Tensor]) -> list[Tensors]:
        """All probes of one refresh; a second call before the step returns the same ones."""
        group = self.param_groups[0]
        first = self._make_probe(params, all_grads)
        self._probe.update(zip(params, first, strict=True))
        probes = [first]
        for i in range(group["probes"] - 1):
            if i == len(self._more_probes):
                self._more_probes.append({})
            known = self._more_probes[i]
            if not all(p in known for p in params):
                generator = self._ranks.generator(self._generator)
                known |= dict(zip(params, draw(group["probe"], generator, params), strict=True))
            probes.append([known[p] for p in params])
        return probes

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

    def _estimate_by_differences(self, gradient: Callable[[], Any]) -> Any:
        """Estimate with Hv = (g(θ + εv) − g(θ)) / ε (:func:`.finite_differences.difference`)."""
        backwards: list[int] = []

        def evaluate() -> Any:
            loss = gradient()
            backwards.append(self._backward_calls)
            return loss

        own_params = [p for g in self.param_groups for p in g["params"]]
        due = [p for g in self.param_groups if is_due(g) for p in g["params"] if p.requires_grad]
        saved_probe, generator_state = dict(self._probe), self._generator.state_dict()

        def make_probe(params: Tensors) -> Tensors:
            self._probe.update(saved_probe)
            self._generator.load_state_dict(generator_state)
            return self._make_probe(params, [p.grad for p in own_params if p.grad is not None])

        self._start_point = Point.of(own_params)
        try:
            result = difference(
                evaluate,
                self._start_point,
                due,
                make_probe,
                self._step_size,
                gradient_first=self.param_groups[0]["probe"] in MOMENTUM_PROBES,
                buffers=() if self.buffers is None else self.buffers(),
                check=not self._same_batch_checked,
            )
        finally:
            self._start_point = None
        if result is None:  # some wrappers pass an empty closure if the user gave none
            self._generator.load_state_dict(generator_state)
            return None
        self._same_batch_checked |= result.checked
        self._backward_calls = backwards[0]  # the second evaluation is counted below
        if len(backwards) > 1:
            self.hvp_count += 1
            self.curvature_cost += 1  # one more gradient
        product = result.product
        if self.estimates_diagonal:
            product = [v * h for v, h in zip(result.probe, product, strict=True)]
        self._probe.update(zip(result.params, result.probe, strict=True))
        self._add_estimate(result.params, product)
        self._record_norms(result.params)
        return result.loss

    def _step_size(self, params: Tensors, probe: Tensors) -> list[Tensor]:
        """ε of :func:`.finite_differences.step_length`, broadcastable to each tensor."""
        size = step_length(self._norm(params), self._norm(probe), params[0].dtype)
        return self._expand(size, params)

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
            self._more_probes = []
        super().__setstate__(state)


def is_due(group: dict[str, Any]) -> bool:
    """Whether the next step refreshes the curvature of the parameter group."""
    return bool(group["step"] % group["update_period"] == 0)
