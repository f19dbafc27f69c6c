"""SGD with momentum and Adam, for one model or an ensemble.

Unlike those of ``torch.optim``, they accept a learning rate for each member, as a batch of tuning
trials needs. Without ``members`` they equal torch's if every parameter has a gradient at every
step: the bias correction counts steps of a group, not of a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ._lists import Tensors
from .base import EnsembleOptimizer, check_betas, check_range

__all__ = ["SGDM", "Adam"]


class SGDM(EnsembleOptimizer):
    """Stochastic gradient descent with heavy-ball momentum.

        b ← μ b + g + λ θ,    θ ← θ − η b

    Args:
        params: parameters, or parameter groups.
        lr: η ≥ 0; like the other hyperparameters, a number or a tensor ``[members]``.
        momentum: μ in [0, 1).
        weight_decay: λ ≥ 0, coupled, as in ``torch.optim.SGD``.
        members, max_grad_norm, foreach, maximize, capturable, differentiable, fused: see
            :class:`EnsembleOptimizer`.

    Source: Polyak, *Some methods of speeding up the convergence of iteration methods* (1964);
    Sutskever et al., *On the importance of initialization and momentum in deep learning* (2013).

    Example:
        >>> import torch
        >>> p = torch.tensor([1.0], requires_grad=True)
        >>> opt = SGDM([p], lr=0.1)
        >>> opt.backward((p**2).sum())
        >>> opt.step()
        >>> p
        tensor([0.8000], requires_grad=True)
    """

    hyperparameters = ("lr", "momentum", "weight_decay")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float | Tensor = 0.9,
        weight_decay: float | Tensor = 0.0,
        *,
        members: int | None = None,
        max_grad_norm: float | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(
            params,
            defaults,
            members=members,
            max_grad_norm=max_grad_norm,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        check_range("lr", group["lr"], 0)
        check_range("momentum", group["momentum"], 0, 1)
        check_range("weight_decay", group["weight_decay"], 0)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        del group
        return ("momentum",)

    def _step_group(
        self, group: dict[str, Any], params: Tensors, grads: Tensors, prepared: Tensors | None
    ) -> None:
        del prepared
        ops = self.ops
        (buffer,) = self._states(params, "momentum")
        if _nonzero(group["weight_decay"]):
            grads = [g.clone() for g in grads]
            decay = [p * w for p, w in _pairs(params, self._factor(group["weight_decay"], params))]
            ops.add_(grads, decay)
        ops.mul_(buffer, self._factor(group["momentum"], params))
        ops.add_(buffer, grads)
        ops.sub_scaled_(params, buffer, self._factor(group["lr"], params))


class Adam(EnsembleOptimizer):
    """Adam with bias correction.

        m ← β1 m + (1−β1) g,   v ← β2 v + (1−β2) g²,
        θ ← θ − η / (1−β1^t) · m / (√v / √(1−β2^t) + ε)

    Args:
        params: parameters, or parameter groups.
        lr: η ≥ 0; like the other hyperparameters, a number or a tensor ``[members]``.
        betas: (β1, β2) in [0, 1).
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0, coupled, as in ``torch.optim.Adam``.
        members, max_grad_norm, foreach, maximize, capturable, differentiable, fused: see
            :class:`EnsembleOptimizer`.

    Source: Kingma & Ba, *Adam: A Method for Stochastic Optimization* (2015).

    Example:
        >>> import torch
        >>> p = torch.tensor([1.0], requires_grad=True)
        >>> opt = Adam([p], lr=0.1)
        >>> opt.backward((p**2).sum())
        >>> opt.step()
        >>> p
        tensor([0.9000], requires_grad=True)
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 0.0,
        *,
        members: int | None = None,
        max_grad_norm: float | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(
            params,
            defaults,
            members=members,
            max_grad_norm=max_grad_norm,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        check_range("lr", group["lr"], 0)
        check_betas(group["betas"])
        check_range("eps", group["eps"], 0)
        check_range("weight_decay", group["weight_decay"], 0)

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        del group
        return ("momentum", "second_moment")

    def _step_group(
        self, group: dict[str, Any], params: Tensors, grads: Tensors, prepared: Tensors | None
    ) -> None:
        del prepared
        ops, t = self.ops, group["step"] + 1
        m, v = self._states(params, "momentum", "second_moment")
        if _nonzero(group["weight_decay"]):
            grads = [g.clone() for g in grads]
            decay = [p * w for p, w in _pairs(params, self._factor(group["weight_decay"], params))]
            ops.add_(grads, decay)
        beta1, beta2 = group["betas"]
        ops.lerp_(m, grads, self._factor(1 - beta1, params))
        ops.mul_(v, self._factor(beta2, params))
        if isinstance(beta2, Tensor):
            ops.add_(v, [g * g * w for g, w in _pairs(grads, self._factor(1 - beta2, params))])
        else:
            ops.addcmul_(v, grads, grads, 1 - beta2)
        denominator = self._denominator(group, v, t)
        step_size = group["lr"] / (1 - beta1**t)
        ops.sub_scaled_(params, ops.div_into(m, denominator), self._factor(step_size, params))

    @torch.no_grad()
    def denominators(self) -> dict[Tensor, Tensor]:
        """``√v̂ + ε`` of the last step for each parameter."""
        found: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            params = [p for p in group["params"] if "second_moment" in self.state.get(p, {})]
            if params:
                (v,) = self._states(params, "second_moment")
                made = self._denominator(group, v, group["step"])
                found |= dict(zip(params, made, strict=True))
        return found

    def _denominator(self, group: dict[str, Any], v: Tensors, t: int) -> Tensors:
        ops = self.ops
        denominator = ops.sqrt(v)
        ops.mul_(denominator, self._factor((1 - group["betas"][1] ** t) ** -0.5, v))
        ops.add_(denominator, self._factor(group["eps"], v))
        return denominator

    def statistics(self) -> dict[str, Tensor]:
        """``second_moment_norm``: the norm of v, 0-dim or ``[members]``."""
        seen = [s["second_moment"] for s in self.state.values() if "second_moment" in s]
        return {"second_moment_norm": self._norm(seen)} if seen else {}


def _nonzero(value: float | Tensor) -> bool:
    """Whether a term is needed; True for any tensor, as reading its values would synchronise."""
    return isinstance(value, Tensor) or value != 0


def _pairs(tensors: Tensors, factor: Any) -> list[tuple[Tensor, Any]]:
    factors = factor if isinstance(factor, list) else [factor] * len(tensors)
    return list(zip(tensors, factors, strict=True))
