"""How much of what was counted lies above a height: bounded memory, exact but for the width of a bin, forgetting."""

import math
from typing import Any

import numpy as np
import torch

BINS_PER_BIT = 16
N_BINS = 64 * BINS_PER_BIT
LOWEST = -48.0
"""Bits: what is lower is counted here, and what is above 16 bits in the highest bin."""
ROUNDING = 1e-9
"""Sums of equal numbers may differ by so much."""


class Histogram:
    """Counts heights from -48 to 16 bits in bins of 1/16; a height counts 2^(-age / half_life), age in heights."""

    def __init__(self) -> None:
        self._counts = np.zeros(N_BINS)
        self._unit = 1.0

    @property
    def n(self) -> float:
        """Heights counted, with their age taken off."""
        return float(self._counts.sum()) / self._unit

    def above(self, height: float) -> float:
        """How many of them were in the bin of this height or above."""
        return float(self._counts[_bin(height) :].sum()) / self._unit

    def quantile(self, share: float) -> float:
        """The lower end of the lowest bin such that those above it hold at most this share of all."""
        above = np.cumsum(self._counts[::-1])[::-1]
        crowded = np.nonzero(above > share * above[0])[0]  # bins that, with those above, hold more than the share
        return (int(crowded[-1]) if len(crowded) else 0) / BINS_PER_BIT + LOWEST

    def add(self, height: float, half_life: float) -> None:
        """Count a height."""
        self._unit *= 2.0 ** (1.0 / half_life)
        self._counts[_bin(height)] += self._unit
        if self._unit > 2.0**60:
            self._counts /= self._unit
            self._unit = 1.0

    def state_dict(self) -> dict[str, Any]:
        """The bins as a tensor."""
        return {"counts": torch.from_numpy(self._counts.copy()), "unit": self._unit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._counts, self._unit = state["counts"].numpy().copy(), state["unit"]


def _bin(height: float) -> int:
    return min(N_BINS - 1, max(0, math.floor((height - LOWEST) * BINS_PER_BIT + ROUNDING)))
