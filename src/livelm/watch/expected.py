"""What documents of a kind usually cost, so that what one costs beyond it can be told."""

import math
from collections import OrderedDict
from typing import Any, NamedTuple

PRIOR = 8.0
"""Documents that the stream as a whole counts for when a kind is judged."""
MEMORY = 1000.0
"""Documents over which means are taken, at most: what is learned costs less and less."""
MAX_KINDS = 1 << 14
LEAST_VARIANCE = 1e-4
"""(bits per byte)^2: nothing is ever more certain than a hundredth of a bit per byte."""


class Judged(NamedTuple):
    """The cost of a document beside what was expected of it."""

    expected: float
    """Bits."""
    deviation: float
    """Standard deviation of that, in bits."""


class Expectation:
    """Running mean and variance of bits per byte, of each kind of document and of all.

    A kind with n documents is judged by (n m + PRIOR M) / (n + PRIOR), m its mean and M that of the stream; the same
    for variances, to which the distance of the two means is added in proportion. Kinds not seen for long are dropped.
    """

    def __init__(self) -> None:
        self._kinds: OrderedDict[int, tuple[float, float, float]] = OrderedDict()  # n, mean, variance
        self._all = (0.0, 0.0, 0.0)

    def judge(self, kind: int, n_bytes: int) -> Judged:
        """What a document of this kind and length should cost."""
        n, mean, variance = self._kinds.get(kind, (0.0, 0.0, 0.0))
        _, mean_all, variance_all = self._all
        share = n / (n + PRIOR)
        between = share * (1 - share) * (mean - mean_all) ** 2
        joined = share * variance + (1 - share) * variance_all + between
        expected = share * mean + (1 - share) * mean_all
        return Judged(expected * n_bytes, math.sqrt(max(joined, LEAST_VARIANCE)) * n_bytes)

    def rarity(self, kind: int) -> float:
        """Bits: -log2 of the share of documents that were of this kind."""
        return math.log2((self._all[0] + 1) / (self._kinds.get(kind, (0.0,))[0] + 0.5))

    def learn(self, kind: int, n_bytes: int, bits: float) -> None:
        """Take what a document cost."""
        cost = bits / n_bytes
        self._all = _moved(self._all, cost)
        self._kinds[kind] = _moved(self._kinds.pop(kind, (0.0, 0.0, 0.0)), cost)
        if len(self._kinds) > MAX_KINDS:
            self._kinds.popitem(last=False)

    @property
    def level(self) -> float:
        """Bits per byte of the stream, over the last documents."""
        return self._all[1]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"kinds": [[kind, *values] for kind, values in self._kinds.items()], "all": list(self._all)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._kinds = OrderedDict((kind, (n, mean, variance)) for kind, n, mean, variance in state["kinds"])
        n, mean, variance = state["all"]
        self._all = (n, mean, variance)


def tail(excess: float, deviation: float) -> float:
    """Bits of the surprise that something costs `excess` more than expected: log2(1 + z^2), z = excess / deviation.

    By Cantelli's inequality (1928) no distribution exceeds its mean by z standard deviations with a probability above
    1 / (1 + z^2): so this never says more than is certain, whatever the costs are like. 0 where it cost less.
    """
    return math.log2(1 + (excess / deviation) ** 2) if excess > 0 and deviation > 0 else 0.0


def _moved(old: tuple[float, float, float], value: float) -> tuple[float, float, float]:
    n, mean, variance = old
    step = 1 / min(n + 1, MEMORY)
    away = value - mean
    return n + 1, mean + step * away, (1 - step) * (variance + step * away * away)
