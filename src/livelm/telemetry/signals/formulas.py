"""K, C and S of one window: what its bytes are like, and what the predictions made on them were worth.

Everything follows from the bytes and from what each token cost when it was graded, which every architecture gives.
The entropy of whole predicted distributions would need the logits, which the fused losses never form.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from livelm.telemetry.signals.lz76 import PhraseCounter, complexity, count_phrases_reference
from livelm.types import LN_2

BYTE = 256
"""Symbols of the alphabet of the input."""


class Signals(NamedTuple):
    """The signals of one window of n bytes, graded as m tokens."""

    bits_per_byte: float
    """b: bits of all graded tokens over n; 0 and above."""
    negentropy: float
    """K of the input: 1 - H / 8, with H the entropy of the window's histogram of bytes, in bits; 0 to 1 (constant)."""
    complexity: float
    """C of the input: its LZ76 phrases times log256(n) / n; 0 to 1, constant to random (0.73 at 1 KiB)."""
    disorder: float
    """C / (1 - K): phrases against those of bytes drawn independently from the same histogram; 0 and above."""
    prediction_negentropy: float
    """K of the predictions: 1 - b / 8, at least 0; 0 to 1: how far below a uniform guess they cost."""
    prediction_complexity: float
    """C of the predictions: LZ76 of the m bits "was given more than one half", times log2(m) / m; 0 to 1."""
    divergence: float
    """D = b - H, bits per byte: for predictions that never change, the Kullback-Leibler divergence from the
    histogram to them; below 0 where they know more than the histogram."""
    symbiosis: float
    """S = 1 / (1 + 2^D), 0 to 1: 0.5 where the predictions are worth no more than the window's own histogram."""


class Measure:
    """Measures windows in compiled code."""

    def __init__(self) -> None:
        self._bytes, self._bits = PhraseCounter(BYTE), PhraseCounter(2)

    def window(self, text: bytes, nats: NDArray[np.float64]) -> Signals:
        """The signals of a window: its bytes, and (m,) nats of its graded tokens. Raises ValueError if it is empty."""
        symbols = np.frombuffer(text, np.uint8)
        counts = np.bincount(symbols, minlength=1)
        p = counts[counts > 0] / max(len(text), 1)
        sure = (nats < LN_2).view(np.uint8)
        phrases = self._bytes.count(symbols), self._bits.count(sure)
        return _signals((len(text), len(nats)), float(-(p * np.log2(p)).sum()), float(nats.sum()) / LN_2, phrases)


def measure_reference(text: bytes, nats: list[float]) -> Signals:
    """What `Measure.window` must give, in plain Python."""
    shares = [text.count(symbol) / max(len(text), 1) for symbol in set(text)]
    entropy = -sum(p * math.log2(p) for p in shares)
    sure = bytes(cost < LN_2 for cost in nats)
    phrases = count_phrases_reference(text), count_phrases_reference(sure)
    return _signals((len(text), len(nats)), entropy, sum(nats) / LN_2, phrases)


def _signals(sizes: tuple[int, int], entropy: float, bits: float, phrases: tuple[int, int]) -> Signals:
    n_bytes, n_tokens = sizes
    if not n_bytes:
        raise ValueError("a window without a byte has no signals; wait until some have come.")
    entropy = max(0.0, entropy)  # not the -0.0 of a constant window
    cost = bits / n_bytes
    found = complexity(phrases[0], n_bytes, BYTE)
    return Signals(
        bits_per_byte=cost,
        negentropy=1 - entropy / 8,
        complexity=found,
        disorder=found / (entropy / 8) if entropy else 0.0,
        prediction_negentropy=max(0.0, 1 - cost / 8),
        prediction_complexity=complexity(phrases[1], n_tokens, 2),
        divergence=cost - entropy,
        symbiosis=1 / (1 + 2.0 ** min(cost - entropy, 1000.0)),
    )
