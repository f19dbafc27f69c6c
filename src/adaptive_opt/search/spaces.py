"""Search spaces: ranges and sampling scales of hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["EDGE_TOLERANCE", "Dimension", "Space"]

EDGE_TOLERANCE = 0.02
"""A best value this close to a bound suggests that the optimum lies outside the range.

A share of the range on its sampling scale.
"""


@dataclass(frozen=True)
class Dimension:
    """Range of one hyperparameter.

    Attributes:
        low, high: bounds of the hyperparameter.
        scale: ``linear``, ``log`` or ``log_complement``: sampling is uniform in x, log x or
            log(1 − x).

    Example:
        >>> beta2 = Dimension(0.9, 0.999, "log_complement")
        >>> round(beta2.position(0.99), 3)
        0.5
    """

    low: float
    high: float
    scale: str = "log"

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of the sampled coordinate: x, or 1 − x on the scale ``log_complement``."""
        if self.scale == "log_complement":
            return 1 - self.high, 1 - self.low
        return self.low, self.high

    def encode(self, value: float) -> float:
        """Convert a value to the sampled coordinate."""
        return 1 - value if self.scale == "log_complement" else value

    decode = encode
    """Convert the sampled coordinate to a value; x ↦ 1 − x is its own inverse."""

    def position(self, value: float) -> float:
        """Return where a value lies on the sampling scale, from 0 (``low``) to 1 (``high``)."""
        if self.scale == "linear":
            return (value - self.low) / (self.high - self.low)
        a, b, x = (math.log(self.encode(v)) for v in (self.low, self.high, value))
        return (x - a) / (b - a)

    def edge(self, value: float) -> str | None:
        """Return ``low`` or ``high`` if the value is at that bound (:data:`EDGE_TOLERANCE`)."""
        position = self.position(value)
        if position <= EDGE_TOLERANCE:
            return "low"
        return "high" if position >= 1 - EDGE_TOLERANCE else None

    def widened(self, edge: str) -> Dimension:
        """Return the range with one bound moved out by half its width on the sampling scale.

        On a linear scale, a bound that is not negative stops at 0, one up to 1 stops below 1.

        Args:
            edge: the bound to move, ``low`` or ``high``.
        """
        low, high = self.low, self.high
        if self.scale == "linear":
            reach = (high - low) / 2
            inside_unit = high <= 1
            low, high = (
                (max(0.0, low - reach) if low >= 0 else low - reach, high)
                if edge == "low"
                else (low, min(1 - 1e-6, high + reach) if inside_unit else high + reach)
            )
            return Dimension(low, high, self.scale)
        a, b = self.encode(low), self.encode(high)
        factor = math.sqrt(b / a)
        if edge == "low":
            low = self.decode(a / factor)
        else:
            high = self.decode(b * factor)
        if self.scale == "log_complement":
            low = max(0.0, low)
        return Dimension(low, high, self.scale)


class Space(dict[str, Dimension]):
    """Ranges of hyperparameters by name, in sampling order."""

    @classmethod
    def from_parameters(cls, given: Mapping[str, Any]) -> Space:
        """Create a space from objects with ``low``, ``high`` and ``scale``, by name."""
        return cls({name: Dimension(d.low, d.high, d.scale) for name, d in given.items()})

    @staticmethod
    def coordinate(name: str, dimension: Dimension) -> str:
        """Return the name of the sampled coordinate, for example ``1 - beta2``."""
        return f"1 - {name}" if dimension.scale == "log_complement" else name

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the sampled coordinates as Optuna's distributions."""
        from optuna.distributions import FloatDistribution

        return {
            self.coordinate(n, d): FloatDistribution(*d.bounds, log=d.scale != "linear")
            for n, d in self.items()
        }

    def decode(self, drawn: Mapping[str, float]) -> dict[str, float]:
        """Convert Optuna's parameters to hyperparameters."""
        return {n: d.decode(drawn[self.coordinate(n, d)]) for n, d in self.items()}

    def encode(self, values: Mapping[str, float]) -> dict[str, float]:
        """Convert hyperparameters to Optuna's parameters."""
        return {self.coordinate(n, d): d.encode(values[n]) for n, d in self.items()}

    def edges(self, values: Mapping[str, float]) -> dict[str, str]:
        """Return the hyperparameters whose value is at a bound, with ``low`` or ``high``."""
        found = {name: dimension.edge(values[name]) for name, dimension in self.items()}
        return {name: edge for name, edge in found.items() if edge is not None}

    def widened(self, edges: Mapping[str, str]) -> Space:
        """Return the space with these bounds moved out; see :meth:`Dimension.widened`."""
        return Space({n: d.widened(edges[n]) if n in edges else d for n, d in self.items()})

    def describe(self) -> dict[str, list[Any]]:
        """Return ``[low, high, scale]`` by name, for records and digests."""
        return {name: [d.low, d.high, d.scale] for name, d in self.items()}
