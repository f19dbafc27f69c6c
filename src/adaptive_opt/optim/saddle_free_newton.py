r"""Saddle-free Newton: second-order step sizes from the whole curvature matrix.

At step t = 0, 1, 2, …

    m ← β1 m + (1−β1) g                                  (no bias correction)
    if t mod k == 0:  D ← β2 D + (1−β2) H;  D = V diag(λ) Vᵀ
    u ← V diag(1 / max(abs λ + ε, ‖m‖ / (ρ √P))) Vᵀ m
    θ ← (1 − ηλ_w) θ − η u

H is the Hessian or the Gauss–Newton matrix of the loss on the batch, P the number of parameters and
λ_w the weight decay. Without clipping this is the rule of :class:`.methods.SADH` along the
eigenvectors of D, if no entry of a diagonal H changes its sign (SADH smooths abs H_ii, this class
H), so on every quadratic function with a diagonal Hessian.

The clip bounds the norm, ‖u‖ ≤ ρ √P, as that of the diagonal methods does. It raises small
eigenvalues, so steps along large ones stay Newton steps. Neither of the simpler clips would do:

- Scaling all of u down would stop every direction, because eigenvalues near zero have nearly all
  of its norm.
- Clipping the coordinates of u along each eigenvector would depend on the choice of eigenvectors
  where eigenvalues are equal, so on rounding errors. A Gauss–Newton matrix has many that are zero.

``structure="diagonal"`` is the diagonal method with this clip. It takes the same steps as the whole
matrix if H is diagonal.

Source: Dauphin et al., *Identifying and attacking the saddle point problem in high-dimensional
non-convex optimization* (2014).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._lists import Tensors
from .base import values
from .curvature_estimate import CurvatureEstimation
from .curvature_state import is_due
from .sources import HVP, estimate_statistics, exact_diagonal

__all__ = ["MATRICES", "STRUCTURES", "SaddleFreeNewton"]

MATRICES = ("hessian", "gauss_newton")
STRUCTURES = ("whole", "layer", "diagonal")


class SaddleFreeNewton(CurvatureEstimation):
    """Newton's method with the absolute values of the Hessian's eigenvalues.

    For small models: it stores two matrices of P × P numbers for P parameters, and decomposes one
    at every refresh. Eigenvalues below about 1e-7 of the largest are rounding errors in float32;
    the clip bounds their effect. On a GPU, the decomposition waits for the device.

    Call ``optimizer.backward(loss)`` instead of ``loss.backward()``, as with
    :class:`~adaptive_opt.optim.SecondOrderOptimizer`.

    Args:
        params: parameters, or parameter groups; each group has its own matrix.
        lr: η ≥ 0.
        betas: (β1, β2) in [0, 1): smoothing factors of the gradient and of the matrix.
        rho: ρ > 0, the clip radius: the update's root mean square is at most ρ.
        eps: ε ≥ 0, the damping.
        weight_decay: λ_w ≥ 0, decoupled.
        update_period: k ≥ 1: refresh the matrix every k steps, in all groups.
        matrix: ``hessian`` (default) or ``gauss_newton``.
        structure: ``whole`` (default); ``layer``: a block for each parameter tensor, zeros
            elsewhere; ``diagonal``.
        matrix_fn: returns the matrix ``[P, P]``, or ``[members, P, P]``, over all parameters with
            a gradient, in their order; for ``diagonal`` only its diagonal, ``[P]`` or
            ``[members, P]``. Default: P Hessian-vector products. Both count as P products.
        max_grad_norm: clip the gradient to this global norm; default: no clipping.
        clip_curvature: scale the matrix as the gradient is scaled (default).
        members: ensemble size; lr, betas, rho, eps and weight_decay may then be tensors
            ``[members]``. None (default): a single model.
        foreach, maximize, capturable, differentiable, fused: see
            :class:`~adaptive_opt.optim.EnsembleOptimizer`.

    Raises:
        ValueError: a hyperparameter is out of range, an option is unknown, or two do not fit.
        RuntimeError: in ``step``, if the matrix is due but ``backward`` made none, or if other
            parameters have a gradient than before.

    Example:
        >>> p = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> opt = SaddleFreeNewton([p], lr=1.0, betas=(0.0, 0.0), rho=100.0)
        >>> opt.backward(p[0] ** 2 + 3 * p[0] * p[1] + 4 * p[1] ** 2)
        >>> opt.step()
        >>> bool(p.abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 6e-2,
        betas: tuple[float | Tensor, float | Tensor] = (0.96, 0.99),
        rho: float | Tensor = 1e-2,
        eps: float | Tensor = 1e-12,
        weight_decay: float | Tensor = 0.0,
        update_period: int = 10,
        *,
        matrix: str = "hessian",
        structure: str = "whole",
        matrix_fn: Callable[[], Tensor] | None = None,
        max_grad_norm: float | None = None,
        clip_curvature: bool = True,
        members: int | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        for name, value, known in (
            ("matrix", matrix, MATRICES),
            ("structure", structure, STRUCTURES),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose from {known}")
        if matrix == "gauss_newton" and matrix_fn is None:
            raise ValueError(
                "matrix='gauss_newton' needs matrix_fn, because the loss alone does not determine "
                "its Gauss–Newton matrix"
            )
        defaults = {
            "lr": lr,
            "betas": betas,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "update_period": update_period,
            "matrix": matrix,
            "structure": structure,
            "curvature": "exact",
            "clip_curvature": clip_curvature,
        }
        super().__init__(
            params,
            defaults,
            seed=0 if members is None else [0] * members,  # there are no random numbers
            diagonal_fn=matrix_fn,
            members=members,
            max_grad_norm=max_grad_norm,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if min(values(group["rho"])) <= 0:
            raise ValueError("rho must be above 0, because the clip divides by it")
        for name in ("matrix", "structure", "update_period"):
            if group[name] != self.param_groups[0][name]:
                raise ValueError(f"all parameter groups must share one {name}")

    @property
    def _rows(self) -> int:
        return self.members or 1

    @property
    def _diagonal(self) -> bool:
        return bool(self.param_groups[0]["structure"] == "diagonal")

    def _blocks(self, params: Sequence[Tensor]) -> list[Tensors]:
        """The parameters of each block of the matrix, in their order."""
        if self.param_groups[0]["structure"] == "layer":
            return [[p] for p in params]
        given = set(params)
        groups = [[p for p in g["params"] if p in given] for g in self.param_groups]
        return [block for block in groups if block]

    def _size(self, params: Sequence[Tensor]) -> int:
        return sum(p.numel() for p in params) // self._rows

    def _given_estimate(self, due: Tensors) -> Tensors:
        given: Tensor = self.diagonal_fn()  # type: ignore[misc]
        total = self._size(due)
        expected = [total] if self._diagonal else [total, total]
        expected = expected if self.members is None else [self.members, *expected]
        if list(given.shape) != expected:
            raise ValueError(f"matrix_fn must return {expected}, got {list(given.shape)}")
        if self._diagonal:
            return self._split(given.reshape(self._rows, total), due)
        whole = given.reshape(self._rows, total, total)
        found, start = [], 0
        for block in self._blocks(due):
            end = start + self._size(block)
            found += self._split(whole[:, start:end, start:end], block)
            start = end
        return found

    def _exact_estimate(self, hvp: HVP, due: Tensors) -> Tensors:
        if self._diagonal:
            return self._split(self._joined(exact_diagonal(hvp, due, self.members)), due)
        unit = {p: torch.zeros_like(p) for p in due}
        found = []
        for block in self._blocks(due):
            columns = []
            for p in block:
                e = unit[p].view(self._rows, -1)
                for i in range(e.shape[1]):
                    e[:, i] = 1
                    product = dict(zip(due, hvp(list(unit.values())), strict=True))
                    columns.append(self._joined([product[q] for q in block]))
                    e[:, i] = 0
            found += self._split(torch.stack(columns, dim=2), block)
        return found

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """One vector for each member, ``[members, P]``."""
        return torch.cat([t.reshape(self._rows, -1) for t in tensors], dim=1)

    def _split(self, matrix: Tensor, block: Sequence[Tensor]) -> Tensors:
        """The rows of a block's matrix that belong to each parameter."""
        return list(matrix.split([self._size([p]) for p in block], dim=1))

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        del group
        return ("momentum",)

    def _create_state(self) -> None:
        super()._create_state()
        for group in self.param_groups:
            for block in self._blocks([p for p in group["params"] if p.grad is not None]):
                self._block_state(block)

    def _block_state(self, block: Sequence[Tensor]) -> dict[str, Tensor]:
        """State of a block, which its first parameter has: D, λ and V."""
        state: dict[str, Tensor] = self.state[block[0]]
        size = self._size(block)
        shape = (self._rows, size) if self._diagonal else (self._rows, size, size)
        if "matrix" not in state:
            state["matrix"] = block[0].new_zeros(shape)
            state["eigenvalues"] = block[0].new_zeros(shape[:2])
            if not self._diagonal:
                state["eigenvectors"] = block[0].new_zeros(shape)
        if state["matrix"].shape != shape:
            raise RuntimeError(
                "other parameters have a gradient than at the first step; the matrix is over all "
                "parameters with a gradient, so they must stay the same"
            )
        return state

    def _prepare(self, group: dict[str, Any], params: Tensors, grads: Tensors) -> Tensors:
        (m,) = self._states(params, "momentum")
        self.ops.lerp_(m, grads, self._factor(1 - group["betas"][0], params))
        update: dict[Tensor, Tensor] = {}
        refreshed: Tensors = []
        smallest = self._smallest_curvature(group, params)
        for block in self._blocks(params):
            state = self._block_state(block)
            if is_due(group):
                refreshed.append(self._refresh(group, block, state))
            along = self._along_eigenvectors(block, state)
            u = self._from_eigenvectors(
                state, along / torch.maximum(self._denominator(group, state), smallest)
            )
            parts = self._split(u, block)
            update |= {p: part.reshape(p.shape) for p, part in zip(block, parts, strict=True)}
        if refreshed:
            self._last_estimate = estimate_statistics(refreshed, self._rows)
            if self.members is None:
                self._last_estimate = {n: v[0] for n, v in self._last_estimate.items()}
        return [update[p] for p in params]

    def _refresh(
        self, group: dict[str, Any], block: Sequence[Tensor], state: dict[str, Tensor]
    ) -> Tensor:
        """Smooth the matrix and decompose it; returns the new, unsmoothed one."""
        if any(p not in self._pending_estimates for p in block):
            raise RuntimeError(
                "curvature is due at this step, but no matrix was made: call "
                "optimizer.backward(loss) instead of loss.backward()"
            )
        fresh = torch.cat([self._pending_estimates[p] for p in block], dim=1)
        smoothed = state["matrix"]
        # Keep D of a member that has diverged: eigh would raise an error for the whole ensemble.
        finite = fresh.isfinite().flatten(1).all(1).view(-1, *[1] * (fresh.ndim - 1))
        kept = torch.where(finite, fresh, smoothed)
        weight = self._factor(1 - group["betas"][1], [smoothed])
        self.ops.lerp_([smoothed], [kept], weight)
        if self._diagonal:
            state["eigenvalues"] = smoothed.clone()
        else:
            state["eigenvalues"], state["eigenvectors"] = torch.linalg.eigh(smoothed)
        return fresh

    def _smallest_curvature(self, group: dict[str, Any], params: Sequence[Tensor]) -> Tensor:
        """``‖m‖ / (ρ √P)`` over a parameter group, ``[members, 1]``."""
        m = self._joined([self.state[p]["momentum"] for p in params])
        norm = torch.linalg.vector_norm(m, dim=1, keepdim=True)
        smallest: Tensor = norm / self._widened(group["rho"], norm) / m.shape[1] ** 0.5
        return smallest

    def _along_eigenvectors(self, block: Sequence[Tensor], state: dict[str, Tensor]) -> Tensor:
        """``Vᵀ m``, ``[members, P]``."""
        m = self._joined([self.state[p]["momentum"] for p in block])
        return m if self._diagonal else (m[:, None] @ state["eigenvectors"])[:, 0]

    def _from_eigenvectors(self, state: dict[str, Tensor], u: Tensor) -> Tensor:
        """``V u``, ``[members, P]``."""
        return u if self._diagonal else (state["eigenvectors"] @ u[..., None])[..., 0]

    def _denominator(self, group: dict[str, Any], state: dict[str, Tensor]) -> Tensor:
        """``abs λ + ε``, ``[members, P]``."""
        size = state["eigenvalues"].abs()
        return size.add_(self._widened(group["eps"], size))

    def _step_group(
        self, group: dict[str, Any], params: Tensors, grads: Tensors, prepared: Tensors | None
    ) -> None:
        del grads
        self._apply(group, params, prepared or [])

    @torch.no_grad()
    def statistics(self) -> dict[str, Tensor]:
        """Statistics of the last step; each is 0-dim, or ``[members]``.

        ``clipped_fraction`` is the share of eigenvectors whose curvature the clip has raised.
        ``denominator_norm`` and ``curvature_norm`` are the norms of abs λ + ε and of D.
        ``estimate_norm`` and ``positive_estimate_share`` describe the entries of H at the last
        refresh. Empty before the first step.
        """
        clipped, denominators, norms = [], [], []
        for group in self.param_groups:
            seen = [p for p in group["params"] if "momentum" in self.state.get(p, {})]
            smallest = self._smallest_curvature(group, seen) if seen else torch.zeros(())
            for block in self._blocks(seen):
                state = self._block_state(block)
                denominators.append(self._denominator(group, state))
                clipped.append(denominators[-1] < smallest)
                norms.append(state["eigenvalues"])
        if not clipped:
            return {}
        found = {
            "clipped_fraction": torch.cat(clipped, dim=1).float().mean(1),
            "denominator_norm": torch.linalg.vector_norm(torch.cat(denominators, dim=1), dim=1),
            "curvature_norm": torch.linalg.vector_norm(torch.cat(norms, dim=1), dim=1),
        }
        if self.members is None:
            found = {name: value[0] for name, value in found.items()}
        return {**found, **self._last_estimate}

    def _widened(self, value: Any, like: Tensor) -> Any:
        factor = self._factor(value, [like])
        return factor[0] if isinstance(factor, list) else factor
