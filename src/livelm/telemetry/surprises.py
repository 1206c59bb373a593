"""The documents that cost most, kept while the stream goes by, in memory that does not grow."""

import heapq
import math
from typing import NamedTuple

_MAX_OPEN = 1024  # documents followed at once; more lanes than this would need more
_MAX_SURPRISES = 32
_MIN_SURPRISE_BYTES = 64  # a shorter document says more about luck than about the document


class Surprise(NamedTuple):
    """What one document cost."""

    id: str
    bits_per_byte: float
    excess: float
    """Bits per byte above what the stream cost just before it: late surprises count like early ones."""
    n_bytes: int


class Surprises:
    """The documents read lately, and the most surprising of those that were read before."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, float, int, float]] = {}  # ordinal: id, bits, n_bytes, expected bits
        self._best: list[tuple[float, int, Surprise]] = []  # a heap, least surprising first

    def begin(self, ordinal: int, name: str) -> None:
        """A document begins."""
        self._open[ordinal] = (name, 0.0, 0, 0.0)
        if len(self._open) > _MAX_OPEN:  # the one touched longest ago has most likely ended
            oldest = next(iter(self._open))
            closed = self._open.pop(oldest)
            if _counts(*closed[1:]):
                heapq.heappush(self._best, (_surprise(closed).excess, oldest, _surprise(closed)))
            if len(self._best) > _MAX_SURPRISES:
                heapq.heappop(self._best)

    def add(self, ordinal: int, bits: float, n_bytes: int, expected: float) -> None:
        """Some of it was graded; `expected` bits per byte is what the stream cost just before."""
        if (known := self._open.pop(ordinal, None)) is not None:  # put back last: ordered by last touch
            name, b, n, e = known
            self._open[ordinal] = (name, b + bits, n + n_bytes, e + n_bytes * expected)

    def best(self, n: int) -> list[Surprise]:
        """The `n` most surprising, by excess; open ones count with what they have so far."""
        # ranked before anything is made of them: a live view asks several times a second
        rank = [((b - e) / size, o) for o, (_, b, size, e) in self._open.items() if _counts(b, size, e)]
        still = (_surprise(self._open[ordinal]) for _, ordinal in heapq.nlargest(n, rank))
        return heapq.nlargest(n, [*(s for _, _, s in self._best), *still], key=lambda s: s.excess)


def _counts(bits: float, n_bytes: int, expected: float) -> bool:
    return n_bytes >= _MIN_SURPRISE_BYTES and math.isfinite(bits + expected)


def _surprise(document: tuple[str, float, int, float]) -> Surprise:
    name, bits, n_bytes, expected = document
    return Surprise(name, bits / n_bytes, (bits - expected) / n_bytes, n_bytes)
