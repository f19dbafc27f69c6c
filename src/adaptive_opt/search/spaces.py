"""Search spaces: in which coordinates hyperparameters are drawn, and where their bounds are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["EDGE", "Dimension", "Space"]

EDGE = 0.02
"""A value this near to a bound, as a share of the range in the coordinate of the draws, says
that the best may lie beyond."""


@dataclass(frozen=True)
class Dimension:
    """Range of one hyperparameter.

    Attributes:
        low, high: bounds of its values.
        scale: ``linear``, ``log`` or ``log_complement``: draws are uniform in x, log x or
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
        """Of the coordinate that is drawn: the value, or one minus it."""
        if self.scale == "log_complement":
            return 1 - self.high, 1 - self.low
        return self.low, self.high

    def encode(self, value: float) -> float:
        """From the value to the coordinate that is drawn."""
        return 1 - value if self.scale == "log_complement" else value

    decode = encode
    """Each is the other's inverse, and here the same."""

    def position(self, value: float) -> float:
        """Where a value lies between ``low`` (0) and ``high`` (1), as the draws see it."""
        if self.scale == "linear":
            return (value - self.low) / (self.high - self.low)
        a, b, x = (math.log(self.encode(v)) for v in (self.low, self.high, value))
        return (x - a) / (b - a)

    def edge(self, value: float) -> str | None:
        """``low`` or ``high`` if the value is within :data:`EDGE` of that bound."""
        position = self.position(value)
        if position <= EDGE:
            return "low"
        return "high" if position >= 1 - EDGE else None

    def widened(self, edge: str) -> Dimension:
        """The range with a bound moved out by half of its width; a linear one stops at 0 or 1.

        Half in the coordinate of the draws: a factor on a log scale.
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
    """Hyperparameters and their ranges, in the order in which they are drawn."""

    @classmethod
    def from_parameters(cls, given: Mapping[str, Any]) -> Space:
        """From dimensions with ``low``, ``high`` and ``scale``."""
        return cls({name: Dimension(d.low, d.high, d.scale) for name, d in given.items()})

    @staticmethod
    def coordinate(name: str, dimension: Dimension) -> str:
        """What is drawn for a hyperparameter, by name."""
        return f"1 - {name}" if dimension.scale == "log_complement" else name

    def distributions(self) -> dict[str, BaseDistribution]:
        """For Optuna."""
        from optuna.distributions import FloatDistribution

        return {
            self.coordinate(n, d): FloatDistribution(*d.bounds, log=d.scale != "linear")
            for n, d in self.items()
        }

    def decode(self, drawn: Mapping[str, float]) -> dict[str, float]:
        """From what Optuna drew to hyperparameters."""
        return {n: d.decode(drawn[self.coordinate(n, d)]) for n, d in self.items()}

    def encode(self, values: Mapping[str, float]) -> dict[str, float]:
        """Inverse of :meth:`decode`."""
        return {self.coordinate(n, d): d.encode(values[n]) for n, d in self.items()}

    def edges(self, values: Mapping[str, float]) -> dict[str, str]:
        """The hyperparameters that lie at a bound, and at which."""
        found = {name: dimension.edge(values[name]) for name, dimension in self.items()}
        return {name: edge for name, edge in found.items() if edge is not None}

    def widened(self, edges: Mapping[str, str]) -> Space:
        """The space with those bounds moved out."""
        return Space({n: d.widened(edges[n]) if n in edges else d for n, d in self.items()})

    def describe(self) -> dict[str, list[Any]]:
        """Plain, to be compared and kept."""
        return {name: [d.low, d.high, d.scale] for name, d in self.items()}
