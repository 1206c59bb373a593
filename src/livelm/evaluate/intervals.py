"""How far a mean over a few seeds can be trusted: Student's t."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""How often such an interval holds the true mean, if the values are normal."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, and half the width of its confidence interval (None for a single value)."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference of zero lies outside."""
        return self.half is not None and abs(self.mean) > self.half


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean ± t(n - 1) s / sqrt(n), with the standard deviation s of the sample."""
    n, mean = len(values), statistics.mean(values)
    if n < 2:
        return Interval(mean, None)
    return Interval(mean, t_quantile(level, n - 1) * statistics.stdev(values) / math.sqrt(n))


def t_quantile(level: float, n_freedom: int) -> float:
    """The t with P(|T| <= t) = `level` for Student's distribution, to nine digits.

    >>> round(t_quantile(0.95, 2), 3)
    4.303
    """
    low, high = 0.0, 1.0
    while t_probability(high, n_freedom) < level:
        high *= 2
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, n_freedom) < level else (low, middle)
    return high


def t_probability(t: float, n_freedom: int) -> float:
    """P(|T| <= t), in closed form for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(n_freedom))
    sin, cos = math.sin(angle), math.cos(angle)
    odd = n_freedom % 2
    term = cos if odd else 1.0
    total = 0.0
    for k in range(2 + odd, n_freedom + 1, 2):
        total += term
        term *= cos * cos * (k - 1) / k
    return (angle + sin * total) * 2 / math.pi if odd else sin * total
