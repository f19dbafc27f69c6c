r"""How faithful curvature estimates are to the exact diagonal, along a trajectory.

At points θ_0, θ_1, … of a run, one for each refresh of its curvature, with the momentum m of the
same steps and the exact Hessian H, d = diag(H), three *stages* of what an optimizer makes of
a probe v are compared with what it would make of d:

    raw       c = v ⊙ Hv                                              with  d
    smoothed  D ← β2 D + (1−β2) s(c) over all refreshes so far, as it
              stands in the denominator: D (Sophia, SADH) or √D (SSDH, SSVP)   with  d, |d|
    clipped   u = clip(m / denom(D), −ρ, ρ)          with the same rule fed with d since t = 0

so that *smoothed* has in it the noise, the bias, the lag of the mean and its start at zero,
and *clipped* only what the probe is to blame for. SSVP takes v = −ρ sign(m) and c = Hv: its
c and d are put in the same unit by a factor ρ, c / ρ being compared with d and its rule being
fed with ρ d; where signs matter (raw), sign(m) ⊙ H sign(m) is taken, which is c / ρ up to
the signs that its square drops anyway.

Given an estimate a (R draws of it, a_r) of b, both of n entries:

    bias               ‖mean_r a_r − b‖ / ‖b‖
    bias_noise         √(Σ_i var_r(a_ri) / R) / ‖b‖, what the bias of an unbiased estimate
                       comes out as, because R is finite
    relative_error     √(mean_r ‖a_r − b‖²) / ‖b‖
    cosine             mean_r ⟨a_r, b⟩ / (‖a_r‖ ‖b‖)
    rank_correlation   mean_r of Spearman's, ties sharing their mean rank; NaN if all are tied
    sign_agreement     share of entries with the sign of b's (smoothed: of d, which has not been
                       made positive), mean over r

All Hessians are of the loss over all samples: the noise of minibatches, which an optimizer
has on top, is left out. Everything is float64. For Rademacher probes relative_error² is
Σ_{i≠j} H_ij² / ‖d‖², for Gaussian ones the same with 2 H_ii² added, without any draw
(:mod:`adaptive_opt.optim.probes`), which the tests use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaptive_opt.optim import SADH, SSDH, SSVP, SecondOrderOptimizer, Sophia
from adaptive_opt.optim._lists import Loop
from adaptive_opt.optim.probes import ProbeGenerator, draw
from adaptive_opt.optim.rules import SIGNED, SQUARED

__all__ = ["METHODS", "METRICS", "Fidelity", "Method", "Smoothing", "compare", "measure"]

METRICS = (
    "bias",
    "bias_noise",
    "relative_error",
    "cosine",
    "rank_correlation",
    "sign_agreement",
)

PROBES = ("rademacher", "gaussian", "constant", "momentum_sign")

CHUNK = 4
"""Refreshes whose Hessians are held at a time: some megabytes at a few hundred parameters and a
few seeds, near what a cache holds."""

HessianFn = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Method:
    """A step rule, and the probe that it is fed by; ``exact``: by d itself, beside them."""

    name: str
    probe: str
    optimizer: type[SecondOrderOptimizer]

    def unit(self, rho: float) -> float:
        """What a c of this method is in units of the diagonal."""
        return 1.0 if self.optimizer.estimates_diagonal else rho


METHODS = (
    Method("sophia", "gaussian", Sophia),
    Method("sadh", "rademacher", SADH),
    Method("ssdh", "rademacher", SSDH),
    Method("sadh", "constant", SADH),
    Method("ssdh", "constant", SSDH),
    Method("ssvp", "momentum_sign", SSVP),
    Method("ssdh", "exact", SSDH),
)


@dataclass(frozen=True)
class Fidelity:
    """Measures of one estimate at one refresh.

    Attributes:
        refresh: its index.
        stage: ``raw``, ``smoothed`` or ``clipped``.
        probe: one of the study's, or ``exact``.
        method: name of the method; raw: empty.
        metrics: ``[seeds, len(METRICS)]``, NaN for a seed that has no points there.
    """

    refresh: int
    stage: str
    probe: str
    method: str
    metrics: Tensor


class Smoothing:
    """D of a step rule, and what the optimizer makes of it.

    Args:
        method: whose rule.
        beta2, rho, eps: hyperparameters.

    Example:
        >>> smoothing = Smoothing(METHODS[2], beta2=0.75, rho=0.5, eps=0.0)  # SSDH
        >>> smoothing.refresh(torch.tensor([2.0, -8.0]))
        >>> smoothing.term().tolist()  # √(0.25 c²)
        [1.0, 4.0]
        >>> smoothing.update(torch.tensor([1.0, 1.0])).tolist()
        [0.5, 0.25]
    """

    def __init__(self, method: Method, *, beta2: float, rho: float, eps: float) -> None:
        self._rule, self._unit = method.optimizer.rule, method.unit(rho)
        self._beta2, self._rho, self._eps = beta2, rho, eps
        self._curvature: Tensor | None = None

    def refresh(self, estimate: Tensor) -> None:
        """Take in an estimate in units of the diagonal, of any shape."""
        smoothed = self._rule.smooth(self._unit * estimate)
        if self._curvature is None:
            self._curvature = torch.zeros_like(smoothed)
        self._curvature.lerp_(smoothed, 1 - self._beta2)

    @property
    def curvature(self) -> Tensor:
        """D."""
        if self._curvature is None:
            raise RuntimeError("nothing has been taken in yet")
        return self._curvature

    def term(self) -> Tensor:
        """D, or √D where it is of squares, in units of the diagonal."""
        term = self.curvature.sqrt() if self._rule is SQUARED else self.curvature
        return term / self._unit

    def update(self, momentum: Tensor) -> Tensor:
        """``clip(m / denom(D), −ρ, ρ)``, the momentum being broadcast against D."""
        (denominator,) = self._rule.denominator(Loop(), [self.curvature], self._eps)
        return (momentum / denominator).clamp_(-self._rho, self._rho)


def compare(estimates: Tensor, reference: Tensor, signs: Tensor | None = None) -> Tensor:
    """The columns of :data:`METRICS`, as the module's page defines them.

    Args:
        estimates: ``[..., draws, n]``.
        reference: ``[..., n]``.
        signs: whose signs count, ``[..., n]``; default: those of the reference.

    Returns:
        ``[..., len(METRICS)]``; NaN where anything is not finite.

    Example:
        >>> a, b = [[4.0, 2.0], [2.0, 4.0]], [3.0, -4.0]  # mean of a: [3, 3]
        >>> found = compare(torch.tensor(a).double(), torch.tensor(b).double())
        >>> dict(zip(METRICS, found.numpy().round(3).tolist()))["bias"]  # 7 / 5
        1.4
    """
    draws, each = estimates.shape[-2], reference[..., None, :]
    size = torch.linalg.vector_norm(reference, dim=-1)
    mean = estimates.mean(-2)
    noise = torch.zeros_like(size)
    if draws > 1:
        noise = (estimates.var(-2).sum(-1) / draws).sqrt() / size
    error = (estimates - each).square().sum(-1).mean(-1).sqrt()
    agreeing = estimates.sign() == (each if signs is None else signs[..., None, :]).sign()
    columns = [
        torch.linalg.vector_norm(mean - reference, dim=-1) / size,
        noise,
        error / size,
        _cosine(estimates, each).mean(-1),
        _rank_correlation(estimates, each).mean(-1),
        agreeing.to(estimates.dtype).mean((-2, -1)),
    ]
    finite = estimates.isfinite().all(-1).all(-1) & reference.isfinite().all(-1)
    return torch.where(finite[..., None], torch.stack(columns, dim=-1), torch.nan)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(-1) / norms


def _rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = _ranks(a), _ranks(b)
    return _cosine(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True))


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0 along the last dimension; equal values, as clipping makes, share their mean."""
    values = values.contiguous()
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above - 1).to(values.dtype) / 2


def _probe(name: str, momentum: Tensor, number: int, streams: ProbeGenerator) -> Tensor:
    """Probes ``[..., number, n]`` of unit scale; only one where there is no chance in them."""
    if name == "momentum_sign":
        return -momentum.sign()[..., None, :]
    drawn = 1 if name == "constant" else number
    like = momentum.new_empty(*momentum.shape[:-1], drawn, momentum.shape[-1])
    return draw(name, streams, [like])[0]


def measure(
    hessian_fn: HessianFn,
    points: Tensor,
    momenta: Tensor,
    refreshes: Sequence[int],
    *,
    beta2: float,
    rho: float,
    eps: float,
    draws: int,
    paths: int,
    seed: int,
) -> list[Fidelity]:
    """Every probe and method of this module at some refreshes of a trajectory.

    Args:
        hessian_fn: maps points ``[count, n]`` (float64) to exact ``(Hessians, gradients)``.
        points: ``[refreshes, seeds, n]``, from the first refresh of the run on.
        momenta: m of the same steps, likewise.
        refreshes: indices of those to look at.
        beta2, rho, eps: of every method, so that they differ in the estimate alone.
        draws: of each random probe for *raw*.
        paths: independent sequences of draws for *smoothed* and *clipped*.
        seed: of all draws.
    """
    wanted = sorted(set(refreshes))
    # Streams of their own, so that the sequences do not depend on where one looks.
    once, along = ProbeGenerator(seed), ProbeGenerator(seed + 1)
    settings = {"beta2": beta2, "rho": rho, "eps": eps}
    smoothings = [(m, Smoothing(m, **settings), Smoothing(m, **settings)) for m in METHODS]
    found: list[Fidelity] = []
    for refresh, m, hessian, diagonal, products in _steps(
        hessian_fn, points[: wanted[-1] + 1], momenta, paths, along
    ):
        for method, estimated, exact in smoothings:
            estimated.refresh(products[method.probe])
            exact.refresh(diagonal[:, None])
        if refresh not in wanted:
            continue
        for name in PROBES:
            v = _probe(name, m, draws, once)
            metrics = compare(v * (v @ hessian), diagonal)
            found.append(Fidelity(refresh, "raw", name, "", metrics))
        for method, estimated, exact in smoothings:
            of = diagonal if method.optimizer.rule is SIGNED else diagonal.abs()
            terms = compare(estimated.term(), of, signs=diagonal)
            target = exact.update(m[:, None])[:, 0]
            updates = compare(estimated.update(m[:, None]), target)
            for stage, metrics in (("smoothed", terms), ("clipped", updates)):
                found.append(Fidelity(refresh, stage, method.probe, method.name, metrics))
    return found


_Step = tuple[int, Tensor, Tensor, Tensor, dict[str, Tensor]]


def _steps(
    hessian_fn: HessianFn, points: Tensor, momenta: Tensor, paths: int, streams: ProbeGenerator
) -> Iterator[_Step]:
    """Refresh by refresh: m ``[seeds, n]``, H, d, and for each probe estimates in d's unit.

    Those are ``[seeds, paths or 1, n]``.
    """
    for start in range(0, len(points), CHUNK):
        part = points[start : start + CHUNK].double()
        count, seeds, n = part.shape
        m = momenta[start : start + count].double()
        hessian = hessian_fn(part.reshape(-1, n))[0].view(count, seeds, n, n)
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        probes = [_probe(name, m, paths, streams) for name in PROBES]
        # Each Hessian is read once for all of them; it is symmetric.
        product = (torch.cat(probes, dim=-2) @ hessian).split([v.shape[-2] for v in probes], -2)
        made = {"exact": diagonal[..., None, :]}
        for name, v, hv in zip(PROBES, probes, product, strict=True):
            made[name] = hv if name == "momentum_sign" else v * hv
        for i in range(count):
            products = {name: c[i] for name, c in made.items()}
            yield start + i, m[i], hessian[i], diagonal[i], products
