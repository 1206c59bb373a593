"""Which addresses were met before: exact, in memory, eight bytes each."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from livelm.sources.web.urls import Url

RECENT = 1 << 17
"""Keys in the set before they are merged into the array: about 10 MB; a merge into 10 million takes 20 ms."""
PATHS = 1 << 18
"""Paths whose query variants are counted; about 30 MB."""


class Seen:
    """The keys of all addresses accepted so far: a sorted array, and a set of the newest.

    Exact but for collisions of the 64-bit keys (10 million addresses: one chance in 400,000 that any two collide).
    `take_new` hands what came in since the last call to the store, which gives it all back when it is reopened.
    """

    def __init__(self, keys: NDArray[np.int64] | None = None) -> None:
        self._sorted = np.empty(0, np.int64) if keys is None else np.sort(keys)
        self._recent: set[int] = set()
        self._new = array("q")

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def unseen(self, urls: Iterable[Url]) -> list[Url]:
        """Those not met before, each once, in order."""
        recent = self._recent
        fresh = {url.key: url for url in urls if url.key not in recent}
        if not len(self._sorted) or not fresh:
            return list(fresh.values())
        keys = np.fromiter(fresh, np.int64, len(fresh))
        places = np.searchsorted(self._sorted, keys)
        known = self._sorted[np.minimum(places, len(self._sorted) - 1)] == keys
        return [url for url, old in zip(fresh.values(), known.tolist(), strict=True) if not old]

    def add(self, keys: Sequence[int]) -> None:
        """Remember keys of which none was met before."""
        self._recent.update(keys)
        self._new.extend(keys)
        if len(self._recent) >= RECENT:
            newest = np.sort(np.fromiter(self._recent, np.int64, len(self._recent)))
            self._sorted = np.concatenate((self._sorted, newest))
            self._sorted.sort(kind="stable")  # timsort merges two sorted runs, in half the time of np.insert
            self._recent.clear()

    def take_new(self) -> bytes:
        """The keys added since the last call, packed."""
        new, self._new = self._new, array("q")
        return new.tobytes()


class Variants:
    """How many query variants of each path were accepted: what keeps a faceted search from filling the frontier.

    When more than `PATHS` paths have been met, those with a single variant are forgotten, then, if that is not
    enough, all: the cap is a guard against floods, and a flood counts up again at once.
    """

    def __init__(self, path_keys: NDArray[np.int64] | None = None) -> None:
        self._counts: dict[int, int] = {}
        self._new = array("q")
        if path_keys is not None and len(path_keys):
            keys, counts = np.unique(path_keys, return_counts=True)
            largest = np.argsort(-counts, kind="stable")[: PATHS // 2]
            self._counts = dict(zip(keys[largest].tolist(), counts[largest].tolist(), strict=True))

    def take(self, path_key: int, limit: int) -> bool:
        """Count one more variant of a path; False when it has `limit` already."""
        n = self._counts.get(path_key, 0)
        if n >= limit:
            return False
        self._counts[path_key] = n + 1
        self._new.append(path_key)
        if len(self._counts) > PATHS:
            several = {key: n for key, n in self._counts.items() if n > 1}
            self._counts = several if len(several) <= PATHS // 2 else {}
        return True

    def take_new(self) -> bytes:
        """The path keys counted since the last call, packed."""
        new, self._new = self._new, array("q")
        return new.tobytes()
