"""Logistic mixing: many opinions about a bit become one, by weights that small contexts choose and every bit corrects.

After M. Mahoney, "Adaptive weighing of context models for lossless data compression", 2005 (the mixer and the maps).
"""

import math

import numpy as np
from numpy.typing import NDArray

from livelm.compiled import inlined, summed

N_STRETCH = 4096
LARGEST = 11.0
"""Opinions (natural logits) are clipped here."""
N_BINS = 33
FIRST_BYTES = 16384.0
"""After so many bytes half of the rate that weights begin with is gone."""
LEAST = 1.0 / 65536
"""No bit is ever thought less probable than this, so no bit costs more than 16 bits."""


def build_stretch() -> NDArray[np.float32]:
    """(4096,) ln(p / (1 - p)) at the middle of each step of p."""
    p = (np.arange(N_STRETCH) + 0.5) / N_STRETCH
    return np.log(p / (1 - p)).astype(np.float32)


@inlined
def squash(x):
    """The probability with logit x."""
    return 1.0 / (1.0 + math.exp(-x))


@summed
def dot(w, row, x, b):
    """Sum of the products of w[row] and x[b], in single precision."""
    total = np.float32(0)
    for i in range(x.shape[1]):
        total += w[row, i] * x[b, i]
    return total


@summed
def add_scaled(w, row, x, b, factor):
    """w[row] += factor * x[b]."""
    f = np.float32(factor)
    for i in range(x.shape[1]):
        w[row, i] += f * x[b, i]


@inlined
def clip(x):
    """A logit within bounds."""
    return max(-LARGEST, min(LARGEST, x))


@inlined
def falling(rate, first, n):
    """A rate of learning after `n` bytes: `rate`, and what is left of `first`, which weights far from right need."""
    return rate + first / (1.0 + n / FIRST_BYTES)


@inlined
def bin_of(x):
    """(lower bin, share of the upper one) of a logit in an adaptive probability map."""
    t = (max(-7.999, min(7.999, x)) + 8.0) * 2.0
    low = int(t)
    return low, t - low
