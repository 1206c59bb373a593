"""The places of a text that cost most bits, for people to see."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 6
"""Spans that are marked at most."""
LEAST_BITS = 5.0
_TOKENS = re.compile(rb"\s*[^\s]+")


class Span(NamedTuple):
    """Bytes [start, stop) of a text, and what they cost together."""

    start: int
    stop: int
    bits: float


def costliest(text: bytes, bits: NDArray[np.float64], marked: Iterable[bytes] = ()) -> list[Span]:
    """The words that cost most, at most `MOST`, in order; neighbours become one. Those in `marked` are there anyhow.

    A word is shown if it cost `LEAST_BITS` and more than an even share of the text's bits.
    """
    ends = np.concatenate([[0.0], np.cumsum(bits)])
    wanted = set(marked)
    found = []
    tokens = list(_TOKENS.finditer(text))
    even = float(ends[-1]) / max(len(tokens), 1)
    for token in tokens:
        word = token[0].lstrip()
        cost = float(ends[token.end()] - ends[token.start()])
        if word in wanted or (cost >= LEAST_BITS and cost > even):
            found.append((word in wanted, cost, token.end() - len(word), token.end()))
    kept = sorted(sorted(found, reverse=True)[:MOST], key=lambda each: each[2])
    spans: list[Span] = []
    for _, cost, start, stop in kept:
        if spans and not text[spans[-1].stop : start].strip():
            last = spans.pop()
            spans.append(Span(last.start, stop, last.bits + cost))
        else:
            spans.append(Span(start, stop, cost))
    return spans
