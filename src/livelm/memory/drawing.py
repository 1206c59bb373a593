"""Which kept slices are drawn: each alike, or the surprising more often, and the weights that make up for that."""

import numpy as np
from numpy.typing import NDArray


def chances(surprise: NDArray[np.float64], alpha: float, uniform_share: float) -> NDArray[np.float64]:
    """(n,) P(i) = u / n + (1 - u) p_i^alpha / sum of p^alpha, the mix of uniform and proportional drawing.

    `surprise` (n,) is p; what is negative or not finite counts as 0. Schaul et al. 2016, section 3.3, add a small
    constant to every p; the uniform share is that with a meaning, and bounds the weights by 1 / u.
    """
    n = len(surprise)
    power = np.where(np.isfinite(surprise), np.maximum(surprise, 0.0), 0.0) ** alpha
    total = power.sum()
    if total <= 0 or not np.isfinite(total):
        return np.full(n, 1.0 / n)
    return uniform_share / n + (1.0 - uniform_share) * power / total


def importance(drawn: NDArray[np.float64], n: int, beta: float) -> NDArray[np.float64]:
    """(k,) weights (n P(i))^-beta of slices drawn with these chances out of n (Schaul et al. 2016, section 3.4).

    With beta 1 the weighted mean has the expectation of the plain mean over all n, whatever P is; with 0 the surprising
    count as often as they are drawn. They are not divided by their maximum: P is bounded below, so they are above.
    """
    return (n * drawn) ** -beta


def draw(chance: NDArray[np.float64], k: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(k,) rows, with replacement."""
    edges = np.cumsum(chance)
    found = np.searchsorted(edges, generator.random(k) * edges[-1], side="right")
    return np.minimum(found, len(chance) - 1)
