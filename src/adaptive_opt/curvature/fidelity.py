r"""Fidelity: compare curvature estimates with the exact diagonal along a trajectory.

A run refreshes its curvature at points θ_0, θ_1, …, where its momentum is m. H is the exact
Hessian there, and d = diag(H). Estimates with a probe v are compared at three *stages*:

    stage     of the estimate                                       compared with
    raw       c = v ⊙ Hv                                            d
    smoothed  D ← β2 D + (1−β2) s(c) over all refreshes so far, as  d (Sophia),
              in denom: D (Sophia, SADH) or √D (SSDH, SSVP)         |d| (others)
    clipped   u = clip(m / denom(D), −ρ, ρ)                         u of the same rule, given d
                                                                    since the first refresh

*smoothed* thus includes noise, bias, and the lag and zero start of the average; *clipped*
includes only the error of the probe.

SSVP has v = −ρ sign(m) and c = Hv. To have the unit of the diagonal, c / ρ is compared with d, and
the exact rule gets ρ d. The *raw* stage uses sign(m) ⊙ H sign(m), because signs matter there; it
equals c / ρ up to signs, which squaring removes.

For R draws a_r of an estimate, and a reference b, both of n entries:

    bias               ‖mean_r a_r − b‖ / ‖b‖
    bias_noise         √(Σ_i var_r(a_ri) / R) / ‖b‖, the expected bias of an unbiased estimate
                       with R draws
    relative_error     √(mean_r ‖a_r − b‖²) / ‖b‖
    cosine             mean_r ⟨a_r, b⟩ / (‖a_r‖ ‖b‖)
    rank_correlation   mean_r of Spearman's correlation; ties share their mean rank; NaN if all
                       entries are tied
    sign_agreement     mean_r of the share of entries with the sign of b (*smoothed*: of d)

Hessians are those of the loss over all samples, so minibatch noise is excluded. Everything is
float64. The expected relative_error² of Rademacher probes is Σ_{i≠j} H_ij² / ‖d‖²; Gaussian
probes add 2 H_ii² to the sum (:mod:`adaptive_opt.optim.probes`). Tests check these values.
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
"""Refreshes whose Hessians are in memory at a time: some megabytes, about the size of a cache,
for a few hundred parameters and a few seeds."""

HessianFn = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Method:
    """A step rule with the probe that it uses.

    Attributes:
        name: name of the method.
        probe: name of the probe, or ``exact`` for d itself.
        optimizer: class with the step rule.
    """

    name: str
    probe: str
    optimizer: type[SecondOrderOptimizer]

    def unit(self, rho: float) -> float:
        """Unit of this method's c relative to the diagonal: ρ for SSVP, else 1."""
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
    """Metrics of one estimate at one refresh.

    Attributes:
        refresh: index of the refresh.
        stage: ``raw``, ``smoothed`` or ``clipped``.
        probe: name of the probe, or ``exact``.
        method: name of the method; empty at the stage ``raw``.
        metrics: ``[seeds, len(METRICS)]``; NaN for a seed without a point at this refresh.
    """

    refresh: int
    stage: str
    probe: str
    method: str
    metrics: Tensor


class Smoothing:
    """Smoothed curvature D of a step rule, and the update that it leads to.

    Args:
        method: method with the step rule.
        beta2, rho, eps: hyperparameters of the rule.

    Example:
        >>> smoothing = Smoothing(METHODS[2], beta2=0.75, rho=0.5, eps=0.0)  # SSDH
        >>> smoothing.refresh(torch.tensor([2.0, -8.0]))
        >>> smoothing.diagonal_estimate().tolist()  # √(0.25 c²)
        [1.0, 4.0]
        >>> smoothing.update(torch.tensor([1.0, 1.0])).tolist()
        [0.5, 0.25]
    """

    def __init__(self, method: Method, *, beta2: float, rho: float, eps: float) -> None:
        self._rule, self._unit = method.optimizer.rule, method.unit(rho)
        self._beta2, self._rho, self._eps = beta2, rho, eps
        self._curvature: Tensor | None = None

    def refresh(self, estimate: Tensor) -> None:
        """Update D by an estimate in units of the diagonal, of any shape."""
        smoothed = self._rule.smooth(self._unit * estimate)
        if self._curvature is None:
            self._curvature = torch.zeros_like(smoothed)
        self._curvature.lerp_(smoothed, 1 - self._beta2)

    @property
    def curvature(self) -> Tensor:
        """The smoothed curvature D.

        Raises:
            RuntimeError: :meth:`refresh` was not called.
        """
        if self._curvature is None:
            raise RuntimeError("there is no curvature yet; call refresh first")
        return self._curvature

    def diagonal_estimate(self) -> Tensor:
        """D, or √D if D averages squares, in units of the diagonal."""
        estimate = self.curvature.sqrt() if self._rule is SQUARED else self.curvature
        return estimate / self._unit

    def update(self, momentum: Tensor) -> Tensor:
        """``clip(m / denom(D), −ρ, ρ)``, with m broadcast to D."""
        (denominator,) = self._rule.denominator(Loop(), [self.curvature], self._eps)
        return (momentum / denominator).clamp_(-self._rho, self._rho)


def compare(estimates: Tensor, reference: Tensor, signs: Tensor | None = None) -> Tensor:
    """Compute :data:`METRICS`, defined in :mod:`adaptive_opt.curvature.fidelity`.

    Args:
        estimates: a_r, ``[..., draws, n]``.
        reference: b, ``[..., n]``.
        signs: values whose signs are compared, ``[..., n]``; default: the reference.

    Returns:
        ``[..., len(METRICS)]``; NaN where an estimate or reference is not finite.

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
    """Ranks from 0 along the last dimension; ties, which clipping causes, share the mean rank."""
    values = values.contiguous()
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above - 1).to(values.dtype) / 2


def _draw_probes(name: str, momentum: Tensor, number: int, streams: ProbeGenerator) -> Tensor:
    """Draw probes ``[..., number, n]`` of unit scale; only one if the probe is not random."""
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
    """Measure the fidelity of every probe and method at some refreshes of a trajectory.

    Args:
        hessian_fn: maps points ``[count, n]`` (float64) to exact ``(Hessians, gradients)``.
        points: θ at every refresh, beginning with the first, ``[refreshes, seeds, n]``.
        momenta: m at the same steps, of the same shape.
        refreshes: indices of the refreshes to measure.
        beta2, rho, eps: hyperparameters of all methods, so that only the estimates differ.
        draws: number of draws of each random probe at the stage *raw*.
        paths: number of independent sequences of draws at the stages *smoothed* and *clipped*.
        seed: seed of all draws.

    Returns:
        Metrics for each refresh, stage, probe and method.
    """
    wanted = sorted(set(refreshes))
    # Two generators, so that the sequences do not depend on the choice of refreshes.
    raw_streams, path_streams = ProbeGenerator(seed), ProbeGenerator(seed + 1)
    settings = {"beta2": beta2, "rho": rho, "eps": eps}
    smoothings = [(m, Smoothing(m, **settings), Smoothing(m, **settings)) for m in METHODS]
    found: list[Fidelity] = []
    for refresh, m, hessian, diagonal, products in _refresh_steps(
        hessian_fn, points[: wanted[-1] + 1], momenta, paths, path_streams
    ):
        for method, estimated, exact in smoothings:
            estimated.refresh(products[method.probe])
            exact.refresh(diagonal[:, None])
        if refresh not in wanted:
            continue
        for name in PROBES:
            v = _draw_probes(name, m, draws, raw_streams)
            metrics = compare(v * (v @ hessian), diagonal)
            found.append(Fidelity(refresh, "raw", name, "", metrics))
        for method, estimated, exact in smoothings:
            reference = diagonal if method.optimizer.rule is SIGNED else diagonal.abs()
            smoothed = compare(estimated.diagonal_estimate(), reference, signs=diagonal)
            target = exact.update(m[:, None])[:, 0]
            updates = compare(estimated.update(m[:, None]), target)
            for stage, metrics in (("smoothed", smoothed), ("clipped", updates)):
                found.append(Fidelity(refresh, stage, method.probe, method.name, metrics))
    return found


_Step = tuple[int, Tensor, Tensor, Tensor, dict[str, Tensor]]


def _refresh_steps(
    hessian_fn: HessianFn, points: Tensor, momenta: Tensor, paths: int, streams: ProbeGenerator
) -> Iterator[_Step]:
    """For each refresh: index, m ``[seeds, n]``, H, d, and estimates in units of the diagonal.

    The estimates of a probe have shape ``[seeds, paths, n]``, or ``[seeds, 1, n]`` if it is not
    random.
    """
    for start in range(0, len(points), CHUNK):
        part = points[start : start + CHUNK].double()
        count, seeds, n = part.shape
        m = momenta[start : start + count].double()
        hessian = hessian_fn(part.reshape(-1, n))[0].view(count, seeds, n, n)
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        probes = [_draw_probes(name, m, paths, streams) for name in PROBES]
        # One product for all probes reads each Hessian once; H is symmetric.
        product = (torch.cat(probes, dim=-2) @ hessian).split([v.shape[-2] for v in probes], -2)
        made = {"exact": diagonal[..., None, :]}
        for name, v, hv in zip(PROBES, probes, product, strict=True):
            made[name] = hv if name == "momentum_sign" else v * hv
        for i in range(count):
            products = {name: c[i] for name, c in made.items()}
            yield start + i, m[i], hessian[i], diagonal[i], products
