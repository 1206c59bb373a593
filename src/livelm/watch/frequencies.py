"""In how many documents each thing was seen: counted once per document, forgotten slowly, in bounded memory."""

import math
from collections.abc import Container, Iterable
from typing import Any

import torch

UNSEEN = 0.5
"""What counts as the sightings of something never seen (Krichevsky and Trofimov 1981)."""
LEAST_RARE = 4
"""How many of the rarest things of a document are averaged, at least."""
RESCALE = 2.0**60
LOOK_AGAIN = 1000


class Frequencies:
    """Document frequencies with a half-life: a sighting counts 2^(-age / half_life), age in documents.

    Instead of shrinking every count, later sightings count more; all are scaled down together when they grow large.
    When `max_items` are counted, the rarest quarter is forgotten, the oldest first among equals.
    """

    def __init__(self, half_life: float, max_items: int) -> None:
        self._growth = 2.0 ** (1.0 / half_life)
        self._max_items = max_items
        self._counts: dict[int, float] = {}
        self._n, self._unit = 0.0, 1.0
        self._n_added = self._next_look = 0
        self._usual: dict[int, None] = {}

    @property
    def n(self) -> float:
        """Documents counted, with their age taken off."""
        return self._n / self._unit

    @property
    def ceiling(self) -> float:
        """Bits of what was never seen: nothing is rarer now. Grows as long as documents are counted."""
        return math.log2((self._n + self._unit) / (UNSEEN * self._unit))

    def rarity(self, item: int) -> float:
        """Bits: -log2 of (sightings + 1/2) / (documents + 1)."""
        return math.log2((self._n + self._unit) / (self._counts.get(item, 0.0) + UNSEEN * self._unit))

    def absence(self, item: int) -> float:
        """Bits of its not being there: -log2 of (documents without it + 1/2) / (documents + 1)."""
        without = max(0.0, self._n - self._counts.get(item, 0.0))
        return math.log2((self._n + self._unit) / (without + UNSEEN * self._unit))

    @property
    def usual(self) -> dict[int, None]:
        """What more than half of the documents had when that was last looked up."""
        return self._usual

    def absences(self, items: Container[int]) -> dict[int, float]:
        """What more than half of the documents have and `items` lack, with how rare that is.

        Which things those are is looked up whenever a twentieth more documents were counted, or `LOOK_AGAIN` more.
        """
        if self._n_added >= self._next_look:
            self._usual = {item: None for item, count in self._counts.items() if count > self._n / 2}
            self._next_look = self._n_added + 1 + min(self._n_added // 20, LOOK_AGAIN)
        return {item: self.absence(item) for item in self._usual if item not in items}

    def add(self, items: Iterable[int]) -> None:
        """Count a document in which these were seen, each once."""
        self._n_added += 1
        self._unit *= self._growth
        self._n += self._unit
        for item in items:
            self._counts[item] = self._counts.get(item, 0.0) + self._unit
        if len(self._counts) > self._max_items:
            kept = sorted(self._counts.items(), key=lambda pair: pair[1])[self._max_items // 4 :]
            self._counts = dict(kept)
        if self._unit > RESCALE:
            self._counts = {item: count / self._unit for item, count in self._counts.items()}
            self._n, self._unit = self._n / self._unit, 1.0

    def state_dict(self) -> dict[str, Any]:
        """Counts as tensors."""
        return {
            "items": torch.tensor(list(self._counts), dtype=torch.int64),
            "counts": torch.tensor(list(self._counts.values()), dtype=torch.float64),
            "n": self._n,
            "unit": self._unit,
            "n_added": self._n_added,
            "next_look": self._next_look,
            "usual": list(self._usual),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._counts = dict(zip(state["items"].tolist(), state["counts"].tolist(), strict=True))
        self._n, self._unit = state["n"], state["unit"]
        self._n_added, self._next_look, self._usual = (
            state["n_added"],
            state["next_look"],
            dict.fromkeys(state["usual"]),
        )


def rarest(rarities: Iterable[float]) -> float:
    """The mean of the rarest eighth, of four at least (all where there are fewer); 0 for none."""
    ranked = sorted(rarities, reverse=True)
    kept = ranked[: max(LEAST_RARE, len(ranked) // 8)]
    return sum(kept) / len(kept) if kept else 0.0
